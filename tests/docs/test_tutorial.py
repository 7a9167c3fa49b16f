"""The tutorial's commands, run from first to last on a small synthetic drive, which is a nuScenes tree."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# What makes a page's command small: a drive, a teacher and a student of the tests in the place of the real ones.
SMALL_STUDENT = (
    "student={depth: 14, width: 0.125, voxels: {size: [1.0, 1.0, 1.0]}}",
    "objectives.point.head={layers: 1}",
    "objectives.global_context.head={layers: 1}",
    "objectives.occupancy={cell_m: 3.2, history_channels: 4, base: 8, multipliers: [1, 2], blocks: 1}",
    "data.batch_size=1",
    "data.workers=0",
    "train={epochs: null, max_steps: 2}",
)
SHORTER = {
    "fit": [word for each in SMALL_STUDENT for word in ("--set", each)],
    "probe": ["--set", "probe.epochs=1", "--set", "probe.schedule.warmup=0"],
    "finetune": ["--set", "finetune.epochs=1", "--set", "finetune.schedule.warmup=0"],
}


def commands(page: Path) -> list[list[str]]:
    """Every command of a page, in order, as words."""
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hilda-")]


def test_the_tutorial_runs_from_first_to_last(tiny_drive: Path, tiny_vit: Path, tmp_path: Path) -> None:
    small = {
        "/data/nuscenes": str(tiny_drive),
        "version=v1.0-trainval": "version=v1.0-synthetic",
        "dinov2=facebook/dinov2-small": f"dinov2={tiny_vit}",
        "224x448": "56x112",
        'data.held_out=["scene-0061"]': 'data.held_out=["scene-0002"]',
    }
    found = commands(REPO / "docs" / "nuscenes.md")
    assert small.keys() <= {word for words in found for word in words}, "the page changed: change the test with it"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for words in found:
        program = Path(sys.executable).with_name(words[0])
        words = [str(program), *(small.get(word, word) for word in words[1:]), *SHORTER.get(words[1], [])]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    for name in ("random", "probe", "one-percent"):
        assert 0 <= json.loads((tmp_path / f"{name}.json").read_text())["miou"] <= 1
    assert json.loads((tmp_path / "weights" / "backbone.json").read_text())["target"] == "mmdet3d"
