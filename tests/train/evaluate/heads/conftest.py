"""Boxes for the toy cache: a car that drives off in each scene, a post that stands; and a file of classes."""

from __future__ import annotations

import numpy as np
import pytest

BOX_CLASSES = """
about: the toy drive
classes: {car: {range_m: 30}, post: {range_m: 30, front: false, turns: false, moves: false}}
datasets: {toy: {ignored: [dog], car: [vehicle.car], post: [post]}}
"""


@pytest.fixture(scope="session")
def toy_boxes(toy_cache, tmp_path_factory):
    """A label file of all frames of the toy cache."""
    from hilda_schema import open_cache
    from hilda_schema.boxes import Boxes, BoxesInfo, write_boxes

    path = tmp_path_factory.mktemp("labels") / "toy.parquet"
    frames = []
    for number, frame in enumerate(open_cache(toy_cache)):
        lidar_SE3_world = np.linalg.inv(frame.world_SE3_lidar)
        world_m = np.array([[2.0 * (number % 5), 1.0, 0.0], [5.0, -5.0, 0.0], [3.0, 3.0, 0.0]])
        frames.append(
            (
                frame.key,
                Boxes(
                    centre_m=world_m @ lidar_SE3_world[:3, :3].T + lidar_SE3_world[:3, 3],
                    size_m=np.array([[6.0, 4, 8], [2.0, 2, 8], [1.0, 1, 1]]),
                    lidar_q_box=np.tile([1.0, 0, 0, 0], (3, 1)),
                    velocity_mps=np.array([[20.0, 0], [0, 0], [np.nan, np.nan]]),
                    points=np.array([20, 3, 0]),
                    category=np.array(["vehicle.car", "post", "dog"], dtype=object),
                    track=np.array(["a", "b", "c"], dtype=object),
                ),
            )
        )
    write_boxes(path, frames, BoxesInfo(dataset="toy", written_by="tests"))
    return path


@pytest.fixture(scope="session")
def toy_box_classes(tmp_path_factory):
    """A file of box classes for the toy cache."""
    path = tmp_path_factory.mktemp("classes") / "boxes.yaml"
    path.write_text(BOX_CLASSES)
    return str(path)
