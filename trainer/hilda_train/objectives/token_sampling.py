"""Reading a teacher's token grid where LiDAR points project on it.

Equal to `torch.nn.functional.grid_sample(mode="bilinear", padding_mode="border", align_corners=False)`, but each pair
reads its four tokens as whole rows (`embedding_bag`), which needs no channel-first copy of the grid.

Legend: G (sample, camera) groups, H x W token grid, D teacher channels, P point-camera pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hilda_train.objectives.reductions import at_least_float32


def decode_int8_tokens(tokens: Tensor, scale: Tensor, channel_scale: Tensor, channel_mean: Tensor) -> Tensor:
    """Undo the int8 encoding of a token grid: (q * scale) * channel_scale + channel_mean.

    Decoding comes before interpolation: a grid holds far fewer tokens than its pairs read, and since the weights of
    a bilinear sample sum to one, either order gives the same value up to rounding.

    Args:
        tokens: (G, H, W, D) int8.
        scale: (G, H, W) per token; NaN marks an absent camera and stays NaN.
        channel_scale: (D,) of the layer.
        channel_mean: (D,) of the layer.

    Returns:
        (G, H, W, D) float32.
    """
    decoded = tokens.float().mul_(scale.float()[..., None])
    return decoded.mul_(channel_scale.float()).add_(channel_mean.float())


def sample_tokens(tokens: Tensor, camera_group: Tensor, uv01: Tensor) -> Tensor:
    """Bilinear sample of each pair's camera grid at the pair's position; outside centres clamp to the border.

    Args:
        tokens: (G, H, W, D) floating point; float16 as stored is widened first.
        camera_group: (P,) int64 in [0, G).
        uv01: (P, 2) position in the image, ((u + 0.5) / width_px, (v + 0.5) / height_px), each in [0, 1].

    Returns:
        (P, D), at least float32.
    """
    groups, height, width, channels = tokens.shape
    table = at_least_float32(tokens).reshape(groups * height * width, channels)
    left, right, across = _neighbours(uv01[:, 0].to(table.dtype), width)
    top, bottom, down = _neighbours(uv01[:, 1].to(table.dtype), height)
    first = camera_group.long() * (height * width)
    upper, lower = first + top * width, first + bottom * width
    rows = torch.stack((upper + left, upper + right, lower + left, lower + right), dim=1)
    weights = torch.stack(((1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across), dim=1)
    return F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")


def _neighbours(position01: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two token indices around a position along one axis, and the weight of the second."""
    position = (position01 * size - 0.5).clamp(0, size - 1)
    before = position.floor()
    after = (before + 1).clamp(max=size - 1)
    return before.long(), after.long(), position - before
