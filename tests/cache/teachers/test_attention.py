"""Attention in blocks gives what torch gives, whatever the shapes, and is taken only where the rule says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_cache.teachers import attention
from hilda_cache.teachers.attention import CpuAttention, attention_in_blocks


def tensors(batch: int, heads: int, queries: int, keys: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, heads, rows, width, generator=generator) for rows in (queries, keys, keys))


@settings(max_examples=30)
@given(
    st.tuples(*(st.integers(1, most) for most in (3, 4, 70, 70, 40))),
    st.sampled_from([None, 0.125, 1.0]),
    st.sampled_from([64, 4096, 2**20]),
)
def test_blocks_of_any_size_give_softmax_times_values(
    shape: tuple[int, int, int, int, int], scale: float | None, score_bytes: int
) -> None:
    query, key, value = (each.double() for each in tensors(*shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORE_BYTES", score_bytes)
        found = attention_in_blocks(query, key, value, scale)
    expected = F.scaled_dot_product_attention(query, key, value, scale=scale)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_in_bfloat16_it_is_as_near_to_float32_as_torch_is() -> None:
    query, key, value = tensors(2, 3, 300, 300, 64)
    exact = F.scaled_dot_product_attention(query, key, value)
    rounded = [each.bfloat16() for each in (query, key, value)]
    of_torch = F.scaled_dot_product_attention(*rounded)
    with CpuAttention():
        ours = F.scaled_dot_product_attention(*rounded)
    assert ours.dtype == torch.bfloat16
    assert not torch.equal(ours, of_torch)  # it was ours
    assert (ours - exact).abs().mean() < 2 * (of_torch - exact).abs().mean()


def test_all_else_is_torchs_own() -> None:
    query, key, value = tensors(1, 2, 20, 20, 8)
    half = [each.bfloat16() for each in (query, key, value)]
    mask = torch.zeros(20, 20, dtype=torch.bool).fill_diagonal_(True)
    for arguments, options in (
        ((query, key, value), {}),
        (half, {"is_causal": True}),
        (half, {"attn_mask": mask}),
        ([each[0] for each in half], {}),
    ):
        expected = F.scaled_dot_product_attention(*arguments, **options)
        with CpuAttention():
            assert torch.equal(F.scaled_dot_product_attention(*arguments, **options), expected)
