"""Token sampling against torch's own bilinear sampler, a float64 loop, and the cache's decoder."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hilda_schema.encoding import ChannelStatistics, decode_int8, encode_int8
from hilda_train.objectives.token_sampling import decode_int8_tokens, sample_tokens


def positions(pairs: int, generator: torch.Generator):
    """Uniform, with the image's corners and edges among them."""
    uv01 = torch.rand(pairs, 2, generator=generator, dtype=torch.float64)
    edges = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.0], [1.0, 0.5]], dtype=torch.float64)
    return torch.cat((edges, uv01))


def by_grid_sample(tokens, group, uv01):
    out = tokens.new_zeros(len(group), tokens.shape[3])
    for index in range(len(tokens)):
        mine = group == index
        grid = (uv01[mine] * 2 - 1).to(tokens.dtype)[None, None]
        image = tokens[index].permute(2, 0, 1)[None]
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        out[mine] = sampled[0, :, 0].T
    return out


def by_loop(tokens, group, uv01):
    _, height, width, channels = tokens.shape
    rows = []
    for camera, (u, v) in zip(group.tolist(), uv01.tolist(), strict=True):
        x = min(max(u * width - 0.5, 0.0), width - 1.0)
        y = min(max(v * height - 0.5, 0.0), height - 1.0)
        total = torch.zeros(channels, dtype=torch.float64)
        for row in range(height):
            for column in range(width):
                weight = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                total += weight * tokens[camera, row, column].double()
        rows.append(total)
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(1, 6), width=st.integers(1, 7), groups=st.integers(1, 4))
def test_equals_grid_sample_and_the_definition(seed, height, width, groups):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(groups, height, width, 5, generator=generator, dtype=torch.float64)
    uv01 = positions(12, generator)
    group = torch.randint(groups, (len(uv01),), generator=generator)
    found = sample_tokens(tokens, group, uv01)
    torch.testing.assert_close(found, by_grid_sample(tokens, group, uv01))
    torch.testing.assert_close(found, by_loop(tokens, group, uv01))


def test_stored_float16_is_sampled_in_float32():
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randn(6, 16, 32, 64, generator=generator) * 30).half()
    uv01 = positions(500, generator)
    group = torch.randint(6, (len(uv01),), generator=generator)
    found = sample_tokens(tokens, group, uv01.float())
    assert found.dtype == torch.float32
    exact = by_grid_sample(tokens.double(), group, uv01)
    # Positions in float32 are within 2^-24 of the image, 2^-19 of a token; values reach 100.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=100 * 2**-17)


def test_a_token_centre_reads_that_token_alone():
    tokens = torch.arange(2.0 * 3 * 4).reshape(2, 3, 4, 1)
    uv01 = torch.tensor([[(1 + 0.5) / 4, (2 + 0.5) / 3]])
    assert sample_tokens(tokens, torch.tensor([1]), uv01).item() == pytest.approx(tokens[1, 2, 1].item())


def test_no_pairs_give_no_rows():
    found = sample_tokens(torch.zeros(1, 2, 2, 7), torch.zeros(0, dtype=torch.long), torch.zeros(0, 2))
    assert found.shape == (0, 7)


def test_int8_decoding_is_the_caches_own():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 4, 5, 8)).astype(np.float32) * rng.uniform(0.1, 100, size=8).astype(np.float32)
    tokens[1] = np.nan  # an absent camera
    statistics = ChannelStatistics.of([tokens[0].reshape(-1, 8), tokens[2].reshape(-1, 8)], 8)
    quantised, scale = encode_int8(tokens, statistics)
    expected = decode_int8(quantised, scale, statistics)
    found = decode_int8_tokens(
        torch.from_numpy(quantised),
        torch.from_numpy(scale),
        torch.from_numpy(statistics.scale),
        torch.from_numpy(statistics.mean),
    )
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found[1].isnan().all()


def test_decoding_before_or_after_interpolation_agrees():
    generator = torch.Generator().manual_seed(3)
    quantised = torch.randint(-127, 128, (2, 4, 6, 5), generator=generator, dtype=torch.int8)
    scale = torch.rand(2, 4, 6, generator=generator).half() / 50
    channel_scale, channel_mean = torch.rand(5, generator=generator) * 9, torch.randn(5, generator=generator)
    uv01, group = positions(40, generator).float(), torch.zeros(45, dtype=torch.long)
    before = sample_tokens(decode_int8_tokens(quantised, scale, channel_scale, channel_mean), group, uv01)
    standard = sample_tokens(quantised.float() * scale.float()[..., None], group, uv01)
    torch.testing.assert_close(before, standard * channel_scale + channel_mean)


def test_an_absent_cameras_tokens_come_out_as_nan_and_others_are_untouched():
    tokens = torch.ones(2, 2, 2, 3)
    tokens[1] = math.nan
    found = sample_tokens(tokens, torch.tensor([0, 1]), torch.full((2, 2), 0.5))
    assert found.isnan().all(dim=1).tolist() == [False, True]
