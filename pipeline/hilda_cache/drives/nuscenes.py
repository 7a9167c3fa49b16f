"""nuScenes v1.0 (Motional), and everything written in its layout.

    <root>/v1.0-trainval/{scene, sample, sample_data, ego_pose, calibrated_sensor, sensor, ...}.json
    <root>/samples/LIDAR_TOP/*.pcd.bin, <root>/samples/CAM_FRONT/*.jpg, ...       keyframes, two a second
    <root>/sweeps/...                                                             what lies between them
    <root>/lidarseg/v1.0-trainval/<token>_lidarseg.bin                            for some versions

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020; Fong et al., "Panoptic nuScenes",
RA-L 2022 for the labels. Works on partial downloads: tables that are not needed (log, map, boxes) may be missing. All
scenes of the tables are listed, whether their sensor files are on the disk or not; asking for the frames of a scene
without a single sweep on the disk says which scenes are there.

Frames of reference. lidar is LIDAR_TOP's own: x to the right, y forward, z up. ego is the middle of the rear axle,
x forward. Every sensor file has an ego pose at its own time stamp, which is used as published; sweeps are published
with the motion inside the sweep already compensated.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.files import (
    MAX_SWEEP_BYTES,
    check_range,
    contained,
    drop_non_finite,
    naming_frame,
    read_bytes,
    read_float32_rows,
)
from hilda_cache.drives.frame import Annotation, CameraView, Drive, Float64Array, Frame, FrameInfo, Points, PointsReport
from hilda_cache.drives.nuscenes_boxes import BoxTable
from hilda_cache.drives.nuscenes_tables import Index, Reading, SceneReadings, load_index
from hilda_cache.drives.scenes import unknown_scene
from hilda_cache.drives.transforms import inverse_se3, se3
from hilda_schema.errors import DriveError, MissingSensor, UsageError
from hilda_schema.keys import Key

MAX_IMAGE_OFFSET_US = 100_000
"""An image further than this from a sweep between keyframes shows another moment (cameras take 12 a second)."""

_CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
_COLUMNS = 5  # x, y, z [m], intensity 0 to 255, ring
_DAMAGED = "the file is damaged or incomplete: download it again"
_TABLES_DAMAGED = "the tables are damaged: download the metadata again"


class NuScenes(Drive):
    """nuScenes; see the module for the layout and the frames of reference.

    A frame's name is its sweep's `sample_data` token. Intensity is the publisher's, 0 to 255; labels are the 32
    classes of nuScenes-lidarseg where `lidarseg.json` names a file for the sweep.

    Args:
        root: folder of the tables' folder, `samples`, `sweeps`.
        version: the tables' folder; may be left out where there is only one `v1.0-*`.
        sweeps: "" for keyframes alone; "true" for all sweeps; N for the keyframes and every N-th sweep after each.
            A keyframe has the images of its sample. A sweep in between has each camera's image that is nearest in
            time, keyframe or not, if it is nearer than `MAX_IMAGE_OFFSET_US`.

    Raises:
        UsageError: the version is not there or must be chosen; `sweeps` is none of the above.
        DriveError: a table is missing or broken; names the table and the row.
    """

    dataset = "nuscenes"
    OPTIONS: ClassVar[tuple[str, ...]] = ("sweeps", "version")

    def __init__(self, root: Path, version: str = "", sweeps: str = "") -> None:
        self.root = root
        self.version = _version(root, version)
        self.every = _every(sweeps)
        self._index: Index = load_index(contained(root, self.version), sweeps=self.every > 0)
        channels = {channel for scene in self._index.scenes.values() for channel in scene.images}
        others = sorted(channels.difference(_CAMERAS))
        self.camera_names = (*(name for name in _CAMERAS if name in channels), *others)
        self._latest: tuple[str, tuple[FrameInfo, ...]] = ("", ())
        self._boxes: BoxTable | None = None

    def scenes(self) -> tuple[str, ...]:
        """Names of all scenes in the tables, sorted; their sensor files need not be on the disk."""
        return tuple(sorted(self._index.scenes))

    def frames(self, scene: str) -> tuple[FrameInfo, ...]:
        """The scene's frames in time order.

        Raises:
            UsageError: no such scene; names the nearest.
            MissingSensor: not one of the scene's sweeps is on the disk.
            DriveError: the scene has no sweep, two at one time, or a file name that leaves the root.
        """
        if scene not in self._index.scenes:
            raise unknown_scene(scene, self._index.scenes)
        if self._latest[0] != scene:
            self._latest = (scene, self._frames(self._index.scenes[scene]))
        return self._latest[1]

    def read(self, info: FrameInfo) -> Frame:
        """Read the frame's points and labels; points with a non-finite value are dropped and counted."""
        with naming_frame(info.key):
            path, *labels = info.lidar_paths
            rows = read_float32_rows(path, _COLUMNS)
            points = Points(
                xyz_m=rows[:, :3],
                intensity=rows[:, 3],
                ring=_rings(rows, path),
                label=_label(labels[0], len(rows)) if labels else None,
            )
            kept, dropped = drop_non_finite(points)
            check_range(kept.xyz_m, path)
            return Frame(info, kept, PointsReport(non_finite=dropped))

    def annotations(self, scene: str) -> dict[str, Annotation]:
        """Boxes of the scene's keyframes; the tables of all boxes are read once."""
        frames = {info.key.frame: info for info in self.frames(scene)}
        if self._boxes is None:
            keyframes = (sweep for each in self._index.scenes.values() for sweep in each.sweeps if sweep.is_keyframe)
            self._boxes = BoxTable(contained(self.root, self.version), [sweep.sample.token for sweep in keyframes])
        return {
            sweep.token: self._boxes.of_sample(sweep.sample.token, inverse_se3(frames[sweep.token].world_SE3_lidar))
            for sweep in self._index.scenes[scene].sweeps
            if sweep.is_keyframe
        }

    def _frames(self, scene: SceneReadings) -> tuple[FrameInfo, ...]:
        sweeps = _thinned(scene.sweeps, self.every)
        if not sweeps:
            raise DriveError(
                f"{self.version}: scene {scene.name!r} has no LIDAR_TOP row in 'sample_data.json'", _TABLES_DAMAGED
            )
        for before, after in pairwise(sweeps):
            if before.stamp_us == after.stamp_us:
                raise DriveError(
                    f"{self.version}: sweeps {before.token!r} and {after.token!r} of 'sample_data.json' have one "
                    "time stamp",
                    _TABLES_DAMAGED,
                )
        self._check_present(scene, sweeps)
        images = _Images(scene)
        return tuple(self._info(scene.name, sweep, images) for sweep in sweeps)

    def _info(self, scene: str, sweep: Reading, images: _Images) -> FrameInfo:
        key = Key(self.dataset, scene, sweep.token)
        with naming_frame(key):
            files = [sweep.file]
            if sweep.token in self._index.labels:
                files.append(self._index.labels[sweep.token])
            views = (images.beside(sweep, channel) for channel in self.camera_names)
            return FrameInfo(
                key=key,
                stamp_ns=sweep.stamp_us * 1000,
                lidar_paths=tuple(contained(self.root, file) for file in files),
                ego_SE3_lidar=sweep.sensor.ego_SE3_sensor,
                world_SE3_ego=self._pose(sweep),
                cameras=tuple(self._view(image) for image in views if image),
            )

    def _view(self, image: Reading) -> CameraView:
        assert image.sensor.intrinsics is not None  # cameras always have them: `load_index` sees to it
        return CameraView(
            name=image.sensor.channel,
            image_path=contained(self.root, image.file),
            stamp_ns=image.stamp_us * 1000,
            intrinsics=image.sensor.intrinsics,
            cam_SE3_ego=inverse_se3(image.sensor.ego_SE3_sensor),
            world_SE3_ego=self._pose(image),
            width_px=image.size_px[0],
            height_px=image.size_px[1],
        )

    def _pose(self, reading: Reading) -> Float64Array:
        pose = self._index.poses[reading.pose]
        return se3(pose[3:], pose[:3])

    def _check_present(self, scene: SceneReadings, sweeps: list[Reading]) -> None:
        if any(contained(self.root, sweep.file).exists() for sweep in sweeps):
            return
        present = [
            other.name
            for other in self._index.scenes.values()
            if any(contained(self.root, sweep.file).exists() for sweep in other.sweeps[:1])
        ]
        listed = ", ".join(sorted(present)[:5]) + (", ..." if len(present) > 5 else "")
        raise MissingSensor(
            f"scene {scene.name!r} is in the tables of {self.version}, but none of its {len(sweeps)} sweeps is on "
            f"the disk, such as {sweeps[0].file}",
            f"fetch the part of the dataset that holds it, or choose from the {len(present)} scenes that are there"
            + (f": {listed}" if present else ""),
        )


class _Images:
    """Finds the images that belong to a sweep of a scene."""

    def __init__(self, scene: SceneReadings) -> None:
        self._by_channel = scene.images
        self._stamps_us = {channel: [image.stamp_us for image in row] for channel, row in scene.images.items()}
        self._of_keyframe: dict[tuple[str, str], Reading] = {}
        for channel, row in scene.images.items():
            for image in row:
                place = (image.sample.token, channel)
                if image.is_keyframe and (other := self._of_keyframe.setdefault(place, image)) is not image:
                    raise DriveError(
                        f"'sample_data.json': {other.token!r} and {image.token!r} are both the {channel} image of "
                        f"sample {image.sample.token!r}",
                        _TABLES_DAMAGED,
                    )

    def beside(self, sweep: Reading, channel: str) -> Reading | None:
        """The camera's image for a sweep; None where there is none."""
        if sweep.is_keyframe:
            return self._of_keyframe.get((sweep.sample.token, channel))
        stamps = self._stamps_us.get(channel, [])
        after = bisect_left(stamps, sweep.stamp_us)
        near = [k for k in (after - 1, after) if 0 <= k < len(stamps)]
        nearest = min(near, key=lambda k: abs(stamps[k] - sweep.stamp_us), default=None)
        if nearest is None or abs(stamps[nearest] - sweep.stamp_us) > MAX_IMAGE_OFFSET_US:
            return None
        return self._by_channel[channel][nearest]


def _version(root: Path, version: str) -> str:
    found = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    if version:
        if version not in found:
            raise UsageError(f"{root} has no tables {version!r}", f"it has {', '.join(found) or 'no v1.0-* folder'}")
        return version
    if not found:
        raise DriveError(f"{root} holds no folder v1.0-*", "give the folder that holds nuScenes' tables and samples")
    if len(found) > 1:
        raise UsageError(f"{root} holds several versions", f"say version={' or version='.join(found)}")
    return found[0]


def _every(sweeps: str) -> int:
    """0 for keyframes alone, N for every N-th sweep in between."""
    if sweeps in ("", "true"):
        return int(sweeps == "true")
    if not sweeps.isascii() or not sweeps.isdigit() or int(sweeps[:6]) == 0:
        raise UsageError(f"sweeps={sweeps!r} is not understood", "leave it out, or say sweeps=true or sweeps=N")
    return int(sweeps[:6])


def _thinned(sweeps: list[Reading], every: int) -> list[Reading]:
    """Keyframes, and every N-th sweep after each of them; all where N is 1, none in between where it is 0."""
    kept, since = [], 0
    for sweep in sweeps:
        since = 0 if sweep.is_keyframe else since + 1
        if sweep.is_keyframe or (every and since % every == 0):
            kept.append(sweep)
    return kept


def _rings(rows: NDArray[np.float32], path: Path) -> NDArray[np.uint8]:
    ring = rows[:, 4]
    sound = (ring >= 0) & (ring <= 255) & (ring == np.floor(ring))
    bad = ~sound & np.isfinite(rows[:, :4]).all(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise DriveError(f"{path}: point {row} has ring {ring[row]}, not 0 to 255: no LiDAR file of nuScenes", _DAMAGED)
    return np.where(sound, ring, 0).astype(np.uint8)


def _label(path: Path, points: int) -> NDArray[np.uint16]:
    data = read_bytes(path, MAX_SWEEP_BYTES)
    if len(data) != points:
        raise DriveError(f"{path} labels {len(data)} points of a sweep of {points}", _DAMAGED)
    return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)
