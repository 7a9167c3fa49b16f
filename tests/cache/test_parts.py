"""Cutting a drive into parts, and what a part's id depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_cache.drives import CameraView, Drive, Frame, FrameInfo
from hilda_cache.parts import (
    Sources,
    calibration_sha256,
    default_part_frames,
    file_sha256,
    hash_sources,
    part_id,
    plan_parts,
    select_cameras,
    select_scenes,
)
from hilda_cache.request import Selection
from hilda_schema.errors import UsageError
from hilda_schema.keys import Key
from hilda_schema.manifest import (
    DatasetInfo,
    EncodingInfo,
    LayerInfo,
    ProjectionInfo,
    Recipe,
    SelectionInfo,
    TeacherInfo,
)


def view(root: Path, name: str = "front") -> CameraView:
    return CameraView(name, root / f"{name}.jpg", 5, np.eye(3), np.eye(4), np.eye(4), 64, 48)


def frame(root: Path, number: int) -> FrameInfo:
    key = Key("toy", "s", f"{number:03}")
    return FrameInfo(key, number, (root / f"{number}.bin",), np.eye(4), np.eye(4), (view(root), view(root, "back")))


class ToyDrive(Drive):
    """Scenes of given lengths, without any file behind them."""

    dataset, version, camera_names = "toy", "", ("front", "back")

    def __init__(self, root: Path, lengths: dict[str, int]) -> None:
        self.root, self.lengths = root, lengths

    def scenes(self) -> tuple[str, ...]:
        return tuple(sorted(self.lengths))

    def frames(self, scene: str) -> tuple[FrameInfo, ...]:
        return tuple(frame(self.root, number) for number in range(self.lengths[scene]))

    def read(self, info: FrameInfo) -> Frame:
        raise NotImplementedError


def teacher(**changes: object) -> TeacherInfo:
    fields: dict[str, object] = {
        "name": "t", "source": "s", "architecture": "a", "weights_sha256": "0" * 64, "norm": "pre",
        "image_height_px": 28, "image_width_px": 56, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "resize": "r",
        "precision": "float32", "precision_reason": "asked for",
        "layers": (LayerInfo(name="1", channels=384, height=16, width=32),), "global_width": 384,
    }  # fmt: skip
    return TeacherInfo(**(fields | changes))  # type: ignore[arg-type]


def recipe(**changes: object) -> Recipe:
    fields: dict[str, object] = {
        "dataset": DatasetInfo(name="toy", cameras=("front", "back")),
        "selection": SelectionInfo(),
        "teachers": (teacher(),),
        "projection": ProjectionInfo(occlusion="o", ground="g"),
        "encoding": EncodingInfo(),
        "part_frames": 4,
    }
    return Recipe(**(fields | changes))  # type: ignore[arg-type]


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 40), max_size=4), st.integers(1, 12))
def test_parts_cover_every_frame_once_and_evenly(lengths: dict[str, int], size: int) -> None:
    drive = ToyDrive(Path("/toy"), lengths)
    if not any(lengths.values()):
        with pytest.raises(UsageError, match="holds no frame"):
            plan_parts(drive, Selection(), size)
        return
    plans = plan_parts(drive, Selection(), size)
    covered = [(plan.scene, k) for plan in plans for k in range(plan.start, plan.stop)]
    assert covered == [(scene, k) for scene in sorted(lengths) for k in range(lengths[scene])]
    for scene, length in lengths.items():
        sizes = [plan.stop - plan.start for plan in plans if plan.scene == scene]
        assert len(sizes) == -(-length // size)
        assert not sizes or max(sizes) - min(sizes) <= 1


def test_selection_takes_positions_within_each_scene() -> None:
    drive = ToyDrive(Path("/toy"), {"a": 5, "b": 3})
    plans = plan_parts(drive, Selection(frames="-2:"), 10)
    assert [(plan.scene, plan.start, plan.stop) for plan in plans] == [("a", 3, 5), ("b", 1, 3)]


def test_unknown_names_name_the_nearest() -> None:
    drive = ToyDrive(Path("/toy"), {"scene-0061": 5})
    with pytest.raises(UsageError, match=r"'fornt' is not in this drive.*did you mean front"):
        select_cameras(drive, Selection(cameras=("fornt",)))
    with pytest.raises(UsageError, match="did you mean scene-0061"):
        select_scenes(drive, Selection(scenes=("scene-0016",)))
    assert select_cameras(drive, Selection(cameras=("back", "front"))) == ("front", "back")  # the drive's own order


def test_part_size_bounds_memory() -> None:
    layers = tuple(LayerInfo(name=str(k), channels=1024, height=16, width=32) for k in range(4))
    big = teacher(layers=layers)  # 6 cameras of ViT-L, four layers: 25 MB a frame in float16
    assert default_part_frames([big], 6) == 256 * 2**20 // (4 * 6 * 16 * 32 * 1024 * 2)
    assert default_part_frames([teacher()], 1) == 64
    assert default_part_frames([], 6) == 64


def test_id_changes_with_each_thing_that_the_bytes_depend_on(tmp_path: Path) -> None:
    infos = [frame(tmp_path, 0), frame(tmp_path, 1)]
    sources = Sources({"0.bin": "aa", "front.jpg": "bb"}, ())
    calibration = calibration_sha256(infos, ("front", "back"))
    ids = {
        part_id(recipe(), infos, 0, sources, calibration),
        part_id(recipe(), infos[:1], 0, sources, calibration),
        part_id(recipe(), infos, 1, sources, calibration),
        part_id(recipe(), infos, 0, Sources({"0.bin": "aa", "front.jpg": "cc"}, ()), calibration),
        part_id(recipe(), infos, 0, Sources({"0.bin": "aa"}, ("front.jpg",)), calibration),
        part_id(recipe(), infos, 0, sources, calibration_sha256(infos, ("front",))),
        part_id(recipe(teachers=(teacher(weights_sha256="1" * 64),)), infos, 0, sources, calibration),
        part_id(recipe(teachers=(teacher(precision="bfloat16"),)), infos, 0, sources, calibration),
        part_id(recipe(encoding=EncodingInfo(dtype="int8")), infos, 0, sources, calibration),
        part_id(recipe(store_points=False), infos, 0, sources, calibration),
    }
    assert len(ids) == 10


def test_id_does_not_depend_on_which_other_parts_were_asked_for(tmp_path: Path) -> None:
    infos, sources = [frame(tmp_path, 0)], Sources({}, ())
    other = recipe(selection=SelectionInfo(scenes=("s",), frames="0:1"))
    assert part_id(recipe(), infos, 0, sources, "c") == part_id(other, infos, 0, sources, "c")


@pytest.mark.parametrize(
    "change",
    [
        {"intrinsics": np.eye(3) * 1.0000000001},
        {"stamp_ns": 6},
        {"width_px": 65},
        {"distortion": (0.1,)},
        {"cam_SE3_ego": np.diag([1, 1, 1, 1.0]) + np.eye(4, k=3) * 1e-12},
    ],
)
def test_calibration_hash_sees_the_smallest_change(tmp_path: Path, change: dict[str, object]) -> None:
    info = frame(tmp_path, 0)
    moved = replace(info, cameras=(replace(info.cameras[0], **change), info.cameras[1]))
    assert calibration_sha256([info], ("front",)) != calibration_sha256([moved], ("front",))
    assert calibration_sha256([info], ("back",)) == calibration_sha256([moved], ("back",))


def test_sources_are_hashed_by_content_and_absences_named(tmp_path: Path) -> None:
    (tmp_path / "0.bin").write_bytes(b"points")
    (tmp_path / "front.jpg").write_bytes(b"picture")
    drive = ToyDrive(tmp_path, {"s": 1})
    sources = hash_sources(drive, drive.frames("s"), ("front", "back"))
    assert sources.missing == ("back.jpg",)
    assert sources.sha256.keys() == {"0.bin", "front.jpg"}
    before = dict(sources.sha256)
    (tmp_path / "front.jpg").touch()  # another time, the same bytes
    assert hash_sources(drive, drive.frames("s"), ("front", "back")).sha256 == before
    (tmp_path / "front.jpg").write_bytes(b"pictura")
    assert hash_sources(drive, drive.frames("s"), ("front", "back")).sha256["front.jpg"] != before["front.jpg"]
    assert file_sha256(tmp_path / "nothing") is None
