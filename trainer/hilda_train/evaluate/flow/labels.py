"""Scene flow from tracked boxes: a point of a box moves as its box does, everything else stands still.

As Argoverse 2 makes its labels (av2-api, `Flow.from_sweep_pair`): boxes are 0.2 m longer and wider than annotated,
since they are a little tight; a point whose box is not annotated in the second sweep has no label. Theirs are between
the two sweeps as the vehicle sees them; ours are over ground, in the first sweep's frame: the vehicle's own motion is
known and no task for a network.

Legend: N points of the first sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hilda_schema.boxes import Boxes, points_inside

MARGIN_M = (0.2, 0.2, 0.0)
DYNAMIC_MPS = 0.5
"""Argoverse 2's bound between moving and standing, 0.05 m in the 0.1 s between its sweeps."""


@dataclass(frozen=True, slots=True, eq=False)
class FlowLabels:
    """Of one sweep."""

    flow_m: NDArray[np.float64]  # (N, 3) motion over ground until the second sweep, first sweep's LiDAR frame
    foreground: NDArray[np.bool_]  # (N,) in a box
    dynamic: NDArray[np.bool_]  # (N,) moving at `DYNAMIC_MPS` or faster
    valid: NDArray[np.bool_]  # (N,) False where the motion is not known


def scene_flow(
    xyz_m: NDArray[np.floating],
    first: Boxes,
    second: Boxes,
    t0_SE3_t1: NDArray[np.float64],
    interval_s: float,
    margin_m: tuple[float, float, float] = MARGIN_M,
) -> FlowLabels:
    """Flow of a sweep's points.

    Args:
        xyz_m: (N, 3) the first sweep, in its LiDAR frame.
        first: its boxes.
        second: those of the second sweep, in that sweep's LiDAR frame.
        t0_SE3_t1: (4, 4) takes the second LiDAR frame to the first; what stands still is at one place then.
        interval_s: between the sweeps.
        margin_m: by how much boxes are larger than annotated: length, width, height.
    """
    flow_m = np.zeros((len(xyz_m), 3))
    foreground, valid = np.zeros(len(xyz_m), np.bool_), np.ones(len(xyz_m), np.bool_)
    before, after = first.lidar_SE3_box, second.lidar_SE3_box
    later = {track: row for row, track in enumerate(second.track)}
    # Where boxes overlap the last one has the points, as in av2-api.
    for k, rows in enumerate(points_inside(xyz_m, first, margin_m)):
        foreground[rows] = True
        row = later.get(first.track[k])
        valid[rows] = row is not None
        if row is not None:
            motion = t0_SE3_t1 @ after[row] @ np.linalg.inv(before[k])
            points = xyz_m[rows].astype(np.float64)
            flow_m[rows] = points @ motion[:3, :3].T + motion[:3, 3] - points
        else:
            flow_m[rows] = 0
    dynamic = np.linalg.norm(flow_m, axis=1) >= DYNAMIC_MPS * interval_s
    return FlowLabels(flow_m, foreground, dynamic, valid)
