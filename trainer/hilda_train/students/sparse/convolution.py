"""The three sparse convolutions. Each is: get the shared kernel map, multiply, keep the geometry.

Parameters are named and shaped as in MinkowskiEngine 0.5, whose checkpoints therefore load as they are:
`kernel` (K^3, Cin, Cout), or (Cin, Cout) where K = 1, and `bias` (1, Cout).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from hilda_train.students.sparse.product import convolve
from hilda_train.students.sparse.tensor import SparseTensor


class _SparseConv(nn.Module):
    """Holds the kernel; what the kinds differ in is the map that they use."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, fan: int, bias: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        volume = kernel_size**3
        shape = (volume, in_channels, out_channels) if volume > 1 else (in_channels, out_channels)
        bound = 1 / math.sqrt(fan * volume)
        self.kernel = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1, out_channels).uniform_(-bound, bound)) if bias else None

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"


class SubmanifoldConv(_SparseConv):
    """Stride 1: the outputs are the voxels of the input, so that occupancy does not spread from layer to layer.

    Graham, Engelcke, van der Maaten, "3D Semantic Segmentation with Submanifold Sparse Convolutional Networks",
    CVPR 2018. Equal to a dense convolution with padding K // 2 (none after, for even K), read at occupied voxels.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: K.
        bias: add a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, fan=in_channels, bias=bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve; the stride stays."""
        if self.kernel_size == 1:
            out = x.feats @ self.kernel
        else:
            out = convolve(x.feats, self.kernel, x.geometry.kernel_map("submanifold", x.stride, self.kernel_size))
        return x.with_feats(out if self.bias is None else out + self.bias)


class StridedConv(_SparseConv):
    """Stride 2, downwards: the outputs are the parents of the input's voxels.

    Equal to a dense convolution with stride 2 (no padding for K = 2, padding 1 for K = 3), read at those parents.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: K; 2 lets each voxel count once, in its own parent.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 2) -> None:
        super().__init__(in_channels, out_channels, kernel_size, fan=in_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve to twice the stride."""
        kernel_map = x.geometry.kernel_map("strided", x.stride, self.kernel_size)
        return SparseTensor(convolve(x.feats, self.kernel, kernel_map), x.geometry, 2 * x.stride)


class TransposedConv(_SparseConv):
    """Stride 2, upwards: the outputs are the voxels that the batch had at half the stride ("inverse" convolution).

    The pairs of the strided convolution with inputs and outputs exchanged. Equal to a dense transposed convolution
    with stride 2 (no padding for K = 2; padding and output padding 1 for K = 3), read at those voxels.

    Args:
        in_channels: Cin.
        out_channels: Cout.
        kernel_size: K.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 2) -> None:
        super().__init__(in_channels, out_channels, kernel_size, fan=out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve to half the stride."""
        fine_stride = x.stride // 2
        kernel_map = x.geometry.kernel_map("strided", fine_stride, self.kernel_size).transposed()
        return SparseTensor(convolve(x.feats, self.kernel, kernel_map), x.geometry, fine_stride)
