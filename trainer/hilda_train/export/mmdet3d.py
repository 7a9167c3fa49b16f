"""For mmdetection3d's MinkUNetBackbone, with its torchsparse and its spconv back end.

Both stem layers, see `backbone.with_second_stem`. mmdetection3d hands spconv coordinates as (batch, x, y, z), and as
the grid's size the largest of them plus one: where that is odd at some level, spconv drops the last voxels there.

Checked against mmdetection3d 1.4.0 with spconv 2.3.8, and with torchsparse 1.4.0 and 2.0.0: it passes torchsparse 2.1
its arguments in an order that is no longer right.
"""

from __future__ import annotations

from collections.abc import Callable
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
from hilda_train.export.kernels import spconv_xyz, torchsparse
from hilda_train.export.torchsparse import DEPTHS, STEM_KERNEL, residual_names


def convert_torchsparse(backbone: Backbone) -> State:
    """For `sparseconv_backend="torchsparse"`; kernels as `hilda_train.export.kernels` lists them."""
    backbone.minkunet("mmdet3d", DEPTHS, STEM_KERNEL)
    state = with_second_stem(backbone.state)
    return _prefixed(renamed(state, _names(state, "net.", residual_names), torchsparse, "kernel"))


def convert_spconv(backbone: Backbone) -> State:
    """For `sparseconv_backend="spconv"`; kernels as `hilda_train.export.kernels` lists them."""
    backbone.minkunet("mmdet3d-spconv", DEPTHS, STEM_KERNEL)
    state = with_second_stem(backbone.state)
    return _prefixed(renamed(state, _names(state, "", _spconv_residual_names), spconv_xyz, "weight"))


def model_config(backbone: Backbone, sparseconv_backend: str) -> dict[str, Any]:
    """What to write in `model.backbone`, and the preprocessor's voxels."""
    planes = planes_of(backbone.state)
    blocks = [blocks_of(backbone.state, stage) for stage in range(1, 2 * ENCODER_STAGES + 1)]
    return {
        "type": "MinkUNetBackbone",
        "in_channels": backbone.state["conv0p1s1.kernel"].shape[-2],
        "base_channels": backbone.state["conv0p1s1.kernel"].shape[-1],
        "num_stages": ENCODER_STAGES,
        "encoder_channels": planes[:ENCODER_STAGES],
        "encoder_blocks": blocks[:ENCODER_STAGES],
        "decoder_channels": planes[ENCODER_STAGES:],
        "decoder_blocks": blocks[ENCODER_STAGES:],
        "block_type": "basic",
        "sparseconv_backend": sparseconv_backend,
    }


def _names(state: State, inner: str, residual: Callable[[str, str], dict[str, str]]) -> dict[str, str]:
    names = {"conv0p1s1": f"conv_input.0.{inner}0", "bn0": f"conv_input.0.{inner}1"}
    names |= {"conv_extra": f"conv_input.1.{inner}0", "bn_extra": f"conv_input.1.{inner}1"}
    for stage in range(1, 2 * ENCODER_STAGES + 1):
        conv, norm = conv_names(stage)
        upwards = stage > ENCODER_STAGES
        room = f"decoder.{stage - ENCODER_STAGES - 1}" if upwards else f"encoder.{stage - 1}"
        names |= {conv: f"{room}.0.{inner}0", norm: f"{room}.0.{inner}1"}
        for block in range(blocks_of(state, stage)):
            theirs = f"{room}.1.{block}" if upwards else f"{room}.{block + 1}"
            names |= residual(f"block{stage}.{block}", theirs)
    return names


def _spconv_residual_names(ours: str, theirs: str) -> dict[str, str]:
    parts = {"conv1": "conv1", "norm1": "bn1", "conv2": "conv2", "norm2": "bn2"}
    parts |= {"downsample.0": "downsample.0", "downsample.1": "downsample.1"}
    return {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in parts.items()}


def _prefixed(state: State) -> State:
    return {f"backbone.{name}": tensor for name, tensor in state.items()}
