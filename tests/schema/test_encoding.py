"""Encodings lose what they say they lose, and nothing that is absent comes back as a number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hilda_schema.encoding import (
    ChannelStatistics,
    ErrorMeter,
    decode_float16,
    decode_int8,
    dequantise_uv,
    encode_float16,
    encode_int8,
    merge_errors,
    normalise_uv,
    pixels_of_uv,
    quantise_uv,
)

FINITE = st.floats(-1e4, 1e4, width=32)


def vit_like_tokens(tokens: int = 500, channels: int = 64, seed: int = 0) -> np.ndarray:
    """Features with a few channels hundreds of times larger than the rest, as vision transformers have them."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(tokens, channels))
    values[:, 3] = 300 + 40 * values[:, 3]
    values[:, 7] *= 25
    return values.astype(np.float32)


@given(arrays(np.float32, (5, 8), elements=st.floats(-65000, 65000, width=32)))
def test_float16_is_within_half_a_unit_in_the_last_place(values: np.ndarray) -> None:
    decoded = decode_float16(encode_float16(values))
    assert (np.abs(decoded - values) <= np.maximum(np.abs(values) * 2.0**-11, 2.0**-25)).all()


def test_float16_overflow_is_infinite_for_the_writer_to_refuse() -> None:
    assert np.isinf(encode_float16(np.array([1e6, -1e6], np.float32))).all()


@given(arrays(np.float32, (6, 5), elements=FINITE))
def test_int8_error_is_bounded_by_half_a_level_in_every_channel(tokens: np.ndarray) -> None:
    statistics = ChannelStatistics.of([tokens], 5)
    quantised, scale = encode_int8(tokens, statistics)
    decoded = decode_int8(quantised, scale, statistics).astype(np.float64)
    # Half a level; the float16 scale may be up to 2**-11 (or its smallest step) below what the largest value needs.
    level = scale.astype(np.float64)[:, None] * statistics.scale
    rounding = 127 * (level * 2.0**-10 + 2.0**-25 * statistics.scale)
    float32_sums = 4e-6 * (np.abs(tokens) + np.abs(statistics.mean)) + 1e-30
    assert (np.abs(decoded - tokens) <= 0.5 * level + rounding + float32_sums).all()
    assert quantised.min(initial=0) >= -127


def test_int8_keeps_the_small_channels_beside_outliers_where_one_scale_for_all_does_not() -> None:
    tokens = vit_like_tokens()
    statistics = ChannelStatistics.of([tokens], tokens.shape[1])
    meter = ErrorMeter(statistics.mean)
    meter.add(tokens, decode_int8(*encode_int8(tokens, statistics), statistics))
    ours = meter.result()
    step = np.abs(tokens).max() / 127
    one_scale = ErrorMeter(statistics.mean)
    one_scale.add(tokens, (np.rint(tokens / step) * step).astype(np.float32))
    assert ours.cosine_mean > 0.9999
    assert ours.cosine_min > 0.998
    assert ours.relative_l2_mean < 0.006
    assert one_scale.result().cosine_mean < 0.995


def test_absent_tokens_come_back_as_nan_in_every_encoding() -> None:
    tokens = vit_like_tokens(tokens=4)
    statistics = ChannelStatistics.of([tokens], tokens.shape[1])
    tokens[1] = np.nan
    quantised, scale = encode_int8(tokens, statistics)
    assert (quantised[1] == -128).all()
    for decoded in (decode_int8(quantised, scale, statistics), decode_float16(encode_float16(tokens))):
        assert np.isnan(decoded[1]).all()
        assert np.isfinite(decoded[[0, 2, 3]]).all()


def test_channels_that_never_change_are_exact() -> None:
    tokens = np.full((7, 3), [0.0, -2.5, 1e4], np.float32)
    statistics = ChannelStatistics.of([tokens[:3], tokens[3:]], 3)
    assert np.array_equal(decode_int8(*encode_int8(tokens, statistics), statistics), tokens)


def test_channel_statistics_equal_float64_ones_however_the_rows_come() -> None:
    tokens = vit_like_tokens()
    pieces = ChannelStatistics.of([tokens[:100], tokens[100:101], tokens[101:101], tokens[101:]], 64)
    np.testing.assert_allclose(pieces.mean, tokens.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(pieces.scale, tokens.std(axis=0, dtype=np.float64), rtol=1e-6)
    assert np.array_equal(ChannelStatistics.of([], 2).scale, [1, 1])


def test_the_meter_measures_what_a_naive_loop_measures() -> None:
    original = vit_like_tokens(tokens=40)
    decoded = original + np.random.default_rng(1).normal(0, 0.05, original.shape).astype(np.float32)
    centre = original.mean(axis=0)
    meter = ErrorMeter(centre)
    for rows in (slice(0, 7), slice(7, 7), slice(7, 40)):
        meter.add(original[rows], decoded[rows])
    cosines, relative = [], []
    for x, y in zip(original.astype(np.float64), decoded.astype(np.float64), strict=True):
        a, b = x - centre, y - centre
        cosines.append(a @ b / np.sqrt((a @ a) * (b @ b)))
        relative.append(np.sqrt(((x - y) ** 2).sum() / (x**2).sum()))
    found = meter.result()
    assert found.tokens == 40
    assert found.cosine_min == pytest.approx(min(cosines), abs=2e-6)
    assert found.cosine_mean == pytest.approx(np.mean(cosines), abs=2e-6)
    assert found.relative_l2_max == pytest.approx(max(relative), rel=6e-3)
    assert found.relative_l2_mean == pytest.approx(np.mean(relative), rel=6e-3)


def test_errors_of_parts_merge_to_the_error_of_the_whole() -> None:
    original = vit_like_tokens(tokens=60)
    decoded = original + np.random.default_rng(2).normal(0, 0.02, original.shape).astype(np.float32)
    centre = original.mean(axis=0)
    whole, parts = ErrorMeter(centre), [ErrorMeter(centre), ErrorMeter(centre), ErrorMeter(centre)]
    whole.add(original, decoded)
    for meter, rows in zip(parts, (slice(0, 10), slice(10, 60), slice(0, 0)), strict=True):
        meter.add(original[rows], decoded[rows])
    merged, expected = merge_errors(meter.result() for meter in parts), whole.result()
    assert merged.tokens == expected.tokens
    assert merged.cosine_min == expected.cosine_min
    assert merged.relative_l2_max == expected.relative_l2_max
    assert merged.cosine_mean == pytest.approx(expected.cosine_mean, abs=2e-6)
    assert merged.relative_l2_mean == pytest.approx(expected.relative_l2_mean, rel=1e-2)


@given(
    width=st.integers(1, 4096),
    height=st.integers(1, 4096),
    unit=arrays(np.float64, (4, 2), elements=st.floats(0, 1, exclude_max=True)),
)
def test_positions_survive_storage_within_their_bound(width: int, height: int, unit: np.ndarray) -> None:
    size_px = np.array([width, height])
    uv_px = unit * size_px - 0.5
    stored = quantise_uv(normalise_uv(uv_px, size_px))
    assert stored.dtype == np.uint16
    back = pixels_of_uv(dequantise_uv(stored), size_px)
    assert (np.abs(back - uv_px) <= size_px * 2.0**-17 + 1e-9).all()
    # Storing what was read changes nothing: caches can be copied through their own reader.
    assert np.array_equal(quantise_uv(normalise_uv(back, size_px)), stored)


def test_the_corner_of_an_image_has_positions_0_and_1() -> None:
    size_px = np.array([1600, 900])
    assert np.array_equal(normalise_uv(np.array([[-0.5, -0.5], [1599.5, 899.5]]), size_px), [[0, 0], [1, 1]])
    assert np.array_equal(quantise_uv(np.array([[0.0, 1.0], [-0.1, 1.1]])), [[0, 65535], [0, 65535]])
