"""The nuScenes tables, read row by row into the little that projecting LiDAR points on images needs.

Tables of the whole dataset are too large to load whole: `sample_data.json` of v1.0-trainval has 2.6 million rows
and more than a gigabyte. Rows are decoded one at a time, those of other sensors and, unless sweeps are asked for,
those between keyframes are dropped at once, and of 2.6 million ego poses only those are kept that a kept row names.
Time and memory are linear in the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hilda_cache.drives.files import contained
from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.json_rows import stream_rows
from hilda_cache.drives.transforms import TOLERANCE, se3
from hilda_schema.errors import DriveError

LIDAR = "LIDAR_TOP"

_DAMAGED = "the tables are damaged: download the metadata again"


class Sensor(NamedTuple):
    """A sensor as calibrated for one log."""

    channel: str
    modality: str
    ego_SE3_sensor: Float64Array  # (4, 4)
    intrinsics: Float64Array | None  # (3, 3) of cameras


class Sample(NamedTuple):
    """A keyframe."""

    token: str
    scene: SceneReadings


class Reading(NamedTuple):
    """One sensor file."""

    token: str
    sample: Sample  # its keyframe, or for files in between the one they lead to
    stamp_us: int
    file: str
    pose: int  # row in `Index.poses`
    sensor: Sensor
    is_keyframe: bool
    size_px: tuple[int, int]  # width and height of images


@dataclass(slots=True, eq=False)
class SceneReadings:
    """What was recorded in a scene, in time order."""

    name: str
    sweeps: list[Reading] = field(default_factory=list)
    images: dict[str, list[Reading]] = field(default_factory=dict)  # by channel


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """All scenes of a version."""

    scenes: dict[str, SceneReadings]  # by name
    poses: Float64Array  # (rows, 7): x, y, z [m], quaternion w, x, y, z
    labels: dict[str, str]  # sweep's token -> file of per-point labels


class Table:
    """One table: its rows, its fields checked, its errors naming file and row."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = contained(folder, f"{name}.json")

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in stream_rows(self.path):
            token = row.get("token")
            if not isinstance(token, str) or not token:
                raise DriveError(f"{self.path}: a row has no token: {str(row)[:80]}", _DAMAGED)
            yield token, row

    def error(self, token: str, what: str) -> DriveError:
        """What is wrong with a row."""
        return DriveError(f"{self.path}: row {token!r} {what}", _DAMAGED)

    def text(self, token: str, row: dict[str, Any], name: str) -> str:
        """A field that must be text and not empty.

        Raises:
            DriveError: it is not.
        """
        value = row.get(name)
        if not isinstance(value, str) or not value:
            raise self.error(token, f"has no text in {name!r}")
        return value

    def whole(self, token: str, row: dict[str, Any], name: str) -> int:
        """A field that must be a whole number a float64 can hold, not negative.

        Raises:
            DriveError: it is not.
        """
        value = row.get(name)
        if type(value) is not int or not 0 <= value < 1 << 53:
            raise self.error(token, f"has no whole number in {name!r}")
        return value

    def numbers(self, token: str, row: dict[str, Any], name: str, count: int) -> list[float]:
        """A field that must be a list of `count` numbers.

        Raises:
            DriveError: it is not.
        """
        value = row.get(name)
        if not isinstance(value, list) or len(value) != count or any(type(v) not in (int, float) for v in value):
            raise self.error(token, f"has no list of {count} numbers in {name!r}")
        return value

    def once(self, token: str, known: dict[str, Any]) -> None:
        """Refuse a token that stands twice.

        Raises:
            DriveError: it does.
        """
        if token in known:
            raise self.error(token, "stands twice")

    def resolve(self, token: str, row: dict[str, Any], name: str, known: dict[str, Any]) -> Any:
        """What a field that names a row of another table points at.

        Raises:
            DriveError: no such row is known.
        """
        target = self.text(token, row, name)
        if target not in known:
            raise self.error(token, f"names {target!r} in {name!r}, which no table holds")
        return known[target]


def load_index(folder: Path, sweeps: bool) -> Index:
    """Read the tables of one version.

    Args:
        folder: holds the tables. Of nuScenes' thirteen it needs calibrated_sensor, ego_pose, sample, sample_data,
            scene and sensor; lidarseg is used where it is; the others need not be there.
        sweeps: keep files between keyframes too.

    Raises:
        DriveError: a table is missing or broken; names the table and the row.
    """
    sensors = _sensors(folder)
    scenes, samples = _samples(folder)
    pose_rows = _sample_data(folder, sensors, samples, sweeps)
    for scene in scenes.values():
        for readings in (scene.sweeps, *scene.images.values()):
            readings.sort(key=lambda reading: reading.stamp_us)
    return Index(scenes, _poses(folder, pose_rows), _labels(folder))


def _sensors(folder: Path) -> dict[str, Sensor]:
    """Calibrated sensors by token."""
    table = Table(folder, "sensor")
    kinds: dict[str, tuple[str, str]] = {}
    for token, row in table:
        table.once(token, kinds)
        kinds[token] = table.text(token, row, "channel"), table.text(token, row, "modality")
    table = Table(folder, "calibrated_sensor")
    sensors: dict[str, Sensor] = {}
    for token, row in table:
        table.once(token, sensors)
        channel, modality = table.resolve(token, row, "sensor_token", kinds)
        rotation = table.numbers(token, row, "rotation", 4)
        translation = table.numbers(token, row, "translation", 3)
        pose = se3(rotation, translation, f"{table.path}, row {token!r}")
        intrinsics = _intrinsics(table, token, row) if modality == "camera" else None
        sensors[token] = Sensor(channel, modality, pose, intrinsics)
    return sensors


def _intrinsics(table: Table, token: str, row: dict[str, Any]) -> Float64Array:
    rows = row.get("camera_intrinsic")
    if not isinstance(rows, list) or len(rows) != 3:
        raise table.error(token, "has no 3 x 3 matrix in 'camera_intrinsic'")
    lines = [table.numbers(token, {"camera_intrinsic": line}, "camera_intrinsic", 3) for line in rows]
    matrix = np.array(lines, dtype=np.float64)
    if not np.isfinite(matrix).all() or min(matrix[0, 0], matrix[1, 1]) <= 0 or lines[2] != [0, 0, 1]:
        raise table.error(token, f"has intrinsics {lines} that are those of no camera")
    return matrix


def _samples(folder: Path) -> tuple[dict[str, SceneReadings], dict[str, Sample]]:
    """Scenes by name, and samples by token."""
    table = Table(folder, "scene")
    by_token: dict[str, SceneReadings] = {}
    scenes: dict[str, SceneReadings] = {}
    for token, row in table:
        table.once(token, by_token)
        name = table.text(token, row, "name")
        if name in scenes:
            raise table.error(token, f"has the name of another scene, {name!r}")
        by_token[token] = scenes[name] = SceneReadings(name)
    table = Table(folder, "sample")
    samples: dict[str, Sample] = {}
    links: dict[str, tuple[int, Any, Any]] = {}
    for token, row in table:
        table.once(token, samples)
        samples[token] = Sample(token, table.resolve(token, row, "scene_token", by_token))
        links[token] = table.whole(token, row, "timestamp"), row.get("prev", ""), row.get("next", "")
    for token, (stamp, before, after) in links.items():
        _check_link(table, token, stamp, "prev", before, links, samples)
        _check_link(table, token, stamp, "next", after, links, samples)
    return scenes, samples


def _check_link(
    table: Table,
    token: str,
    stamp: int,
    name: str,
    target: object,
    links: dict[str, tuple[int, Any, Any]],
    samples: dict[str, Sample],
) -> None:
    """Refuse a link that leads nowhere, out of the scene or against time, as every circle of links must somewhere.

    Frames are ordered by time stamp and links never followed; a table whose links contradict its stamps is damaged.
    """
    if target == "":
        return
    if not isinstance(target, str) or target not in links:
        raise table.error(token, f"names {target!r} in {name!r}, which no table holds")
    ordered = links[target][0] < stamp if name == "prev" else links[target][0] > stamp
    if not ordered or samples[target].scene is not samples[token].scene:
        raise table.error(token, f"names {target!r} in {name!r}, which is of another scene or on the wrong side of it")


def _sample_data(folder: Path, sensors: dict[str, Sensor], samples: dict[str, Sample], sweeps: bool) -> dict[str, int]:
    """Hand every kept reading to its scene; returns which ego poses they need: token -> row."""
    table = Table(folder, "sample_data")
    pose_rows: dict[str, int] = {}
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    sweep_tokens: dict[str, None] = {}
    for token, row in table:
        sensor: Sensor = table.resolve(token, row, "calibrated_sensor_token", sensors)
        is_keyframe = row.get("is_key_frame")
        if type(is_keyframe) is not bool:
            raise table.error(token, "has no true or false in 'is_key_frame'")
        is_sweep = sensor.channel == LIDAR
        if not (is_sweep or sensor.modality == "camera") or not (is_keyframe or sweeps):
            continue
        pose_token = table.text(token, row, "ego_pose_token")
        # Equal values are kept once: nuScenes gives a reading and its pose one token, and images one size.
        pose_token = token if pose_token == token else pose_token
        size_px = (0, 0) if is_sweep else _size_px(table, token, row)
        reading = Reading(
            token=token,
            sample=table.resolve(token, row, "sample_token", samples),
            stamp_us=table.whole(token, row, "timestamp"),
            file=table.text(token, row, "filename"),
            pose=pose_rows.setdefault(pose_token, len(pose_rows)),
            sensor=sensor,
            is_keyframe=is_keyframe,
            size_px=sizes.setdefault(size_px, size_px),
        )
        if is_sweep:
            table.once(token, sweep_tokens)
            sweep_tokens[token] = None
            reading.sample.scene.sweeps.append(reading)
        else:
            reading.sample.scene.images.setdefault(sensor.channel, []).append(reading)
    return pose_rows


def _size_px(table: Table, token: str, row: dict[str, Any]) -> tuple[int, int]:
    width_px, height_px = table.whole(token, row, "width"), table.whole(token, row, "height")
    if not width_px or not height_px:
        raise table.error(token, "is an image of no size")
    return width_px, height_px


def _poses(folder: Path, pose_rows: dict[str, int]) -> Float64Array:
    table = Table(folder, "ego_pose")
    poses = np.full((len(pose_rows), 7), np.nan)
    found = np.zeros(len(pose_rows), np.bool_)
    for token, row in table:
        index = pose_rows.get(token)
        if index is not None:
            translation = table.numbers(token, row, "translation", 3)
            poses[index] = [*translation, *table.numbers(token, row, "rotation", 4)]
            if found[index]:
                raise table.error(token, "stands twice")
            found[index] = True
    good = np.isfinite(poses).all(axis=1)
    good[good] = np.abs(np.linalg.norm(poses[good, 3:], axis=1) - 1) <= TOLERANCE
    if not good.all():
        token = list(pose_rows)[int(np.argmin(good))]
        if not found[pose_rows[token]]:
            raise table.error(token, "is named by 'sample_data.json' but is not there")
        raise table.error(token, f"holds no pose: {poses[pose_rows[token]].tolist()}")
    return poses


def _labels(folder: Path) -> dict[str, str]:
    table = Table(folder, "lidarseg")
    if not table.path.exists():
        return {}
    labels: dict[str, str] = {}
    for token, row in table:
        sweep = table.text(token, row, "sample_data_token")
        table.once(sweep, labels)
        labels[sweep] = table.text(token, row, "filename")
    return labels
