"""For Pointcept's MinkUNet14/18/34/50, which run on MinkowskiEngine and keep its names.

Their stem has a kernel of 5 voxels: ours of 3 is put into its middle, with zeros around it, which is the same
convolution. SpUNet-v1m1, Pointcept's spconv U-Net, is another network (its downward convolutions change the width and
its encoder blocks have no projection), so no renaming turns one into the other.

Checked against Pointcept 1.7.0 and MinkowskiEngine 0.5.4.
"""

from __future__ import annotations

from typing import Any

from hilda_schema.errors import UsageError
from hilda_train.export.backbone import Backbone, State
from hilda_train.export.kernels import enlarged

STEM_KERNEL = 5


def convert(backbone: Backbone) -> State:
    """Enlarge the stem's kernel, to (125, Cin, Cout), and put the names behind `module.backbone.`.

    Raises:
        UsageError: no MinkUNet that Pointcept has, or a width other than 1.
    """
    width = backbone.minkunet("pointcept").width
    if width != 1:
        raise UsageError(f"Pointcept's MinkUNet has a fixed width, this one is {width:g} of it", "use --to minkowski")
    state = dict(backbone.state)
    state["conv0p1s1.kernel"] = enlarged(state["conv0p1s1.kernel"], STEM_KERNEL)
    return {f"module.backbone.{name}": tensor for name, tensor in state.items()}


def model_config(backbone: Backbone) -> dict[str, Any]:
    """What to write in `model.backbone` of a DefaultSegmentor; out_channels is the number of classes."""
    depth = backbone.minkunet("pointcept").depth
    return {"type": f"MinkUNet{depth}", "in_channels": backbone.state["conv0p1s1.kernel"].shape[-2]}
