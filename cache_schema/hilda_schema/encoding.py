"""How features and positions become the bytes on disk, and back; every loss here is measured.

float16   relative error 2**-11 at most; what it cannot hold is refused, never clipped.
int8      channels are standardised first (mean and scale per channel over the part), then every token gets one float16
          scale. Vision transformers have a few channels hundreds of times larger than the rest: one scale for a whole
          tensor would leave the others a handful of levels.
uv        uint16 of the image's width and height: within half a 65,536th, 0.015 px in a 1920 px image.

Legend: T tokens or pairs, C channels, P pairs, V cameras.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilda_schema.manifest import EncodingError, Seal

INT8_LEVELS = 127
INT8_ABSENT = -128
METER_TOKENS = 128  # compared at a time: they stay in the processor's cache
UV_LEVELS = 65536

Float = NDArray[np.float32] | NDArray[np.float64] | NDArray[np.float16]


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Mean and scale of every channel over a part."""

    mean: NDArray[np.float32]  # (C,)
    scale: NDArray[np.float32]  # (C,) standard deviation, 1 where a channel never changes

    @classmethod
    def of(cls, blocks: Sequence[NDArray[np.float32]], channels: int) -> ChannelStatistics:
        """Measure over blocks of rows.

        Args:
            blocks: (T, C) each; all tokens of the part.
            channels: C.
        """
        mean = channel_mean(blocks, channels)
        count = max(1, sum(len(block) for block in blocks))
        variance = np.zeros(channels)
        for block in blocks:
            variance += np.square(block - mean).sum(axis=0, dtype=np.float64) / count
        scale = np.sqrt(variance).astype(np.float32)
        return cls(mean, np.where(scale > 0, scale, np.float32(1)))


def channel_mean(blocks: Sequence[NDArray[np.float32]], channels: int) -> NDArray[np.float32]:
    """(C,) mean of every channel over blocks of rows, (T, C) each; 0 where there are none."""
    total = np.zeros(channels)
    for block in blocks:
        total += block.sum(axis=0, dtype=np.float64)
    return (total / max(1, sum(len(block) for block in blocks))).astype(np.float32)


def encode_float16(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round, in any shape, to the nearest float16; beyond its range to an infinity, for the caller to refuse."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float16)


def decode_float16(values: NDArray[np.float16]) -> NDArray[np.float32]:
    """Exact, for any shape."""
    return values.astype(np.float32)


def encode_int8(
    tokens: NDArray[np.float32], statistics: ChannelStatistics
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Standardise, then 255 levels per token.

    Args:
        tokens: (..., C) finite, or all NaN for a token that is absent.
        statistics: of the part.

    Returns:
        (..., C) int8 in [-127, 127], -128 for absent tokens; and (...) float16 scales, NaN for absent tokens,
        infinite where a token lies too far from its channels' means, for the caller to refuse.
    """
    standard = (tokens - statistics.mean) / statistics.scale
    scale = encode_float16(np.abs(standard).max(axis=-1) / INT8_LEVELS)
    absent = np.isnan(scale)
    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
    levels = np.rint(np.where(absent[..., None], 0, standard) / divisor[..., None])
    # The scale was rounded to float16, so that the largest value may land a little beyond the last level.
    quantised = np.clip(levels, -INT8_LEVELS, INT8_LEVELS).astype(np.int8)
    quantised[absent] = INT8_ABSENT
    return quantised, scale


def decode_int8(
    quantised: NDArray[np.int8], scale: NDArray[np.float16], statistics: ChannelStatistics
) -> NDArray[np.float32]:
    """Inverse of `encode_int8`; (..., C), NaN for absent tokens."""
    values = quantised.astype(np.float32)
    values *= scale.astype(np.float32)[..., None]
    values *= statistics.scale
    values += statistics.mean
    return values


def normalise_uv(uv_px: Float, sizes_px: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pixels to the unit square: ((u + 0.5) / width, (v + 0.5) / height).

    Args:
        uv_px: (P, 2) pixel centres at integers, so that an image spans [-0.5, width - 0.5).
        sizes_px: (P, 2) or (2,) width and height of each pair's image.
    """
    return (uv_px.astype(np.float64) + 0.5) / sizes_px


def pixels_of_uv(uv: NDArray[np.float64], sizes_px: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inverse of `normalise_uv`."""
    return uv * sizes_px - 0.5


def quantise_uv(uv: NDArray[np.float64]) -> NDArray[np.uint16]:
    """(P, 2) in [0, 1) to 65,536 cells; positions outside go to the border cell."""
    return np.clip(np.floor(uv * UV_LEVELS), 0, UV_LEVELS - 1).astype(np.uint16)


def dequantise_uv(quantised: NDArray[np.uint16]) -> NDArray[np.float64]:
    """(P, 2) centre of each cell, in the unit square: within 2**-17 of what was quantised."""
    return (quantised.astype(np.float64) + 0.5) / UV_LEVELS


class ErrorMeter:
    """Compares what the teacher said with what a reader gets back, block by block.

    Args:
        centre: (C,) mean of every channel, subtracted before the cosine.
    """

    def __init__(self, centre: NDArray[np.float32]) -> None:
        self._centre = centre
        self._tokens = self._angles = 0
        self._cosine_sum, self._cosine_min = 0.0, 1.0
        self._error_sum, self._error_max = 0.0, 0.0

    def add(self, original: NDArray[np.float32], decoded: NDArray[np.float32]) -> None:
        """Count (T, C) tokens."""
        for start in range(0, len(original), METER_TOKENS):
            block = slice(start, start + METER_TOKENS)
            self._add_block(original[block], decoded[block])

    def _add_block(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        e, a = y - x, x - self._centre
        x2, a2, e2, ae = _dot(x, x), _dot(a, a), _dot(e, e), _dot(a, e)
        relative = np.sqrt(e2 / np.where(x2 > 0, x2, 1))
        self._tokens += len(x)
        self._error_sum += float(relative.sum())
        self._error_max = max(self._error_max, float(relative.max()))
        # A token that sits on the mean (to rounding) has no direction to keep.
        directed = a2 > 1e-12 * x2
        if directed.any():
            a2, e2, ae = a2[directed], e2[directed], ae[directed]
            # a.b / |a||b| with b = a + e, so arranged that it keeps its digits where it is nearly 1.
            along = a2 + ae
            with np.errstate(divide="ignore"):
                cosine = np.sign(along) / np.sqrt(1 + np.maximum(a2 * e2 - ae**2, 0) / along**2)
            self._angles += len(cosine)
            self._cosine_sum += float(cosine.sum())
            self._cosine_min = min(self._cosine_min, float(cosine.min()))

    def result(self) -> EncodingError:
        """The error so far; rounded, so that the last bit of a sum does not change a seal."""
        return EncodingError(
            cosine_min=round(self._cosine_min, 6),
            cosine_mean=round(self._cosine_sum / self._angles, 6) if self._angles else 1.0,
            relative_l2_max=float(f"{self._error_max:.3g}"),
            relative_l2_mean=float(f"{self._error_sum / max(1, self._tokens):.3g}"),
            tokens=self._tokens,
        )


def merge_errors(errors: Iterable[EncodingError]) -> EncodingError:
    """The error over several parts."""
    parts = [error for error in errors if error.tokens]
    tokens = sum(error.tokens for error in parts)
    weight = max(1, tokens)
    return EncodingError(
        cosine_min=min((error.cosine_min for error in parts), default=1.0),
        cosine_mean=round(sum(e.cosine_mean * e.tokens for e in parts) / weight, 6) if parts else 1.0,
        relative_l2_max=max((error.relative_l2_max for error in parts), default=0.0),
        relative_l2_mean=float(f"{sum(e.relative_l2_mean * e.tokens for e in parts) / weight:.3g}"),
        tokens=tokens,
    )


def errors_of_store(seals: Sequence[Seal]) -> dict[str, EncodingError]:
    """The error over a store's parts, given in reading order, by "teacher/layer"."""
    layers = sorted({layer for seal in seals for layer in seal.encoding_error})
    return {
        layer: merge_errors(seal.encoding_error[layer] for seal in seals if layer in seal.encoding_error)
        for layer in layers
    }


def _dot(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    products: NDArray[np.float64] = np.einsum("tc,tc->t", a, b).astype(np.float64)
    return products
