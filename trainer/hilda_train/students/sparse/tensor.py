"""A sparse tensor: features of occupied voxels, and the geometry that all tensors of one batch share.

Legend: N voxels of one stride, C channels, B batch items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hilda_schema.errors import TrainError
from hilda_train.students.sparse.coordinates import coarsen, pack, unpack
from hilda_train.students.sparse.kernel_map import KernelMap, strided_map, submanifold_map


class Geometry:
    """Which voxels of a batch are occupied at every stride, and which of them touch.

    Geometry depends on coordinates alone, never on features or weights. So each level and each kernel map is built
    once, when a layer first asks for it, and every other layer with the same stride and kernel size gets the same
    object: a MinkUNet34 needs nine maps for its 55 convolutions with a kernel of more than one voxel.

    A voxel of stride s has coordinates that are multiples of s and covers [x, x + s) along each axis, in voxels of
    stride 1. Its parent, of stride 2s, is the voxel around it: coordinates rounded down. A coarse voxel is occupied
    if one of its eight children is (MinkowskiEngine's rule).

    Args:
        coords: (N, 4) integers (batch item, x, y, z) of stride 1, in ascending order without duplicates, as
            `hilda_train.data.voxelise` gives them.
        batch_size: B; items without a voxel count too.

    Raises:
        TrainError: coordinates out of range, out of order or repeated.
    """

    def __init__(self, coords: Tensor, batch_size: int) -> None:
        keys = pack(coords)
        if not bool((keys[1:] > keys[:-1]).all()):
            raise TrainError(
                f"the {len(coords)} voxel coordinates are not in ascending order or not unique",
                "make them with hilda_train.data.voxelise, batch items in order",
            )
        if len(coords) and (last := int(coords[-1, 0])) >= batch_size:
            raise TrainError(f"voxels belong to batch item {last}, but the batch has {batch_size} items")
        self.batch_size = batch_size
        self._keys = {1: keys}
        self._parents: dict[int, Tensor] = {}
        self._maps: dict[tuple[str, int, int], KernelMap] = {}

    def keys(self, stride: int) -> Tensor:
        """(N,) int64 sorted keys of the voxels of a stride.

        Raises:
            TrainError: the stride is not a power of two, at least 1.
        """
        if stride not in self._keys:
            if stride < 1 or stride & (stride - 1):
                raise TrainError(f"there are no voxels of stride {stride}: strides are 1, 2, 4, 8, ...")
            self._coarsen_to(stride)
        return self._keys[stride]

    def coords(self, stride: int) -> Tensor:
        """(N, 4) int32 (batch item, x, y, z) of the voxels of a stride; x, y and z are multiples of it."""
        return unpack(self.keys(stride))

    def parents(self, stride: int) -> Tensor:
        """(N,) int64: for each voxel of `stride`, the row of its parent among the voxels of twice that stride."""
        self.keys(2 * stride)
        return self._parents[stride]

    def item_sizes(self, stride: int) -> list[int]:
        """B counts: the voxels of each batch item. Rows of an item are contiguous and items are in order."""
        items = unpack(self.keys(stride))[:, 0]
        counts: list[int] = torch.bincount(items, minlength=self.batch_size).tolist()
        return counts

    def kernel_map(self, kind: Literal["submanifold", "strided"], stride: int, kernel_size: int) -> KernelMap:
        """The row pairs of a convolution, built on the first request.

        Args:
            kind: "submanifold" (from the voxels of `stride` to themselves) or "strided" (to those of twice the
                stride). A transposed convolution uses `transposed()` of the strided map.
            stride: the finer side's stride.
            kernel_size: voxels along each axis.
        """
        wanted = (kind, stride, kernel_size)
        if wanted not in self._maps:
            fine = self.keys(stride)
            self._maps[wanted] = (
                submanifold_map(fine, stride, kernel_size)
                if kind == "submanifold"
                else strided_map(fine, self.keys(2 * stride), stride, kernel_size)
            )
        return self._maps[wanted]

    def _coarsen_to(self, stride: int) -> None:
        fine_stride = stride // 2
        coarse, parents = torch.unique(coarsen(self.keys(fine_stride), stride), return_inverse=True)
        self._keys[stride], self._parents[fine_stride] = coarse, parents


@dataclass(frozen=True, slots=True, eq=False)
class SparseTensor:
    """Features of the occupied voxels of one stride.

    Row n of `feats` belongs to row n of `coords`; a voxel without a row is all zeros.
    """

    feats: Tensor  # (N, C) floating
    geometry: Geometry
    stride: int = 1

    def __post_init__(self) -> None:
        voxels = len(self.geometry.keys(self.stride))
        if len(self.feats) != voxels:
            raise TrainError(f"{len(self.feats)} feature rows for {voxels} voxels of stride {self.stride}")

    @property
    def coords(self) -> Tensor:
        """(N, 4) int32: batch item, x, y, z in voxels of stride 1."""
        return self.geometry.coords(self.stride)

    def with_feats(self, feats: Tensor) -> SparseTensor:
        """Other features, (N, C), at the same voxels.

        Raises:
            TrainError: another number of rows.
        """
        return SparseTensor(feats, self.geometry, self.stride)
