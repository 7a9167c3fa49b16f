"""From a cached frame to what the student sees of it: a `Scan`. Runs in loader workers; reads no token.

Token grids are big and stay out of here: a scan only says which cache, frame and image positions they are to be read
at, and the training process reads them as stored (`tokens.py`).

Legend: N points, P point-camera pairs, V cameras of the scan's cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.errors import TrainError
from hilda_schema.manifest import DatasetInfo
from hilda_schema.reader import Frame, PointArrays
from hilda_train.data.augment import Augmentation
from hilda_train.data.voxelise import Reduction, VoxelGrid, voxelise
from hilda_train.students.neighbours import nearest_neighbours
from hilda_train.students.points import PointBatch

Channel = Literal["intensity", "xyz", "range", "height"]

# Mean and standard deviation of the intensity, by `sensor_name` (ScaLR's published values). One sensor's numbers say
# nothing of another's; one that is not here must be given in the recipe.
INTENSITY: dict[str, tuple[float, float]] = {
    "nuscenes": (18.742355, 22.04632),
    "kitti_raw": (0.28613698, 0.14090556),
    "semantickitti": (0.28613698, 0.14090556),
    "pandaset": (18.23640649, 25.86983417),
    "pandaset_pandargt": (23.06113565, 16.76273235),
}
MAIN_LIDAR = "pandar64"  # of the one dataset that has two, and calls the choice `lidar`


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """How a sweep is prepared.

    Attributes:
        grid: voxels, and the range outside of which points are left out; None for students without voxels.
        reduction: a voxel's feature, see `voxelise`.
        thin: keep only one point per voxel, and give the student points instead of voxels (WaffleIron).
        channels: the student's input, in order.
        cameras: how many of the cameras that see something are drawn for each scan; None for all.
        frustum_only: leave out points that no drawn camera sees (ScaLR).
        visible_only: leave out pairs whose point is hidden by a nearer one.
        max_points: keep the points nearest to a random one (ScaLR: 20,000); None for all.
        neighbours: nearest neighbours found per point, for students that want them; 0 for none.
        intensity: sensor name -> (mean, standard deviation), beside those in `INTENSITY`.
    """

    grid: VoxelGrid | None
    reduction: Reduction = "mean"
    thin: bool = False
    channels: tuple[Channel, ...] = ("intensity", "xyz", "range")
    cameras: int | None = None
    frustum_only: bool = False
    visible_only: bool = False
    max_points: int | None = None
    neighbours: int = 0
    intensity: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """One sweep, ready for the student."""

    points: PointBatch  # of one item
    pair_point: Tensor  # (P,) int64 row in points
    pair_camera: Tensor  # (P,) int64 in [0, V)
    pair_row: Tensor  # (P,) int64 row among the frame's pairs, to find stored point features again
    uv01: Tensor  # (P, 2) float32 position in the image, ((u + 0.5) / width_px, (v + 0.5) / height_px)
    cameras: int  # V
    source: tuple[int, int]  # cache, row of the frame
    t0_SE3_scan: Tensor  # (4, 4) float32, between the augmented LiDAR frames


def sensor_name(dataset: DatasetInfo) -> str:
    """Whose intensity statistics apply: the dataset's name, unless the cache holds another LiDAR of it."""
    lidar = dataset.options.get("lidar", MAIN_LIDAR)
    return dataset.name if lidar == MAIN_LIDAR else f"{dataset.name}_{lidar}"


def intensity_remedy(sensor: str) -> str:
    """What to do about a sensor whose intensity statistics are not known."""
    return (
        f'--set "data.intensity.{sensor}={{mean: MEAN, std: STD}}" with numbers of its sweeps, '
        "or leave intensity out of student.channels"
    )


def point_inputs(
    xyz_m: NDArray[np.float32],
    intensity: NDArray[np.float32],
    channels: tuple[Channel, ...],
    sensor: str,
    known: Mapping[str, tuple[float, float]],
) -> NDArray[np.float32]:
    """The student's input at each point.

    Args:
        xyz_m: (N, 3) LiDAR frame, augmented.
        intensity: (N,) in the dataset's own scale.
        channels: which, in order.
        sensor: whose intensity statistics apply, see `sensor_name`.
        known: statistics from the recipe.

    Returns:
        (N, C) float32.

    Raises:
        TrainError: no intensity statistics for the sensor.
    """
    columns: list[NDArray[np.float32]] = []
    for name in channels:
        if name == "intensity":
            statistics = {**INTENSITY, **known}.get(sensor)
            if statistics is None:
                raise TrainError(f"no intensity statistics for {sensor}", intensity_remedy(sensor))
            columns.append(((intensity - statistics[0]) / statistics[1])[:, None])
        elif name == "xyz":
            columns.append(xyz_m)
        elif name == "range":
            columns.append(np.linalg.norm(xyz_m, axis=1, keepdims=True))
        else:
            columns.append(xyz_m[:, 2:])
    return np.concatenate(columns, axis=1).astype(np.float32)


def make_scan(
    frame: Frame,
    source: tuple[int, int],
    t0_SE3_lidar: NDArray[np.float64],
    augmentation: Augmentation,
    options: ScanOptions,
    rng: np.random.Generator,
) -> Scan:
    """Prepare one sweep.

    Args:
        frame: from the cache.
        source: cache and row, to find its tokens again.
        t0_SE3_lidar: (4, 4) pose of this sweep in the clip's current frame, both as recorded.
        augmentation: the clip's draw.
        options: how.
        rng: the clip's generator.
    """
    pairs = _choose_pairs(frame, options, rng)
    candidates = np.arange(len(frame.points))
    if options.frustum_only:
        candidates = np.unique(frame.pairs.point[pairs]).astype(np.int64)
    sensor = sensor_name(frame.cache.manifest.recipe.dataset)
    points, kept = see_points(frame.points, candidates, sensor, augmentation, options, rng)

    row_of = np.full(len(frame.points.xyz_m), -1, np.int64)
    row_of[kept] = np.arange(len(kept))
    rows = row_of[frame.pairs.point[pairs]]
    pairs, rows = pairs[rows >= 0], rows[rows >= 0]
    camera, uv01 = locate_pairs(frame, pairs)
    return Scan(
        points=points,
        pair_point=torch.from_numpy(rows),
        pair_camera=camera,
        pair_row=torch.from_numpy(pairs),
        uv01=uv01,
        cameras=len(frame.camera_names),
        source=source,
        t0_SE3_scan=torch.from_numpy(augmentation.pose(t0_SE3_lidar).astype(np.float32)),
    )


def locate_pairs(frame: Frame, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Where pairs lie.

    Args:
        frame: from the cache.
        rows: (P,) which of its pairs.

    Returns:
        (P,) int64 camera, and (P, 2) float32 position in its image, ((u + 0.5) / width_px, (v + 0.5) / height_px).
    """
    camera = frame.pairs.camera[rows].astype(np.int64)
    sizes = np.array([frame.camera_sizes_px[name] for name in frame.camera_names], np.float64).reshape(-1, 2)
    uv01 = (frame.pairs.uv_px[rows] + 0.5) / sizes[camera] if len(rows) else np.zeros((0, 2))
    return torch.from_numpy(camera), torch.from_numpy(uv01.astype(np.float32))


def see_points(
    points: PointArrays,
    candidates: NDArray[np.int64],
    sensor: str,
    augmentation: Augmentation,
    options: ScanOptions,
    rng: np.random.Generator,
) -> tuple[PointBatch, NDArray[np.int64]]:
    """Prepare the points of one sweep, whether or not a camera sees them.

    Args:
        points: the sweep, N points.
        candidates: (K,) ascending rows of the points that may be kept.
        sensor: whose intensity statistics apply, see `sensor_name`.
        augmentation: the draw.
        options: how.
        rng: the sweep's generator.

    Returns:
        The student's batch, of one item with M points, and (M,) the row of each of them in the sweep, ascending.
    """
    kept = _choose_points(points.xyz_m, candidates, augmentation, options, rng)
    xyz_m = augmentation.points(points.xyz_m[kept])
    feats = point_inputs(xyz_m, points.intensity[kept], options.channels, sensor, options.intensity)
    batch, inside = _point_batch(torch.from_numpy(xyz_m), torch.from_numpy(feats), options, rng)
    return batch, kept[inside]


def _choose_pairs(frame: Frame, options: ScanOptions, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of the pairs that teach: visible ones where asked for, of the drawn cameras."""
    chosen = frame.pairs.visible if options.visible_only else np.ones(len(frame.pairs.point), bool)
    if options.cameras is not None:
        seeing = np.unique(frame.pairs.camera)
        drawn = rng.permutation(seeing)[: options.cameras]
        chosen = chosen & np.isin(frame.pairs.camera, drawn)
    return np.flatnonzero(chosen)


def _choose_points(
    xyz_m: NDArray[np.float32],
    kept: NDArray[np.int64],
    augmentation: Augmentation,
    options: ScanOptions,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Rows of the points that the student sees, ascending, of those given."""
    if options.max_points is not None and len(kept) > options.max_points:
        centre = xyz_m[rng.choice(kept)]
        squared = np.square(xyz_m[kept] - centre).sum(axis=1)
        kept = np.sort(kept[np.argpartition(squared, options.max_points)[: options.max_points]])
    if augmentation.dropout:
        kept = kept[rng.random(len(kept)) >= augmentation.dropout]
    return kept


def _point_batch(
    xyz_m: Tensor, feats: Tensor, options: ScanOptions, rng: np.random.Generator
) -> tuple[PointBatch, NDArray[np.int64]]:
    """The student's batch of one sweep, and which of the points given are in it."""
    inside = np.arange(len(xyz_m))
    voxels = None
    if options.grid is not None:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        made = voxelise(xyz_m, feats, options.grid, options.reduction, generator)
        kept = made.kept[made.representative.sort().values] if options.thin else made.kept
        voxels, inside = (None if options.thin else made.voxels), kept.numpy()
        xyz_m, feats = xyz_m[kept], feats[kept]
    neighbours = None
    if options.neighbours:
        item = torch.zeros(len(xyz_m), dtype=torch.int64)
        neighbours = nearest_neighbours(xyz_m, item, options.neighbours)
    return PointBatch.single(xyz_m, feats, voxels, neighbours), inside
