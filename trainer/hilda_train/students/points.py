"""Between points and voxels: the batch that every student takes, and voxel features read back at points.

Legend: N points, M voxels, C channels, B batch items, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hilda_schema.errors import TrainError
from hilda_train.students.sparse import SparseTensor, kernel_offsets
from hilda_train.students.sparse.coordinates import key_offsets
from hilda_train.students.sparse.kernel_map import find_rows

Interpolation = Literal["nearest", "trilinear"]


@dataclass(frozen=True, slots=True, eq=False)
class Voxels:
    """The occupied voxels of a batch of sweeps, and which point lies in which; made by `data.voxelise`."""

    coords: Tensor  # (M, 4) int32: batch item, then three grid coordinates; ascending, unique
    feats: Tensor  # (M, C) float32: the student's input
    point_to_voxel: Tensor  # (N,) int64 row in coords
    position: Tensor  # (N, 3) float32: where the point is in the grid, in voxels; coords are its floor


@dataclass(frozen=True, slots=True, eq=False)
class PointBatch:
    """What a student sees: the points of one or several sweeps, one after the other.

    `voxels` is needed by voxel students, `neighbours` by WaffleIron, which finds them itself where they are not
    given: a data worker that finds them takes that work off the training process.
    """

    xyz_m: Tensor  # (N, 3) float32, LiDAR frame
    feats: Tensor  # (N, C) float32
    batch_index: Tensor  # (N,) int64, ascending: the sweep that a point belongs to
    batch_size: int  # B: an empty sweep counts too
    voxels: Voxels | None = None
    neighbours: Tensor | None = None  # (N, K) int64 rows of this batch, as `neighbours.nearest_neighbours` gives

    @classmethod
    def single(
        cls, xyz_m: Tensor, feats: Tensor, voxels: Voxels | None = None, neighbours: Tensor | None = None
    ) -> PointBatch:
        """A batch of one sweep.

        Args:
            xyz_m: (N, 3), LiDAR frame.
            feats: (N, C).
            voxels: its voxels, all of batch item 0.
            neighbours: (N, K) rows.
        """
        item = torch.zeros(len(xyz_m), dtype=torch.int64, device=xyz_m.device)
        return cls(xyz_m, feats, item, 1, voxels, neighbours)

    @classmethod
    def cat(cls, batches: Sequence[PointBatch]) -> PointBatch:
        """Join batches; the items of the second follow those of the first.

        Args:
            batches: at least one; all with voxels or none, all with neighbours or none.

        Raises:
            TrainError: only some have voxels, or only some have neighbours.
        """
        for name in ("voxels", "neighbours"):
            if len({getattr(batch, name) is None for batch in batches}) > 1:
                raise TrainError(f"only some of the {len(batches)} batches to join have {name}")
        first_items = _starts([batch.batch_size for batch in batches])
        first_points = _starts([len(batch.xyz_m) for batch in batches])
        return cls(
            xyz_m=torch.cat([batch.xyz_m for batch in batches]),
            feats=torch.cat([batch.feats for batch in batches]),
            batch_index=torch.cat([b.batch_index + item for b, item in zip(batches, first_items, strict=True)]),
            batch_size=sum(batch.batch_size for batch in batches),
            voxels=_cat_voxels([b.voxels for b in batches if b.voxels is not None], first_items),
            neighbours=_cat_rows([b.neighbours for b in batches if b.neighbours is not None], first_points),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PointBatch:
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PointBatch:
        """The batch in page-locked memory; `torch.utils.data.DataLoader(pin_memory=True)` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> PointBatch:
        voxels = self.voxels and Voxels(
            change(self.voxels.coords),
            change(self.voxels.feats),
            change(self.voxels.point_to_voxel),
            change(self.voxels.position),
        )
        return replace(
            self,
            xyz_m=change(self.xyz_m),
            feats=change(self.feats),
            batch_index=change(self.batch_index),
            voxels=voxels,
            neighbours=None if self.neighbours is None else change(self.neighbours),
        )


def read_at_points(x: SparseTensor, voxels: Voxels, interpolation: Interpolation = "nearest") -> Tensor:
    """Voxel features at the points of the batch.

    Args:
        x: features at any stride; its geometry is that of `voxels`.
        voxels: where the points are.
        interpolation: "nearest" gives each point the feature of the voxel around it; "trilinear" the mean of the
            eight voxels whose centres enclose it, weighted by closeness, of those that are occupied.

    Returns:
        (N, C) in the dtype of `x.feats`.
    """
    rows = point_rows(x, voxels)
    if interpolation == "nearest":
        return x.feats.index_select(0, rows)
    corners, weights = _enclosing(x, voxels.position, rows)
    feats = x.feats.to(torch.promote_types(x.feats.dtype, torch.float32))
    mean = F.embedding_bag(corners, feats, per_sample_weights=weights.to(feats.dtype), mode="sum")
    return mean.to(x.feats.dtype)


def point_rows(x: SparseTensor, voxels: Voxels) -> Tensor:
    """(N,) int64 row of `x` whose voxel holds each point."""
    rows = voxels.point_to_voxel
    stride = 1
    while stride < x.stride:
        rows = x.geometry.parents(stride)[rows]
        stride *= 2
    return rows


def _enclosing(x: SparseTensor, position: Tensor, own_rows: Tensor) -> tuple[Tensor, Tensor]:
    """The eight voxels around each point: (N, 8) rows and (N, 8) weights, zero where not occupied, summing to one.

    The voxel that holds the point is always among them, with a weight of at least 1/8 before normalisation.
    """
    corner = kernel_offsets(2).to(position.device)
    centred = position / x.stride - 0.5
    base = centred.floor()
    fraction = (centred - base)[:, None]
    weights = torch.where(corner.bool(), fraction, 1 - fraction).prod(dim=2)
    own = (position / x.stride).floor()
    step = ((base - own)[:, None].long() + corner) * x.stride
    own_keys = x.geometry.keys(x.stride)[own_rows]
    wanted = own_keys[:, None] + key_offsets(step.reshape(-1, 3)).view(len(own), len(corner))
    rows, found = find_rows(x.geometry.keys(x.stride), wanted)
    weights = weights * found
    return rows, weights / weights.sum(dim=1, keepdim=True)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [sum(sizes[:n]) for n in range(len(sizes))]


def _cat_rows(rows: Sequence[Tensor], starts: Sequence[int]) -> Tensor | None:
    if not rows:
        return None
    return torch.cat([part + start for part, start in zip(rows, starts, strict=True)])


def _cat_voxels(voxels: Sequence[Voxels], first_items: Sequence[int]) -> Voxels | None:
    if not voxels:
        return None
    coords = []
    for part, item in zip(voxels, first_items, strict=True):
        shift = torch.tensor([item, 0, 0, 0], dtype=part.coords.dtype, device=part.coords.device)
        coords.append(part.coords + shift)
    first_voxels = _starts([len(part.coords) for part in voxels])
    point_to_voxel = _cat_rows([part.point_to_voxel for part in voxels], first_voxels)
    assert point_to_voxel is not None
    return Voxels(
        torch.cat(coords),
        torch.cat([part.feats for part in voxels]),
        point_to_voxel,
        torch.cat([part.position for part in voxels]),
    )
