"""For MinkUNets on torchsparse as SPVNAS names them; OpenPCSeg (PCSeg) loads the file as it is.

Checked against OpenPCSeg 2d4ab1e (2023-12) and the kernel orders of torchsparse 1.4.0, 2.0.0 and 2.1.0.

Their stem has a second layer, which is filled in so that it changes nothing. Blocks are BasicBlock ("ResBlock") only:
OpenPCSeg's Bottleneck lacks the activations between its convolutions.
"""

from __future__ import annotations

from typing import Any

from hilda_train.export.backbone import (
    ENCODER_STAGES,
    Backbone,
    State,
    blocks_of,
    conv_names,
    planes_of,
    renamed,
    with_second_stem,
)
from hilda_train.export.kernels import torchsparse

DEPTHS = (14, 18, 34)
STEM_KERNEL = 3


def convert(backbone: Backbone) -> State:
    """Rename `block3.1.conv2.kernel` to `stage3.2.net.3.kernel`, and reorder the kernels of two voxels.

    Kernels are as `hilda_train.export.kernels` lists them.
    """
    backbone.minkunet("torchsparse", DEPTHS, STEM_KERNEL)
    state = with_second_stem(backbone.state)
    names = {"conv0p1s1": "stem.0", "bn0": "stem.1", "conv_extra": "stem.3", "bn_extra": "stem.4"}
    for stage in range(1, 2 * ENCODER_STAGES + 1):
        conv, norm = conv_names(stage)
        upwards = stage > ENCODER_STAGES
        entry = f"up{stage - ENCODER_STAGES}.0" if upwards else f"stage{stage}.0"
        names |= {conv: f"{entry}.net.0", norm: f"{entry}.net.1"}
        for block in range(blocks_of(state, stage)):
            theirs = f"up{stage - ENCODER_STAGES}.1.{block}" if upwards else f"stage{stage}.{block + 1}"
            names |= residual_names(f"block{stage}.{block}", theirs)
    return renamed(state, names, torchsparse, "kernel")


def residual_names(ours: str, theirs: str) -> dict[str, str]:
    """Names inside a residual block, shared with mmdetection3d's torchsparse back end."""
    parts = {"conv1": "net.0", "norm1": "net.1", "conv2": "net.3", "norm2": "net.4"}
    parts |= {"downsample.0": "downsample.0", "downsample.1": "downsample.1"}
    return {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in parts.items()}


def model_config(backbone: Backbone) -> dict[str, Any]:
    """What to write under MODEL of OpenPCSeg's MinkUNet."""
    stem = backbone.state["conv0p1s1.kernel"]
    return {
        "NAME": "MinkUNet",
        "BLOCK": "ResBlock",
        "IN_FEATURE_DIM": stem.shape[-2],
        "NUM_LAYER": [blocks_of(backbone.state, stage) for stage in range(1, 2 * ENCODER_STAGES + 1)],
        "PLANES": [stem.shape[-1], *planes_of(backbone.state)],
    }
