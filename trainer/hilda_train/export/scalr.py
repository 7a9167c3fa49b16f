"""For the authors' WaffleIron and ScaLR code: their 1x1 convolutions have trailing axes of length one.

ScaLR's `finetune.py` loads strictly and then replaces the classification layer, so the file must have one of the size
that its config names (`nb_class`, 1024): it is all zeros, and gone before it is used.

Checked against ScaLR 53c474d (branch main, 2026-04) with WaffleIron bcd387c, and its branch scalr_plus, 7cf02a2, whose
networks have GELU.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch

from hilda_train.config.student import input_width
from hilda_train.export.backbone import Backbone, State

PRETRAIN_DIM = 1024
_CONV2D = ("embed.conv2.1.weight", "embed.conv2.4.weight")


def convert(backbone: Backbone) -> State:
    """Rename `channel_mix` to `waffleiron.channel_mix` and so on, and add the axes: (Cout, Cin, 1) from (Cout, Cin)."""
    width = backbone.waffleiron("scalr").width
    result: State = {}
    for name, tensor in backbone.state.items():
        theirs = name if name.startswith("embed.") else f"waffleiron.{name}"
        if name in _CONV2D:
            tensor = tensor[:, :, None, None]
        elif name.endswith("scale.weight"):
            tensor = tensor[:, None, None]
        elif tensor.ndim == 2:
            tensor = tensor[:, :, None]
        result[theirs] = tensor.contiguous()
    result["classif.weight"] = torch.zeros(PRETRAIN_DIM, width, 1)
    result["classif.bias"] = torch.zeros(PRETRAIN_DIM)
    return result


def model_config(backbone: Backbone) -> dict[str, Any]:
    """What to write under point_backbone of the file that `--config_pretrain` names."""
    student = backbone.waffleiron("scalr")
    low_m, high_m = student.range_m
    cells = [round((high - low) / student.cell_m) for low, high in zip(low_m, high_m, strict=True)]
    return {
        "size_input": input_width(student.channels),
        "input_features": ["radius" if name == "range" else name for name in student.channels],
        "nb_channels": student.width,
        "nb_class": PRETRAIN_DIM,
        "depth": student.depth,
        "dim_proj": [2, 1, 0],
        "grid_shape": [list(plane) for plane in combinations(cells, 2)],
        "fov": [list(low_m), list(high_m)],
        "num_neighbors": student.neighbours,
        "voxel_size": student.thin_m,
        "layernorm": True,
        "gelu": student.activation == "gelu",
        "mlp_classif": False,
    }
