"""Which way a sweep is turned where it is drawn from above.

Here because the pictures of both stages use it: forwards is up, whoever draws.

Legend: N points.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hilda_schema.content import Pairs


def forward_quarter(cameras: Sequence[str], pairs: Pairs, xyz_m: NDArray[np.float32]) -> int:
    """Quarter turns, counter-clockwise from the LiDAR's x axis, to the direction in which the vehicle looks.

    Datasets differ (x in KITTI, y in PandaSet), the front camera does not: forwards is where its points lie.
    Without a camera that names itself so it is where the first camera looks.

    Args:
        cameras: names, by number.
        pairs: of one frame.
        xyz_m: (N, 3) its points, LiDAR frame.
    """
    front = [number for number, name in enumerate(cameras) if "front" in name.lower()]
    ahead = min(front, key=lambda number: len(cameras[number]), default=0)  # "front" before "front_left"
    rows = pairs.point[pairs.camera == ahead]
    bearing = np.arctan2(xyz_m[rows, 1], xyz_m[rows, 0], dtype=np.float64)
    mean = float(np.arctan2(np.sin(bearing).sum(), np.cos(bearing).sum()))
    return round(mean / (np.pi / 2))


def turn_about(xyz_m: NDArray[np.float32], quarters: int) -> NDArray[np.float32]:
    """(N, 2): x and y, turned counter-clockwise by quarters."""
    x, y = xyz_m[:, 0], xyz_m[:, 1]
    return np.stack([(x, y), (-y, x), (-x, -y), (y, -x)][quarters % 4], axis=1)
