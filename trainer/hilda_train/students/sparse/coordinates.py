"""Where voxels are: integer coordinates packed into one sortable int64 key, and the order of kernel offsets.

A dense grid finds a neighbour by adding to an index. A list of occupied voxels needs another way to ask "which row
holds the voxel at (x + 1, y, z)?". Packing (batch, x, y, z) into the bits of one integer gives it:

    bit  63   62..48   47..32   31..16   15..0
          0    batch   x + B    y + B    z + B          B = 2^15, so that negative coordinates sort first

- keys sort by batch item, then x, then y, then z, and a voxel is found by binary search;
- the key of the neighbour at (dx, dy, dz) is the key plus a constant, the same for every voxel;
- coordinates rounded down to a multiple of 2^n are the key with the n lowest bits of x, y and z cleared.

The second holds while no addition carries from one field into the next, so coordinates keep `GUARD` away from the
ends of their fields, and no offset is longer than that.

Legend: N voxels, K kernel size (voxels along each axis).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hilda_schema.errors import TrainError

FIELD_BITS = 16
BIAS = 1 << (FIELD_BITS - 1)
GUARD = 1 << 10
COORDINATE_MIN = -BIAS + GUARD
COORDINATE_MAX = BIAS - GUARD - 1
BATCH_MAX = (1 << 15) - 1


def pack(coords: Tensor) -> Tensor:
    """Pack coordinates into keys.

    Args:
        coords: (N, 4) integers: batch item, x, y, z.

    Returns:
        (N,) int64, non-negative.

    Raises:
        TrainError: a coordinate outside COORDINATE_MIN..COORDINATE_MAX or a batch item outside 0..BATCH_MAX.
    """
    check_range(coords)
    batch, x, y, z = coords.long().unbind(1)
    return (((batch << FIELD_BITS | x + BIAS) << FIELD_BITS | y + BIAS) << FIELD_BITS) | z + BIAS


def unpack(keys: Tensor) -> Tensor:
    """Read coordinates back from keys; the inverse of `pack`.

    Args:
        keys: (N,) int64.

    Returns:
        (N, 4) int32: batch item, x, y, z.
    """
    field = (1 << FIELD_BITS) - 1
    xyz = [(keys >> shift & field) - BIAS for shift in (2 * FIELD_BITS, FIELD_BITS, 0)]
    return torch.stack([keys >> 3 * FIELD_BITS, *xyz], dim=1).int()


def check_range(coords: Tensor) -> None:
    """Refuse coordinates that no key can hold.

    Args:
        coords: (N, 4) integers: batch item, x, y, z.

    Raises:
        TrainError: naming the field, its value and the legal range.
    """
    if not len(coords):
        return
    lowest, highest = coords.amin(0).tolist(), coords.amax(0).tolist()
    limits = [(0, BATCH_MAX)] + [(COORDINATE_MIN, COORDINATE_MAX)] * 3
    for name, low, high, (least, most) in zip(("batch item", "x", "y", "z"), lowest, highest, limits, strict=True):
        if low < least or high > most:
            raise TrainError(
                f"voxel coordinate {name} = {low if low < least else high} is outside {least}..{most}",
                "crop the points to a range in metres, or use larger voxels",
            )


def key_offsets(offsets: Tensor) -> Tensor:
    """The constants that lead from a voxel's key to the keys of its neighbours.

    Args:
        offsets: (K, 3) integers (dx, dy, dz), none longer than GUARD along an axis.

    Returns:
        (K,) int64.
    """
    dx, dy, dz = offsets.long().unbind(1)
    return (dx * (1 << FIELD_BITS) + dy) * (1 << FIELD_BITS) + dz


def coarsen(keys: Tensor, stride: int) -> Tensor:
    """Round x, y and z down to multiples of `stride`, a power of two: the key of the coarse voxel around each voxel.

    Args:
        keys: (N,) int64.
        stride: edge of the coarse voxel, in voxels of stride 1.

    Returns:
        (N,) int64, in general neither sorted nor unique.
    """
    low_bits = sum((stride - 1) << shift for shift in (0, FIELD_BITS, 2 * FIELD_BITS))
    return keys & ~low_bits


def kernel_offsets(kernel_size: int) -> Tensor:
    """The offsets of a cubic kernel in the order in which its weights W[k] are stored.

    x runs fastest, then y, then z: k = (kz * K + ky) * K + kx. Along each axis an odd kernel is centred (K = 3: -1,
    0, 1) and an even one starts at the voxel itself (K = 2: 0, 1), which is what tiles the grid when the stride is 2.
    This is MinkowskiEngine's order (`kernel_region::coordinate_at`), chosen so that weights trained there, such as
    SLidR's, fit without a permutation. This function is the one place that knows the order.

    Args:
        kernel_size: K.

    Returns:
        (K^3, 3) int64 (dx, dy, dz), in voxels of the finer of the two grids that the kernel connects.
    """
    first = -(kernel_size // 2) if kernel_size % 2 else 0
    axis = torch.arange(first, first + kernel_size, device="cpu")
    dz, dy, dx = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([dx, dy, dz], dim=-1).reshape(-1, 3)
