"""Kernel layouts of the sparse convolution libraries: the same numbers in another order.

Every library computes out[v] = sum_d in[v + d] W[d] and differs in how it stores W. What counts is which offset d =
(dx, dy, dz) a number belongs to; shapes alone do not tell, and a kernel in the wrong order loads without a word.

    here, MinkowskiEngine   (K^3, Cin, Cout)        x runs fastest, then y, then z
    torchsparse             (K^3, Cin, Cout)        odd K as above; even K the other way round: z fastest
    spconv 2                (Cout, K, K, K, Cin)    an axis for each coordinate column, in the order of the columns

Kernels of one voxel are (Cin, Cout). In spconv they have the shape (Cout, 1, 1, 1, Cin), but every release from 2.0.0
to 2.3.8 reads their memory as (Cin, Cout) (traveller59/spconv#450), so that is the order in which they are laid down.

Sources: MinkowskiEngine `kernel_region.hpp: coordinate_at`, torchsparse `nn/utils/kernel.py: get_kernel_offsets` and
its CUDA tables, and spconv 2.3.8 run on a CPU.

Legend: K kernel size, Cin and Cout channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid_of(kernel: Tensor) -> Tensor:
    """Unfold a kernel as it is stored here.

    Args:
        kernel: (K^3, Cin, Cout), or (Cin, Cout) for K = 1.

    Returns:
        (K, K, K, Cin, Cout), indexed by x, y, z.
    """
    if kernel.ndim == 2:
        return kernel[None, None, None]
    size = round(kernel.shape[0] ** (1 / 3))
    return kernel.reshape(size, size, size, *kernel.shape[1:]).permute(2, 1, 0, 3, 4)


def spconv_xyz(kernel: Tensor) -> Tensor:
    """For coordinates in columns (batch, x, y, z): (Cout, Kx, Ky, Kz, Cin)."""
    return _spconv_single(kernel) if kernel.ndim == 2 else grid_of(kernel).permute(4, 0, 1, 2, 3).contiguous()


def spconv_zyx(kernel: Tensor) -> Tensor:
    """For coordinates in columns (batch, z, y, x): (Cout, Kz, Ky, Kx, Cin)."""
    return _spconv_single(kernel) if kernel.ndim == 2 else grid_of(kernel).permute(4, 2, 1, 0, 3).contiguous()


def _spconv_single(kernel: Tensor) -> Tensor:
    """A kernel of one voxel: spconv's shape around memory in our order, see above."""
    return kernel.contiguous().view(kernel.shape[1], 1, 1, 1, kernel.shape[0])


def torchsparse(kernel: Tensor) -> Tensor:
    """In torchsparse's order; the shape stays."""
    if kernel.ndim == 2 or kernel.shape[0] % 2:
        return kernel
    return grid_of(kernel).reshape(kernel.shape).contiguous()


def enlarged(kernel: Tensor, size: int) -> Tensor:
    """The same convolution with a larger odd kernel, zero outside; as stored here.

    Args:
        kernel: (K^3, Cin, Cout), or (Cin, Cout) for K = 1; K is odd.
        size: of the new kernel, odd, at least K.

    Returns:
        (size^3, Cin, Cout).
    """
    grid = grid_of(kernel)
    margin = (size - grid.shape[0]) // 2
    assert grid.shape[0] + 2 * margin == size, (grid.shape, size)
    larger = grid.new_zeros(size, size, size, *grid.shape[3:])
    inner = slice(margin, size - margin)
    larger[inner, inner, inner] = grid
    return larger.permute(2, 1, 0, 3, 4).reshape(size**3, *grid.shape[3:]).contiguous()


def identity(channels: int, size: int) -> Tensor:
    """(size^3, channels, channels) kernel that changes nothing, as stored here."""
    centre = torch.eye(channels)
    return enlarged(centre, size)
