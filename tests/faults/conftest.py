"""What the fault tests share: a small drive, and a teacher that does as it is told while it looks at images."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilda_cache.extract import ExtractReport, extract
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.teachers.spec import TeacherSpec

# What it does beside computing is not in its code, which is a part of the recipe.
TOY = """
from pathlib import Path
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(0.1, 1, 24).reshape(8, 3, 1, 1))

    def forward(self, x):
        if len(x) > 1:  # not the probe
            exec((Path(__file__).parent / "do.txt").read_text(), {"x": x, "HERE": Path(__file__).parent})
        return {"grid": torch.nn.functional.conv2d(x[:, :, ::14, ::14], self.w)}

def make():
    return Net()
"""


def _tree(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _teacher(folder: Path, code: str) -> TeacherSpec:
    (folder / "toy.py").write_text(TOY)
    (folder / "do.txt").write_text(code)
    return TeacherSpec("toy", f"{folder / 'toy.py'}:make", ("-1",), (56, 112))


def _run(
    asked: ExtractRequest, store: Path, client: Any, on_part: Callable[[ExtractReport], None] = lambda report: None
) -> ExtractReport:
    return extract(asked, store, client, lambda recipe, report: None, on_part)


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """tree(folder): every file below it and its hash."""
    return _tree


@pytest.fixture(scope="session")
def run() -> Callable[..., ExtractReport]:
    """run(request, store, client, on_part=...): extract."""
    return _run


@pytest.fixture
def drive(tiny_drive: Path, tmp_path: Path) -> Path:
    """A copy of the tiny drive that a test may break: six frames in two scenes."""
    return Path(shutil.copytree(tiny_drive, tmp_path / "drive"))


@pytest.fixture
def request_of(drive: Path, tmp_path: Path) -> Callable[..., ExtractRequest]:
    """request_of("code"): one part a frame; the teacher runs the code whenever it sees the images `x` of a frame."""

    def make(code: str = "pass", root: Path = drive, **changes: Any) -> ExtractRequest:
        fields = {"precision": "float32", "part_frames": 1} | changes
        return ExtractRequest(DriveSpec("nuscenes", str(root)), (_teacher(tmp_path, code),), **fields)

    return make


@pytest.fixture(scope="session")
def undisturbed(tiny_drive: Path, dask_client: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of the store that the toy teacher makes of the tiny drive when nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    teacher = _teacher(folder, "pass")
    asked = ExtractRequest(DriveSpec("nuscenes", str(tiny_drive)), (teacher,), precision="float32", part_frames=1)
    assert _run(asked, folder / "store", dask_client).complete
    return _tree(folder / "store")
