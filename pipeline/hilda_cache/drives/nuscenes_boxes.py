"""nuScenes' boxes: the tables sample_annotation, instance and category, read once and kept as plain numbers.

A box of nuScenes is centred, its x points to the front, its size is printed as width, length, height; it lies in the
scene's world at its keyframe's time stamp.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.frame import Annotation, Float64Array
from hilda_cache.drives.nuscenes_tables import Table
from hilda_cache.drives.transforms import se3

_WIDTH = 10  # x, y, z, width, length, height, quaternion w, x, y, z


class BoxTable:
    """All boxes of a version.

    Args:
        folder: holds the tables.
        samples: tokens of the keyframes whose boxes are wanted.

    Raises:
        DriveError: a table is missing or broken; names the table and the row.
    """

    def __init__(self, folder: Path, samples: Sequence[str]) -> None:
        self._sample = {token: number for number, token in enumerate(samples)}
        self._tracks, self._category = _instances(folder)
        table = Table(folder, "sample_annotation")
        self._path, numbers = table.path, array("d")
        sample, instance, points = array("l"), array("l"), array("l")
        tracks = {token: number for number, token in enumerate(self._tracks)}
        for token, row in table:
            number = self._sample.get(table.text(token, row, "sample_token"))
            if number is None:
                continue
            sample.append(number)
            instance.append(table.resolve(token, row, "instance_token", tracks))
            points.append(table.whole(token, row, "num_lidar_pts"))
            for name, count in (("translation", 3), ("size", 3), ("rotation", 4)):
                numbers.extend(table.numbers(token, row, name, count))
        order = np.argsort(np.asarray(sample, np.int64), kind="stable")
        self._edges = np.searchsorted(np.asarray(sample, np.int64)[order], np.arange(len(samples) + 1))
        self._numbers: Float64Array = np.asarray(numbers, np.float64).reshape(-1, _WIDTH)[order]
        self._instance: NDArray[np.int64] = np.asarray(instance, np.int64)[order]
        self._points: NDArray[np.int64] = np.asarray(points, np.int64)[order]

    def of_sample(self, sample: str, lidar_SE3_world: Float64Array) -> Annotation:
        """Boxes of a keyframe in its LiDAR frame, which `lidar_SE3_world`, (4, 4), takes the world to.

        Raises:
            DriveError: a box has no pose.
        """
        number = self._sample[sample]
        rows = slice(int(self._edges[number]), int(self._edges[number + 1]))
        numbers, where = self._numbers[rows], f"{self._path}, sample {sample!r}"
        poses = [lidar_SE3_world @ se3(each[6:], each[:3], where) for each in numbers]
        tracks = [self._tracks[instance] for instance in self._instance[rows]]
        return Annotation(
            lidar_SE3_box=np.stack(poses) if poses else np.zeros((0, 4, 4)),
            size_m=numbers[:, [4, 3, 5]],
            category=tuple(self._category[track] for track in tracks),
            track=tuple(tracks),
            points=self._points[rows],
        )


def _instances(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Tokens of the tracked objects, and the category of each."""
    table = Table(folder, "category")
    names: dict[str, Any] = {token: table.text(token, row, "name") for token, row in table}
    table = Table(folder, "instance")
    category: dict[str, str] = {}
    for token, row in table:
        table.once(token, category)
        category[token] = table.resolve(token, row, "category_token", names)
    return list(category), category
