"""A real drive, a real teacher, the three objectives: every loss falls, and an interruption changes no bit."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from hilda_cache.extract import extract
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.teachers.spec import TeacherSpec
from hilda_train import commands

STEPS = 20
SETTINGS = (
    "student={arch: minkunet, depth: 14, width: 0.25, voxels: {size: [0.5, 0.5, 0.5]}}",
    "objectives.point.head={layers: 2, hidden: 64}",
    "objectives.global_context={weight: 1.0, head: {layers: 2, hidden: 64}}",
    "objectives.occupancy={range_m: 32.0, cell_m: 1.0, history_channels: 16, base: 16, multipliers: [1, 2], blocks: 1}",
    "data={batch_size: 2, workers: 0, gap_s: 0.1, max_points: 20000}",
    "optim.lr=0.005",
    "schedule.warmup=2",
    f"train={{max_steps: {STEPS}, precision: float32, checkpoint_every: {STEPS // 2}, log_every: 1}}",
)


def losses(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("loss", "point", "global", "occupancy")} for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_pandaset_lowers_each_loss_and_resumes_in_the_same_bits(sample_data, dask_client, tmp_path):
    code = sample_data / "weights" / "efficientvit-b0-cityscapes" / "efficientvit_b0.py"
    teacher = TeacherSpec(name="evit", source=f"{code}:teacher", layers=("stage3", "stage4"), image_size=(192, 384))
    drive = DriveSpec("pandaset", str(sample_data / "data" / "pandaset"))
    asked = ExtractRequest(drive=drive, teachers=(teacher,), precision="float32")
    assert extract(asked, tmp_path / "cache", dask_client, lambda recipe, report: None, lambda report: None).complete

    def fit(out, go_on=False):
        return commands.fit(
            "hilda", [str(tmp_path / "cache")], out, list(SETTINGS), go_on=go_on, dry_run=False, device="cpu"
        )

    mode = torch.get_deterministic_debug_mode()
    try:
        assert fit(tmp_path / "run") == 0
        found = losses(tmp_path / "run")
        for name in ("point", "global", "occupancy"):
            first, last = ([line[name] for line in part if line[name]] for part in (found[:5], found[-5:]))
            assert np.mean(last) < 0.9 * np.mean(first), name

        shutil.copytree(tmp_path / "run", tmp_path / "again")
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"step-{STEPS:08d}")
        torch.manual_seed(99)
        assert fit(tmp_path / "again", go_on=True) == 0
    finally:
        torch.set_deterministic_debug_mode(mode)
    assert losses(tmp_path / "again") == found
    sums = [tmp_path / run / "checkpoints" / f"step-{STEPS:08d}" / "SHA256SUMS" for run in ("run", "again")]
    assert sums[0].read_text() == sums[1].read_text()
