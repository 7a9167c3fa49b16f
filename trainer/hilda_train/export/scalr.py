"""For the authors' WaffleIron and ScaLR code: their 1x1 convolutions have trailing axes of length one.

ScaLR's `finetune.py` loads strictly and then replaces the classification layer, so the file must have one of the size
that its config names (`pretrain_dim`, 1024): it is all zeros, and gone before it is used.
"""

from __future__ import annotations

import torch

from hilda_train.export.backbone import Backbone, State

PRETRAIN_DIM = 1024
_CONV2D = ("embed.conv2.1.weight", "embed.conv2.4.weight")


def convert(backbone: Backbone) -> State:
    """Rename `channel_mix` to `waffleiron.channel_mix` and so on, and add the axes."""
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
