"""Which precision a teacher runs in: the fast one, if it can be shown to say the same.

bfloat16 is 3 to 4 times as fast as float32 where the processor multiplies it natively, and ruins some networks (linear
attention, for one). So it is chosen only there, and only after both precisions have seen the same real images.

The measure is the mean-centred cosine: the channel means of the float32 features are taken from both sides, then the
cosine is taken for each token and averaged. Without the centring, the large constant part that many features have
hides any error.

Legend: B images, C channels, H x W token grid, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hilda_cache.teachers.base import Features, Teacher

THRESHOLD = 0.999
_FAST_CPU_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # the last is how ARM calls it
_AMPERE = (8, 0)

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class PrecisionChoice:
    """A precision, and why."""

    dtype: Precision
    reason: str
    """Short, and the same for the same weights, images and kind of processor."""
    cosines: dict[str, float] = field(default_factory=dict)
    """Mean-centred cosine of bfloat16 to float32 by layer, and "global"; empty where nothing was measured."""


def choose_precision(teacher: Teacher, images: Tensor, device: str | None = None) -> PrecisionChoice:
    """Choose a precision on real images, and leave the teacher in it.

    Args:
        teacher: in any precision.
        images: (B, 3, h, w), prepared for the teacher; the cameras of one frame are enough.
        device: where the teacher runs, as torch writes it; None for CUDA where there is any, else the CPU.

    Returns:
        bfloat16 where it is fast and reaches `THRESHOLD` in every layer and in the global token; else float32.
    """
    choice = _decide(teacher, images, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    teacher.to_precision(torch.bfloat16 if choice.dtype == "bfloat16" else torch.float32)
    return choice


def _decide(teacher: Teacher, images: Tensor, device: str) -> PrecisionChoice:
    if not has_fast_bfloat16(device):
        return PrecisionChoice("float32", "float32: this processor has no fast bfloat16")
    cosines = measure_bfloat16(teacher, images)
    worst = min(cosines, key=cosines.__getitem__)
    lowest = _floor(cosines[worst])
    seen = f"on {len(images)} image{'s' if len(images) > 1 else ''}"
    if cosines[worst] >= THRESHOLD:
        return PrecisionChoice("bfloat16", f"bfloat16: mean-centred cosine >= {lowest} in every layer {seen}", cosines)
    reason = f"float32: bfloat16 has mean-centred cosine {lowest} in {worst} {seen}, needs {THRESHOLD}"
    return PrecisionChoice("float32", reason, cosines)


def has_fast_bfloat16(device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether a device multiplies bfloat16 natively.

    Args:
        device: as torch writes it.
        cpuinfo: what Linux tells of the processor; where there is no such file, the answer for a CPU is no.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= _AMPERE
    if torch.device(device).type != "cpu" or not cpuinfo.is_file():
        return False
    for line in cpuinfo.read_text(errors="replace").splitlines():
        name, _, flags = line.partition(":")
        if name.strip().lower() in {"flags", "features"}:
            return not _FAST_CPU_FLAGS.isdisjoint(flags.split())
    return False


def measure_bfloat16(teacher: Teacher, images: Tensor) -> dict[str, float]:
    """Mean-centred cosine of bfloat16 features to float32 ones; leaves the teacher in bfloat16.

    A single image is seen beside its four quarters, since one global token has no mean to be centred on. What is not
    finite counts as -1.

    Args:
        teacher: any.
        images: (B, 3, height_px, width_px), as a teacher takes them.

    Returns:
        Layer, or "global", -> cosine.
    """
    batch = _with_quarters(images) if len(images) == 1 else images
    teacher.to_precision(torch.float32)
    exact = _token_lists(teacher(batch))
    teacher.to_precision(torch.bfloat16)
    rounded = _token_lists(teacher(batch))
    return {name: mean_centred_cosine(exact[name], rounded[name]) for name in exact}


def mean_centred_cosine(reference: Tensor, other: Tensor) -> float:
    """Average over tokens of the cosine between two feature sets, both less the channel means of the reference.

    Args:
        reference: (T, C).
        other: (T, C).

    Returns:
        At most 1; -1 where anything is not finite.
    """
    mean = reference.double().mean(0)
    cosine = F.cosine_similarity(reference.double() - mean, other.double() - mean, dim=1).mean().item()
    return cosine if math.isfinite(cosine) else -1.0


def _with_quarters(images: Tensor) -> Tensor:
    """(B, 3, h, w) -> (5 B, 3, h, w): the images, then their quarters enlarged."""
    height, width = images.shape[2] // 2, images.shape[3] // 2
    quarters = [images[:, :, top : top + height, left : left + width] for top in (0, height) for left in (0, width)]
    enlarged = [F.interpolate(quarter, images.shape[2:], mode="bilinear") for quarter in quarters]
    return torch.cat([images, *enlarged])


def _token_lists(features: Features) -> dict[str, Tensor]:
    """(B, C, H, W) -> (B H W, C) for each layer, and the global tokens (B, D)."""
    lists = {name: grid.permute(0, 2, 3, 1).flatten(0, 2) for name, grid in features.layers.items()}
    return lists if features.global_token is None else lists | {"global": features.global_token}


def _floor(cosine: float) -> str:
    """Five digits, never rounded up past a threshold."""
    return f"{math.floor(cosine * 1e5) / 1e5:.5f}"
