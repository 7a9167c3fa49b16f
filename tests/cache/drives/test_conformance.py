"""The check for a user's own reader: our readers pass it, and every way to be wrong is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilda_cache.drives import Drive, Frame, FrameInfo, PointsReport, open_drive
from hilda_cache.drives.conformance import check_drive
from hilda_schema.errors import DriveError
from hilda_schema.keys import Key

REAL = [
    ("argoverse2", "argoverse2", {}),
    ("kitti_raw", "kitti_raw", {}),
    ("nuscenes", "nuscenes_keyframe", {}),
    ("pandaset", "pandaset", {"lidar": "both"}),
    ("semantickitti", "semantickitti", {}),
]


@pytest.mark.parametrize(("dataset", "folder", "options"), REAL, ids=[dataset for dataset, _, _ in REAL])
def test_our_readers_conform_on_real_drives(
    sample_data: Path, dataset: str, folder: str, options: dict[str, str]
) -> None:
    root = sample_data / "data" / folder
    if not root.is_dir():
        pytest.skip(f"no {root}")
    assert check_drive(open_drive(dataset, root, **options), scenes=1, frames=2) == []


def test_the_synthetic_drive_conforms(tiny_drive: Path) -> None:
    assert check_drive(open_drive("nuscenes", tiny_drive)) == []


class Changed(Drive):
    """A drive whose frames, or points, are changed on the way."""

    def __init__(self, drive: Drive, info: Callable[[FrameInfo], FrameInfo], frame: Callable[[Frame], Frame]) -> None:
        self.drive, self._info, self._frame = drive, info, frame
        self.dataset, self.version, self.root = drive.dataset, drive.version, drive.root
        self.camera_names = drive.camera_names

    def scenes(self) -> tuple[str, ...]:
        return self.drive.scenes()

    def frames(self, scene: str) -> tuple[FrameInfo, ...]:
        originals = self.drive.frames(scene)
        changed = tuple(self._info(info) for info in originals)
        self.originals = list(zip(changed, originals, strict=True))
        return changed

    def read(self, info: FrameInfo) -> Frame:
        original = next(original for changed, original in self.originals if changed is info)
        return self._frame(replace(self.drive.read(original), info=info))


def scaled(pose: np.ndarray, factor: float) -> np.ndarray:
    changed = pose.copy()
    changed[:3, 3] *= factor
    return changed


def first_view(**changes: Any) -> Callable[[FrameInfo], FrameInfo]:
    return lambda info: replace(info, cameras=(replace(info.cameras[0], **changes), *info.cameras[1:]))


def all_views(change: Callable[[Any], Any]) -> Callable[[FrameInfo], FrameInfo]:
    return lambda info: replace(info, cameras=tuple(map(change, info.cameras)))


def points(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[Frame], Frame]:
    def change(frame: Frame) -> Frame:
        new = {name: how(getattr(frame.points, name)) for name, how in changes.items()}
        return replace(frame, points=replace(frame.points, **new))

    return change


def with_nan(xyz_m: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(xyz_m))[:, None] == 3, np.float32(np.nan), xyz_m)


def far(cam_SE3_ego: np.ndarray) -> np.ndarray:
    """A camera whose points all lie behind it."""
    moved = cam_SE3_ego.copy()
    moved[2, 3] = -1e4
    return moved


FLIPPED = np.diag([1.0, -1.0, 1.0, 1.0])
INFOS: dict[str, tuple[Callable[[FrameInfo], FrameInfo], str]] = {
    "drive": (lambda info: replace(info, key=Key("kitti", info.key.scene, info.key.frame)), "a key is the drive's"),
    "one key": (lambda info: replace(info, key=Key(info.key.drive, info.key.scene, "0")), "two frames have one key"),
    "time": (lambda info: replace(info, stamp_ns=-info.stamp_ns), "is not later than the frame before"),
    "millimetres": (lambda info: replace(info, world_SE3_ego=scaled(info.world_SE3_ego, 1e3)), "are poses metres"),
    "transposed": (lambda info: replace(info, world_SE3_ego=info.world_SE3_ego.T.copy()), "is it transposed"),
    "mirrored": (lambda info: replace(info, ego_SE3_lidar=FLIPPED), "not orthonormal and right-handed"),
    "float32": (lambda info: replace(info, ego_SE3_lidar=np.eye(4, dtype=np.float32)), "is not a (4, 4) float64"),
    "cameras' order": (lambda info: replace(info, cameras=info.cameras[::-1]), "not those of camera_names"),
    "camera's name": (first_view(name="FRONT"), "not those of camera_names"),
    "outside": (first_view(image_path=Path("/etc/hostname")), "not an absolute path below root"),
    "no file": (lambda info: replace(info, lidar_paths=()), "names no file"),
    "focal length": (first_view(intrinsics=np.diag([-1.0, 1.0, 1.0])), "positive focal lengths"),
    "distortion": (first_view(distortion=(0.1, 0.2)), "distortion has 2 coefficients"),
    "image size": (first_view(width_px=352, height_px=198), "the reader says 352 x 198"),
    "looks away": (all_views(lambda view: replace(view, cam_SE3_ego=far(view.cam_SE3_ego))), "no camera sees"),
}
FRAMES: dict[str, tuple[Callable[[Frame], Frame], str]] = {
    "not finite": (points(xyz_m=with_nan), "points.xyz_m has values that are not finite"),
    "float64": (points(xyz_m=lambda xyz_m: xyz_m.astype(np.float64)), "is float64"),
    "fewer": (points(intensity=lambda intensity: intensity[1:]), "points.intensity is float32"),
    "none": (points(**dict.fromkeys(("xyz_m", "intensity", "ring", "label"), lambda rows: rows[:0])), "has no point"),
    "count": (lambda frame: replace(frame, report=PointsReport(non_finite=-1)), "non_finite is negative"),
    "at random": (
        points(xyz_m=lambda xyz_m: (xyz_m + np.random.default_rng().normal(size=xyz_m.shape)).astype(np.float32)),
        "read twice, its points differ",
    ),
}


@pytest.mark.parametrize("name", INFOS)
def test_what_tables_say_wrongly_is_told(tiny_drive: Path, name: str) -> None:
    change, said = INFOS[name]
    found = check_drive(Changed(open_drive("nuscenes", tiny_drive), change, lambda frame: frame), scenes=1)
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize("name", FRAMES)
def test_what_files_say_wrongly_is_told(tiny_drive: Path, name: str) -> None:
    change, said = FRAMES[name]
    found = check_drive(Changed(open_drive("nuscenes", tiny_drive), lambda info: info, change), scenes=1, frames=1)
    assert any(said in problem for problem in found), found


def test_names_and_errors_are_told(tiny_drive: Path) -> None:
    class Odd(Changed):
        def scenes(self):
            return (*reversed(self.drive.scenes()),)

        def frames(self, scene):
            return self.drive.frames(scene) if scene in self.drive.scenes() else ()

        def read(self, info):
            raise DriveError(f"{info.key} is damaged")

    drive = Odd(open_drive("nuscenes", tiny_drive), lambda info: info, lambda frame: frame)
    drive.camera_names = (*drive.camera_names, drive.camera_names[0])
    found = "\n".join(check_drive(drive, scenes=1, frames=1))
    for said in ("not a sorted tuple", "not a tuple of different names", "cannot be read: ", "not UsageError"):
        assert said in found
