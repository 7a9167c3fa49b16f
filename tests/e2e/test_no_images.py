"""Stage two touches no image: it trains where the drive is gone and nothing that could open an image is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hilda_cache.extract import extract
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema.testing import tiny_cache

ABSENT = (
    "PIL",
    "transformers",
    "timm",
    "dask",
    "distributed",
    "simplejpeg",
    "cv2",
    "imageio",
    "torchvision",
    "hilda_cache",
)
# Run by every Python that starts.
SITECUSTOMIZE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
FOUND = f"""
for name in {ABSENT!r}:
    try:
        __import__(name)
        print(name)
    except ModuleNotFoundError:
        pass
"""
RECIPE = """
extends: hilda
student: {depth: 14, width: 0.125, voxels: {size: [2.0, 2.0, 2.0]}}
objectives:
  point: {head: {layers: 2, hidden: 16}}
  global_context: {head: {layers: 2, hidden: 16}}
  occupancy: {range_m: 16.0, cell_m: 2.0, history_channels: 8, base: 8, multipliers: [1, 2], blocks: 1, steps: 100}
data: {batch_size: 2, workers: 0}
schedule: {kind: cosine, warmup: 1}
train: {max_steps: 4, precision: float32, log_every: 1}
"""


def toy_store(request, folder):
    """A store of a drive that never had an image."""
    return tiny_cache(folder / "cache"), ("data.gap_s=0.1", "data.intensity={toy: {mean: 0.5, std: 0.3}}")


def extracted_store(request, folder):
    """A store of a drive that was deleted after its extraction."""
    drive = shutil.copytree(request.getfixturevalue("tiny_drive"), folder / "drive")
    vit, client = (request.getfixturevalue(name) for name in ("tiny_vit", "dask_client"))
    teacher = TeacherSpec(name="vit", source=str(vit), layers=("-2", "-1"), image_size=(56, 112))
    asked = ExtractRequest(drive=DriveSpec("nuscenes", str(drive)), teachers=(teacher,), precision="float32")
    report = extract(asked, folder / "cache", client, lambda recipe, report: None, lambda report: None)
    assert report.complete
    shutil.rmtree(drive)
    return folder / "cache", ()


@pytest.mark.parametrize("make_store", [toy_store, pytest.param(extracted_store, marks=pytest.mark.slow)])
def test_fit_runs_without_the_drive_and_without_any_image_library(make_store, request, tmp_path):
    store, settings = make_store(request, tmp_path)
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (tmp_path / "small.yaml").write_text(RECIPE)
    env = os.environ | {"PYTHONPATH": str(tmp_path / "absent"), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", FOUND], env=env, capture_output=True, text=True, check=True)
    assert found.stdout == ""

    program = Path(sys.executable).with_name("hilda-train")
    command = ["fit", tmp_path / "small.yaml", "--cache", store, "--out", tmp_path / "run"]
    changes = [word for each in settings for word in ("--set", each)]
    done = subprocess.run([program, *command, *changes], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for name in ("point", "global", "occupancy"):
        assert any(line[name] > 0 for line in lines), name
