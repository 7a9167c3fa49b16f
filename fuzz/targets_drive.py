"""Harnesses of what a recorded drive is made of: tables, calibration, sweeps, labels, images."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hilda_cache.drives import open_drive
from hilda_cache.drives.feather import read_feather
from hilda_cache.drives.files import image_size_px, read_float32_rows
from hilda_cache.drives.kitti import read_object_calibration, read_oxts_poses, read_poses, read_velodyne
from hilda_cache.drives.pandas_pickle import read_columns
from hilda_cache.drives.synthetic import make_drive
from hilda_cache.images import read_image
from hilda_cache.teachers.text import read_classes

Prepared = tuple[Callable[[bytes], object], list[bytes]]

CALIBRATION = (
    "P0: 7 0 6 0 0 7 1 0 0 0 1 0\nP2: 7.2e2 0 6e2 4.5e1 0 7.2e2 1.7e2 -0.3 0 0 1 4.9e-3\nR0_rect: 1 0 0 0 1 0 0 0 1\n"
    "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27\nTr_imu_to_velo: 1 0 0 -0.8 0 1 0 0.3 0 0 1 -0.8\n"
)


def sweeps(work: Path) -> Prepared:
    """Headerless sweeps of four and five numbers a point, and KITTI's labels."""
    path, labels = work / "a.bin", work / "a.label"

    def target(data: bytes) -> None:
        path.write_bytes(data[1:])
        kind = data[0] % 3 if data else 0
        if kind == 0:
            read_float32_rows(path, 5)
        else:
            labels.write_bytes(data[: len(data) // 4] if kind == 2 else b"\1\0\0\0" * (len(data[1:]) // 16))
            points, _ = read_velodyne(path, labels)
            assert np.isfinite(points.xyz_m).all()

    rows = np.random.default_rng(0).uniform(0, 1, (6, 4)).astype(np.float32)
    return target, [b"\1" + rows.tobytes(), b"\0" + bytes(60), b"\2" + rows.tobytes(), b"\1" + rows.tobytes()[:-3]]


def pickles(work: Path) -> Prepared:
    """PandaSet's pickled tables, plain and packed."""
    import pandas as pd

    path = work / "00.pkl.gz"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        for column in read_columns(path, ("x", "d")).values():
            assert column.dtype.kind in "iufb"

    table = pd.DataFrame({"x": np.arange(4.0), "d": np.arange(4)})
    seeds = []
    for protocol in (3, 4, 5):
        file = io.BytesIO()
        table.to_pickle(file, protocol=protocol)
        seeds.append(file.getvalue())
    return target, [*seeds, gzip.compress(seeds[0]), b"cos\nsystem\n(S'true'\ntR."]


def feather(work: Path) -> Prepared:
    """Argoverse's Feather tables."""
    import pyarrow as pa
    from pyarrow.feather import write_feather

    path = work / "a.feather"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        columns = read_feather(path, ("x", "n"), ("name",))
        assert len({len(column) for column in columns.values()}) == 1

    table = pa.table({"x": [1.5, None, 2.5], "n": [1, 2, 3], "name": ["a", "b", "c"]})
    seeds = []
    for compression in ("uncompressed", "lz4", "zstd"):
        write_feather(table, str(path), compression=compression)
        seeds.append(path.read_bytes())
    return target, seeds


def nuscenes(work: Path) -> Prepared:
    """A table of nuScenes (the first byte says which)."""
    root = work / "drive"
    shutil.rmtree(root, ignore_errors=True)
    make_drive(root, scenes=1, frames=1, seed=0, image_size=(32, 18))
    names = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "lidarseg")
    tables = {name: root / "v1.0-synthetic" / f"{name}.json" for name in names}
    for path in tables.values():  # one row of each kind is enough, and small inputs are found faster
        path.write_text(json.dumps(json.loads(path.read_text())[:8]))
    before = {name: path.read_bytes() for name, path in tables.items()}

    def target(data: bytes) -> None:
        name = names[data[0] % len(names)] if data else names[0]
        tables[name].write_bytes(data[1:])
        try:
            drive = open_drive("nuscenes", root)
            for scene in drive.scenes():
                for info in drive.frames(scene):
                    assert all(path.is_relative_to(root.resolve()) for path in info.lidar_paths)
                    drive.read(info)
        finally:
            tables[name].write_bytes(before[name])

    return target, [bytes([number]) + before[name] for number, name in enumerate(names)]


def pandaset(work: Path) -> Prepared:
    """PandaSet's JSON tables: time stamps, poses and intrinsics (the first byte says which)."""
    root, camera = work / "pandaset", work / "pandaset" / "001" / "camera" / "front_camera"
    shutil.rmtree(root, ignore_errors=True)
    (root / "001" / "lidar").mkdir(parents=True)
    camera.mkdir(parents=True)
    pose = {"heading": {"w": 1.0, "x": 0.0, "y": 0.0, "z": 0.0}, "position": {"x": 1.0, "y": 2.0, "z": 0.0}}
    moved = pose | {"position": {"x": 3.0, "y": 2.0, "z": 0.0}}
    tables: list[tuple[Path, object]] = [
        (root / "001" / "lidar" / "timestamps.json", [1.0, 1.1]),
        (root / "001" / "lidar" / "poses.json", [pose, moved]),
        (camera / "timestamps.json", [1.02, 1.12]),
        (camera / "poses.json", [pose, moved]),
        (camera / "intrinsics.json", {"fx": 9.0, "fy": 9.0, "cx": 5.0, "cy": 4.0}),
    ]
    before = [json.dumps(content).encode() for _, content in tables]
    for (path, _), content in zip(tables, before, strict=True):
        path.write_bytes(content)

    def target(data: bytes) -> None:
        number = data[0] % len(tables) if data else 0
        tables[number][0].write_bytes(data[1:])
        try:
            open_drive("pandaset", root).frames("001")
        finally:
            tables[number][0].write_bytes(before[number])

    return target, [bytes([number]) + content for number, content in enumerate(before)]


def calibration(work: Path) -> Prepared:
    """KITTI's calibration, pose and GPS texts (the first byte says which)."""
    path = work / "calib.txt"

    def target(data: bytes) -> None:
        path.write_bytes(data[1:])
        kind = data[0] % 3 if data else 0
        if kind == 0:
            found = read_object_calibration(path)
            assert all(np.isfinite(matrix).all() for matrix in found.projections.values())
            for number in found.projections:
                found.camera(number)
        elif kind == 1:
            read_poses(path)
        else:
            read_oxts_poses([path])

    return target, [
        b"\0" + CALIBRATION.encode(),
        b"\0" + CALIBRATION.replace("Tr_velo_to_cam", "Tr").encode(),
        b"\1" + b"1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 1.5 0 1 0 0 0 0 1 2e1\n",
        b"\2" + b"49.0 8.4 112.8 0.02 0.001 -1.2 0 0 0",
    ]


def images(work: Path) -> Prepared:
    """Camera images, decoded whole and by their header."""
    from PIL import Image

    path = work / "image.jpg"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        try:
            image_size_px(path)
        finally:
            picture = read_image(data, "image.jpg")
        assert picture.ndim == 3
        assert picture.shape[2] == 3

    pixels = np.random.default_rng(0).integers(0, 255, (9, 16, 3), np.uint8)
    seeds = []
    for kind, mode in (("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA")):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, kind)
        seeds.append(file.getvalue())
    return target, seeds


def class_words(work: Path) -> Prepared:
    """The text file of classes from which prototypes are made."""
    path = work / "classes.txt"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        assert all(words for words in read_classes(path).values())

    return target, [b"car: car, automobile\n# no class\ntraffic_sign\n", b"\xff", b": x"]


HARNESSES = {
    each.__name__: each for each in (sweeps, pickles, feather, nuscenes, pandaset, calibration, images, class_words)
}
