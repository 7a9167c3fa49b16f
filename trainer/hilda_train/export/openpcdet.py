"""For OpenPCDet, which has no MinkUNet: the weights come with a module to drop in, `openpcdet_minkunet.py`.

Kernels are in spconv 2's layout for OpenPCDet's coordinates, (batch, z, y, x), and have the shapes of that module, so
that OpenPCDet's loader, which transposes kernels of other shapes, leaves them alone.

Checked against OpenPCDet 8caccce (0.6.0 of 2024-04) and spconv 2.3.8.
"""

from __future__ import annotations

from typing import Any

from hilda_train.export.backbone import Backbone, State
from hilda_train.export.kernels import spconv_zyx


def convert(backbone: Backbone) -> State:
    """Put the names behind `backbone_3d.` and drop MinkowskiEngine's extra level in normalisation layers.

    Kernels become those of `spconv_zyx`.
    """
    backbone.minkunet("openpcdet")
    result: State = {}
    for name, tensor in backbone.state.items():
        if name.endswith(".kernel"):
            result[f"backbone_3d.{name.removesuffix('kernel')}weight"] = spconv_zyx(tensor)
        else:
            result[f"backbone_3d.{name.replace('.bn.', '.')}"] = tensor
    return result


def model_config(backbone: Backbone) -> dict[str, Any]:
    """What to write under BACKBONE_3D."""
    student = backbone.minkunet("openpcdet")
    config = {
        "NAME": "MinkUNet",
        "DEPTH": student.depth,
        "WIDTH": student.width,
        "STEM_KERNEL_SIZE": student.stem_kernel_size,
        "CHANNELS": list(student.channels),
    }
    intensity = list(backbone.facts.get("intensity", {}).values())
    if "intensity" in student.channels and len(intensity) == 1:  # of several sensors, the user's own is to be chosen
        config |= {"INTENSITY_MEAN": intensity[0]["mean"], "INTENSITY_STD": intensity[0]["std"]}
    return config
