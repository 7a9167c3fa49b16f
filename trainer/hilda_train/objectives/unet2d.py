"""A small two-dimensional UNet with time embedding: the denoiser, and the trunk of the plain-decoder control arm.

Residual blocks of GroupNorm, SiLU and 3x3 convolutions, self-attention at the lowest level only (DDPM, arXiv
2006.11239, appendix B, without its wider attention).

Legend: S samples, C channels, H x W cells, E width of the time embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_schema.errors import UsageError

# Channels of one attention head, and the most groups a GroupNorm has: common practice since DDPM.
_HEAD_CHANNELS = 64
_NORM_GROUPS = 32
_LONGEST_PERIOD = 10_000


def time_embedding(tau: Tensor, width: int) -> Tensor:
    """(S, width) float32 sines and cosines of (S,) steps, with periods in geometric progression."""
    half = width // 2
    exponent = torch.arange(half, device=tau.device, dtype=torch.float32) / half
    angle = tau.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponent)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_NORM_GROUPS, channels), channels)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + time))); starts as the identity (or its 1x1 projection)."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.time = nn.Linear(time_channels, out_channels)
        self.after = nn.Sequential(
            _norm(out_channels), nn.SiLU(), _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        )
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(S, C_in, H, W) and (S, E) to (S, C_out, H, W)."""
        inner = self.before(x) + self.time(time)[:, :, None, None]
        out: Tensor = self.skip(x) + self.after(inner)
        return out


class SelfAttention(nn.Module):
    """Every cell attends to every cell; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // _HEAD_CHANNELS)
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(S, C, H, W) to the same."""
        samples, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(samples, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(-1, -2)
        out: Tensor = x + self.out(mixed.reshape(samples, channels, height, width))
        return out


class UNet2d(nn.Module):
    """(S, in_channels, H, W) and steps (S,) to (S, out_channels, H, W).

    Args:
        in_channels: channels of the noised map and its condition together.
        out_channels: 1 for occupancy.
        base: channels of the highest level.
        multipliers: channels of each level, as multiples of `base`; every level after the first halves H and W.
        blocks: residual blocks on the way down; the way up has one more, as it also takes in the down-sampled input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 1,
        *,
        base: int = 64,
        multipliers: Sequence[int] = (1, 2, 4),
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.base = base
        self.shrink = 2 ** (len(multipliers) - 1)
        widths = [base * multiplier for multiplier in multipliers]
        time = 4 * base
        self.time = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.enter = nn.Conv2d(in_channels, base, 3, padding=1)
        skips = [base]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            if level > 0:
                self.down.append(nn.Conv2d(skips[-1], skips[-1], 3, stride=2, padding=1))
                skips.append(skips[-1])
            for _ in range(blocks):
                self.down.append(ResidualBlock(skips[-1], width, time))
                skips.append(width)
        self.middle = nn.ModuleList([ResidualBlock(widths[-1], widths[-1], time) for _ in range(2)])
        self.attention = SelfAttention(widths[-1])
        self.up = nn.ModuleList()
        channels = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(channels + skips.pop(), width, time))
                channels = width
            if level > 0:
                self.up.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.leave = nn.Sequential(_norm(channels), nn.SiLU(), _zero(nn.Conv2d(channels, out_channels, 3, padding=1)))

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """Run the network.

        Raises:
            UsageError: H or W cannot be halved once for each level.
        """
        if x.shape[2] % self.shrink or x.shape[3] % self.shrink:
            raise UsageError(
                f"a map of {x.shape[2]} x {x.shape[3]} cells cannot be halved down to the lowest level of the UNet",
                f"choose a grid whose side is a multiple of {self.shrink}, or fewer levels",
            )
        time = self.time(time_embedding(tau, self.base).to(self.enter.weight.dtype))
        x = self.enter(x)
        skips = [x]
        for module in self.down:
            x = module(x, time) if isinstance(module, ResidualBlock) else module(x)
            skips.append(x)
        x = self.middle[1](self.attention(self.middle[0](x, time)), time)
        for module in self.up:
            if isinstance(module, ResidualBlock):
                x = module(torch.cat((x, skips.pop()), dim=1), time)
            else:
                x = module(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        out: Tensor = self.leave(x)
        return out


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with zero weights: a block that ends in it starts by adding nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
