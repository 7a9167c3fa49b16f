"""A request is small plain values: what travels to workers, and the drive that it names."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from hilda_cache.drives import DATASETS, reader_options
from hilda_cache.options import build_request, drive_spec
from hilda_cache.request import DriveSpec, ExtractRequest, open_drive_once
from hilda_schema.errors import DriveError, UsageError
from hilda_schema.manifest import DatasetInfo


def request(root: Path, **changes: object) -> ExtractRequest:
    fields = {
        "root": root, "dataset": "nuscenes", "teachers": ["org/vit", "b=org/other@abc"], "layers": None,
        "image_sizes": None, "norms": None, "options": None, "lidar": None, "scenes": None, "frames": ":",
        "cameras": None, "encoding": "grid", "precision": "auto", "missing": "fail", "part_frames": None,
        "no_points": False, "trust_remote_code": False, "allow_pickle": False,
    }  # fmt: skip
    return build_request(**(fields | changes))  # type: ignore[arg-type]


def test_a_request_is_a_small_value_that_travels(tmp_path: Path) -> None:
    asked = request(tmp_path, cameras="CAM_FRONT, CAM_BACK", encoding="point-int8", frames="2:")
    travelled = pickle.loads(pickle.dumps(asked))
    assert travelled == asked
    assert hash(travelled) == hash(asked)  # workers find by it what they have opened and loaded
    assert len(pickle.dumps(asked)) < 2000
    assert (asked.encoding, asked.dtype) == ("point", "int8")
    assert asked.selection.cameras == ("CAM_FRONT", "CAM_BACK")
    assert asked.selection.frame_slice() == slice(2, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "int8"}, "--encoding 'int8' is not known"),
        ({"precision": "float16"}, "--precision 'float16' is not known"),
        ({"missing": "zero"}, "--missing 'zero' is not known"),
        ({"cameras": ","}, "--cameras ',' names nothing"),
        ({"scenes": ""}, "--scenes '' names nothing"),
        ({"frames": "0-3"}, "is not a range"),
        ({"norms": ["both"]}, "--norm 'both' is not known"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        request(tmp_path, **changes)


def test_lidar_is_for_readers_with_a_choice() -> None:
    assert drive_spec(Path("/d"), "pandaset", [], "both").options == (("lidar", "both"),)
    assert drive_spec(Path("/d"), "pandaset", ["lidar=both"], "both").options == (("lidar", "both"),)
    with pytest.raises(UsageError, match="lidar is given twice: 'pandargt' and 'both'"):
        drive_spec(Path("/d"), "pandaset", ["lidar=both"], "pandargt")
    for dataset in DATASETS:
        if "lidar" not in reader_options(dataset):
            with pytest.raises(UsageError, match=f"{dataset} has no choice of LiDAR.*it is for pandaset"):
                drive_spec(Path("/d"), dataset, [], "both")
    with pytest.raises(UsageError, match="dataset 'waymo' is not known"):
        drive_spec(Path("/d"), "waymo", [], "both")


def test_an_option_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="version is given twice"):
        drive_spec(Path("/d"), "nuscenes", ["version=v1.0-mini", "version=v1.0-test"])


def test_the_drive_of_a_store_is_found_where_it_lies_now(tiny_drive: Path) -> None:
    dataset = DatasetInfo(name="nuscenes", version="v1.0-mini", options={"b": "2", "a": "1"}, cameras=("CAM_FRONT",))
    spec = DriveSpec.of_store(dataset, Path())
    assert spec == DriveSpec("nuscenes", str(Path.cwd()), (("a", "1"), ("b", "2")))
    drive = open_drive_once(DriveSpec("nuscenes", str(tiny_drive)))
    assert open_drive_once(DriveSpec("nuscenes", str(tiny_drive))) is drive
    with pytest.raises(DriveError, match="is not a folder"):
        open_drive_once(DriveSpec("nuscenes", str(tiny_drive / "nowhere")))
