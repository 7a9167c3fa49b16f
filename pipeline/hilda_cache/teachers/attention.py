"""Attention in bfloat16 on a CPU, as matrix products whose scores stay in the processor's cache.

torch's own kernel for it multiplies bfloat16 about as fast as float32. Plain products of one head and some queries at a
time run at the speed of bfloat16, as long as their scores never leave the cache. Which of the two runs follows from the
precision, the device and the shapes alone: whoever measured instead would get one of two sets of bytes, by chance.

Legend: B images, h heads, N queries, M keys, d channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SCORE_BYTES = 2**20  # of a block of scores: about what the second-level cache of a core holds

ATTENTION = "bfloat16 on a CPU: products of one head with at most 1 MiB of scores; else torch"
"""The rule as a manifest names it among the software; change the text with the rule."""


class CpuAttention(TorchFunctionMode):
    """While it is entered, attention in bfloat16 on the CPU is `attention_in_blocks`, whichever library asks for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Take the one call, pass all others on."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _is_plain(*args, **kwargs):
            return _in_blocks(*args, **kwargs)
        return func(*args, **kwargs)


def _is_plain(
    query: Any = None,
    key: Any = None,
    value: Any = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **other: Any,
) -> bool:
    """Whether a call is bfloat16 on the CPU and asks for nothing but softmax(q k') v."""
    tensors = (query, key, value)
    if any(each is None or each.dtype != torch.bfloat16 or each.device.type != "cpu" for each in tensors):
        return False
    same = query.ndim == key.ndim == value.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]
    return same and attn_mask is None and not (dropout_p or is_causal or any(other.values()))


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any) -> Tensor:
    return attention_in_blocks(query, key, value, scale)


def attention_in_blocks(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k') v, a block of one head's scores at a time.

    Args:
        query: (B, h, N, d).
        key: (B, h, M, d).
        value: (B, h, M, d).
        scale: of the scores; d^-0.5 where it is None.

    Returns:
        (B, h, N, d), of the inputs' dtype.
    """
    batch, heads, queries, width = query.shape
    query = query * (1 / math.sqrt(width) if scale is None else scale)
    blocks = max(1, math.ceil(queries * key.shape[2] * query.element_size() / SCORE_BYTES))
    # In memory (B, N, h, d): what follows joins the heads of a token.
    out = torch.empty(batch, queries, heads, value.shape[3], dtype=query.dtype).transpose(1, 2)
    for image in range(batch):
        for head in range(heads):
            keys, values = key[image, head].t(), value[image, head]
            rows = zip(query[image, head].chunk(blocks), out[image, head].chunk(blocks), strict=True)
            for asked, answer in rows:
                answer.copy_(torch.mm(torch.mm(asked, keys).softmax(-1), values))
    return out
