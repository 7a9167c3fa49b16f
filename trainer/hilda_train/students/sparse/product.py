"""The arithmetic of a sparse convolution: gather, multiply, scatter; forwards and backwards.

    out[o] = sum over offsets k and pairs (i, o) of k:  feats[i] @ kernel[k]

Its gradients are made of the same parts. With respect to `feats` it is the convolution with inputs and outputs
exchanged and each kernel[k] transposed; with respect to kernel[k] it is the product of the two gathered sides. So
nothing needs to be kept between forward and backward but the input itself: automatic differentiation of the same
loop would keep every gathered matrix, several times the memory.

Legend: I input rows, O output rows, Cin and Cout channels, K kernel size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hilda_train.students.sparse.kernel_map import KernelMap


def convolve(feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Sparse convolution, differentiable with respect to features and kernel.

    Under autocast both are cast as a matrix product would cast them; sums over offsets are kept in float32.

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
        return _gather_multiply_scatter(feats, kernel, kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, kernel = ctx.saved_tensors
        grad_feats = grad_kernel = None
        if ctx.needs_input_grad[0]:
            exchanged = ctx.kernel_map.transposed()
            grad_feats = _gather_multiply_scatter(grad_out, kernel.transpose(1, 2), exchanged)
        if ctx.needs_input_grad[1]:
            grad_kernel = _kernel_gradient(feats, grad_out, kernel, ctx.kernel_map)
        return grad_feats, grad_kernel, None


def _gather_multiply_scatter(feats: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    sum_dtype = torch.promote_types(feats.dtype, torch.float32)
    if kernel_map.identity is not None:
        out = (feats @ kernel[kernel_map.identity]).to(sum_dtype)
    else:
        out = feats.new_zeros((kernel_map.n_outputs, kernel.shape[2]), dtype=sum_dtype)
    for k, input_rows, output_rows in kernel_map:
        product = feats.index_select(0, input_rows) @ kernel[k]
        out.index_add_(0, output_rows, product.to(sum_dtype))
    return out.to(feats.dtype)


def _kernel_gradient(feats: Tensor, grad_out: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    gradient = torch.zeros_like(kernel)
    if kernel_map.identity is not None:
        gradient[kernel_map.identity] = feats.T @ grad_out
    for k, input_rows, output_rows in kernel_map:
        gradient[k] = feats.index_select(0, input_rows).T @ grad_out.index_select(0, output_rows)
    return gradient


def _product_dtype(feats: Tensor) -> torch.dtype:
    """The dtype in which autocast would run a matrix product of these features; it leaves float64 alone."""
    device = feats.device.type
    if torch.is_autocast_enabled(device) and feats.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return feats.dtype
