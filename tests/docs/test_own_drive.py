"""docs/own-drive.md, executed: the reader of the page reads the layout of the page, conforms, and is extracted from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.drives import open_drive
from hilda_cache.drives.conformance import check_drive
from hilda_cache.extract import extract
from hilda_cache.options import drive_spec
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema import open_cache
from hilda_schema.errors import DriveError, UsageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-drive.md"
TEACHER = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(0.1, 1, 12).reshape(4, 3, 1, 1))

    def forward(self, x):
        return {"grid": torch.nn.functional.conv2d(x[:, :, ::14, ::14], self.w)}
"""


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, blocks: list[str]) -> Path:
    """my_drive.py, a teacher, and data in the layout of the page: a straight road, one camera that looks ahead."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_drive.py").write_text(blocks[0])
    (folder / "net.py").write_text(TEACHER)
    rng = np.random.default_rng(0)
    for scene in ("a", "b"):
        for name in ("lidar", "front"):
            (folder / "data" / scene / name).mkdir(parents=True)
        frames = []
        for k in range(3):
            pose = np.eye(4)
            pose[0, 3] = 1.5 * k
            frames.append({"name": f"{k:03d}", "stamp_ns": 10**9 + k * 10**8, "world_SE3_ego": pose.tolist()})
            rows = np.c_[rng.uniform((2, -10, -2), (40, 10, 2), (200, 3)), rng.random(200)].astype(np.float32)
            rows[0, 1] = np.nan
            np.save(folder / "data" / scene / "lidar" / f"{k:03d}.npy", rows)
            pixels = rng.integers(0, 256, (56, 112, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "data" / scene / "front" / f"{k:03d}.jpg")
        ego_SE3_lidar = np.eye(4)
        ego_SE3_lidar[2, 3] = 1.8
        table = {
            "K": [[60, 0, 55.5], [0, 60, 27.5], [0, 0, 1]],
            "size_px": [112, 56],
            "cam_SE3_ego": [[0, -1, 0, 0], [0, 0, -1, 1.5], [1, 0, 0, -1], [0, 0, 0, 1]],
            "ego_SE3_lidar": ego_SE3_lidar.tolist(),
            "frames": frames[::-1],
        }
        (folder / "data" / scene / "scene.json").write_text(json.dumps(table))
    return folder


def test_the_pages_reader_conforms(folder: Path, blocks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


@pytest.fixture(scope="module")
def store(folder: Path, dask_client: Any) -> Path:
    spec = drive_spec(folder / "data", f"{folder}/my_drive.py:MyDrive", [])
    teacher = TeacherSpec(name="net", source=f"{folder}/net.py:Net", layers=("-1",), image_size=(56, 112))
    asked = ExtractRequest(spec, (teacher,), precision="float32")
    report = extract(asked, folder / "store", dask_client, lambda recipe, report: None, lambda report: None)
    assert report.complete, report.failures
    return folder / "store"


def test_a_cache_is_extracted_from_it(store: Path, folder: Path) -> None:
    cache = open_cache(store)
    assert [str(frame.key) for frame in cache] == [f"my_drive/{scene}/{k:03d}" for scene in "ab" for k in range(3)]
    assert all(len(frame.points) == 199 and len(frame.pairs) > 50 for frame in cache)
    (said,) = cache.manifest.recipe.dataset.options.items()
    assert said[0] == "reader"
    assert re.fullmatch(r"my_drive\.py:MyDrive code-[0-9a-f]{16}", said[1])
    assert str(folder) not in (store / "manifest.json").read_text()


def test_the_drive_is_found_again_when_it_is_named(store: Path, folder: Path) -> None:
    reader, teacher = f"{folder}/my_drive.py:MyDrive", f"{folder}/net.py:Net"
    asked = ["verify", str(store), "--deep", "2", "--root", str(folder / "data"), "--teacher", teacher]
    done = CliRunner().invoke(app, [*asked, "--dataset", reader])
    assert done.exit_code == 0, done.output
    assert done.output.count("cosine >=") == 2
    dataset = open_cache(store).manifest.recipe.dataset
    with pytest.raises(UsageError, match=r"a reader of its own, my_drive\.py:MyDrive code-") as error:
        DriveSpec.of_store(dataset, folder / "data")
    assert "--dataset" in error.value.remedy
    with pytest.raises(UsageError, match="was made from toy"):
        DriveSpec.of_store(dataset.model_copy(update={"name": "toy", "options": {}}), folder, reader)


def test_a_changed_reader_is_another_recipe(folder: Path, tmp_path: Path) -> None:
    code = (folder / "my_drive.py").read_text()
    (tmp_path / "my_drive.py").write_text(code + "# changed\n")
    recorded = [
        DriveSpec(f"{place}/my_drive.py:MyDrive", str(folder / "data")).recorded_options()
        for place in (folder, tmp_path)
    ]
    assert recorded[0] != recorded[1]


def test_options_and_mistakes_of_a_reader(folder: Path, tmp_path: Path) -> None:
    code = (folder / "my_drive.py").read_text()
    (tmp_path / "mine.py").write_text(
        code
        + "\ndef with_gain(root, gain='1'):\n    drive = MyDrive(root)\n    drive.version = gain\n    return drive\n"
        "def broken(root):\n    return 1 / 0\n"
        "def another(root):\n    return 'no drive'\n"
        "def borrowed(root):\n    drive = MyDrive(root)\n    drive.dataset = 'nuscenes'\n    return drive\n"
    )
    data = folder / "data"
    assert open_drive(f"{tmp_path}/mine.py:with_gain", data, gain="2").version == "2"
    with pytest.raises(UsageError, match="has no option 'gian'"):
        open_drive(f"{tmp_path}/mine.py:with_gain", data, gian="2")
    for name, said in (
        ("broken", "ZeroDivisionError: division by zero"),
        ("another", "returned str, not a Drive"),
        ("borrowed", "calls its dataset 'nuscenes'"),
        ("nothing", "there is no function 'nothing'"),
    ):
        with pytest.raises(DriveError, match=re.escape(said)):
            open_drive(f"{tmp_path}/mine.py:{name}", data)
    with pytest.raises(UsageError, match="there is no file"):
        open_drive(f"{tmp_path}/absent.py:MyDrive", data)
    with pytest.raises(UsageError, match="is not known") as error:
        open_drive("kitty", data)
    assert "file.py:factory" in error.value.remedy
    assert check_drive(open_drive(f"{tmp_path}/mine.py:with_gain", data)) == []
