"""The arithmetic of a sparse convolution: gather, multiply, sum; forwards and backwards.

    out[o] = sum over offsets k and pairs (i, o) of k:  feats[i] @ kernel[k]

Its gradients are made of the same parts. With respect to `feats` it is the convolution with inputs and outputs
exchanged and each kernel[k] transposed; with respect to kernel[k] it is the product of the two gathered sides. So
nothing needs to be kept between forward and backward but the input itself: automatic differentiation of the same
loop would keep every gathered matrix, several times the memory.

The sums are one `embedding_bag` for a block of output rows. Adding the products of one offset after the other would
read and write every output row once for each of its neighbours, and on a GPU in an order that changes.

Legend: I input rows, O output rows, P pairs of a block, Cin and Cout channels, K kernel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hilda_train.students.sparse.kernel_map import Block, KernelMap


def convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sparse convolution, differentiable with respect to features and kernel.

    Under autocast both are cast as a matrix product would cast them; sums over offsets are made in float32.

    Args:
        feats: (I, Cin).
        kernel: (K^3, Cin, Cout), offsets in the order of `kernel_offsets`.
        kernel_map: the pairs of every offset.

    Returns:
        (O, Cout), in the dtype of `feats` or of autocast.
    """
    dtype = _product_dtype(feats)
    return cast("Tensor", _Convolve.apply(feats.to(dtype), kernel.to(dtype), kernel_map))  # type: ignore[no-untyped-call]


class _Convolve(torch.autograd.Function):
    """The differentiable step of `convolve`, on tensors of one dtype."""

    @staticmethod
    def forward(ctx: Any, feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, kernel)
        ctx.kernel_map = kernel_map
        weights = kernel.unbind(0)
        sums = [_sum(_multiply(_gather(feats, block), weights, block), block) for block in kernel_map.blocks]
        return _with_identity(sums, feats, kernel, kernel_map.identity)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, kernel = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        wants_feats, wants_kernel, _ = ctx.needs_input_grad
        turned = kernel.transpose(1, 2)
        weights, sums = turned.unbind(0), []
        grad_kernel = torch.zeros_like(kernel) if wants_kernel else None
        for block in kernel_map.back:
            gathered = _gather(grad_out, block)
            if wants_feats:
                sums.append(_sum(_multiply(gathered, weights, block), block))
            if grad_kernel is not None:
                _add_kernel_gradient(grad_kernel, feats, gathered, block)
        if grad_kernel is not None and kernel_map.identity is not None:
            torch.mm(feats.T, grad_out, out=grad_kernel[kernel_map.identity])
        grad_feats = _with_identity(sums, grad_out, turned, kernel_map.identity) if wants_feats else None
        return grad_feats, grad_kernel, None


def _gather(feats: Tensor, block: Block) -> Tensor:
    """(P, Cin): the input row of every pair."""
    return feats.index_select(0, block.input_rows)


def _multiply(gathered: Tensor, weights: Sequence[Tensor], block: Block) -> Tensor:
    """(P, Cout): the pairs of every offset times its (Cin, Cout) weights."""
    products = gathered.new_empty(len(gathered), weights[0].shape[1])
    counts = [count for _, count in block.offsets]
    sides = torch.split(gathered, counts), torch.split(products, counts)
    for (k, _), rows, product in zip(block.offsets, *sides, strict=True):
        torch.mm(rows, weights[k], out=product)
    return products


def _sum(products: Tensor, block: Block) -> Tensor:
    """(n, Cout): the sum of every output row's products, zero where it has none; accumulated in float32 or better."""
    return F.embedding_bag(block.by_output, products, block.starts, mode="sum")


def _with_identity(sums: Sequence[Tensor], feats: Tensor, kernel: Tensor, identity: int | None) -> Tensor:
    """(O, Cout): the blocks' sums, plus the product of the offset that pairs every row with itself."""
    if not sums:
        return feats.new_zeros(0, kernel.shape[2])
    out = sums[0] if len(sums) == 1 else torch.cat(list(sums))
    return out if identity is None else out.addmm_(feats, kernel[identity])


def _add_kernel_gradient(grad_kernel: Tensor, feats: Tensor, gathered_grad: Tensor, block: Block) -> None:
    """Add to each (Cin, Cout) the product of its pairs' two sides; `block` leads from outputs to inputs."""
    counts = [count for _, count in block.offsets]
    inputs = feats.index_select(0, block.output_rows)
    sides = torch.split(inputs, counts), torch.split(gathered_grad, counts)
    for (k, _), rows, grads in zip(block.offsets, *sides, strict=True):
        grad_kernel[k].addmm_(rows.T, grads)


def _product_dtype(feats: Tensor) -> torch.dtype:
    """The dtype in which autocast would run a matrix product of these features; it leaves float64 alone."""
    device = feats.device.type
    if torch.is_autocast_enabled(device) and feats.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return feats.dtype
