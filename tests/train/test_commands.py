"""What `fit` does around the loop: tried out without a trace, begun, gone on with, held."""

from __future__ import annotations

import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from hilda_schema.errors import TrainError
from hilda_train.checkpoint import newest, open_checkpoint
from hilda_train.run import held

MINKUNET = "student={arch: minkunet, depth: 14, width: 0.125, voxels: {size: [2, 2, 2]}}"


def test_a_dry_run_prints_shapes_parameters_and_memory_and_writes_nothing(fit, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    assert fit(tmp_path / "run", MINKUNET, dry_run=True) == 0
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().err
    assert re.search(r"10 clips \(6 with both neighbours\) of 1 cache, student 0.18 M parameters, heads \d", said)
    assert re.search(r"one batch: [34] sweeps, \d+ points, \d+ voxels, \d+ pairs", said)
    assert said.count("x 8 channels") == 2
    for name in ("point", "global", "occupancy"):
        assert re.search(rf"{name}: \d+\.\d{{4}}\n", said)
    assert re.search(r"memory: \d+\.\d\d GB", said)


def test_resume_starts_a_run_that_has_not_started_and_ends_one_that_has_ended(fit, tmp_path, curve, capsys):
    run = tmp_path / "run"
    assert fit(run, "train.max_steps=2", go_on=True) == 0
    done = curve(run)
    assert [line["step"] for line in done] == [1, 2]
    files = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert fit(run, "train.max_steps=2", go_on=True) == 0
    assert "going on from step 2 of 2" in capsys.readouterr().err
    assert curve(run) == done
    assert {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()} == files


def test_a_damaged_newest_checkpoint_is_passed_over_aloud_and_the_run_ends_as_it_would_have(
    fit, tmp_path, curve, weights, require_same_bits, capsys
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = ("train.max_steps=5", "train.checkpoint_every=2")
    fit(whole, *options)
    fit(run, *options)
    path = run / "checkpoints" / "step-00000005" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    assert fit(run, *options, go_on=True) == 0
    said = capsys.readouterr().err
    assert "checkpoint of step 5 is passed over" in said
    assert "going on from step 4 of 5" in said
    assert curve(run) == curve(whole)
    require_same_bits(weights(run), weights(whole))


def test_a_run_without_a_checkpoint_that_can_be_trusted_is_not_begun_anew(fit, tmp_path):
    run = tmp_path / "run"
    fit(run, "train.max_steps=2")
    for path in (run / "checkpoints").rglob("model.safetensors"):
        path.write_bytes(b"")
    log = (run / "log.jsonl").read_bytes()
    with pytest.raises(TrainError, match="none of the 1 checkpoints"):
        fit(run, "train.max_steps=2", go_on=True)
    assert (run / "log.jsonl").read_bytes() == log


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(start_fit, tmp_path, curve):
    run, options = tmp_path / "run", ("train.max_steps=14", "train.checkpoint_every=100")
    first = start_fit(run, *options)
    first.until_step(run, 2)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = start_fit(run, *options, resume=True)
    assert second.wait() == 0, second.said
    assert [line["step"] for line in curve(run)] == list(range(1, 15))


def test_a_log_that_cannot_be_written_does_not_stop_the_run(fit, tmp_path, weights, require_same_bits, capsys):
    whole, run = tmp_path / "whole", tmp_path / "run"
    for out in (whole, run):
        fit(out, "train.max_steps=4", "train.checkpoint_every=2")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    (run / "log.jsonl").unlink()
    (run / "log.jsonl").mkdir()
    assert fit(run, "train.max_steps=4", "train.checkpoint_every=2", go_on=True) == 0
    said = capsys.readouterr().err
    assert "log.jsonl cannot be written (Is a directory); training goes on without it" in said
    assert "2 lines of" in said
    require_same_bits(weights(run), weights(whole))


def test_a_folder_that_another_process_trains_in_is_refused(fit, tmp_path, curve):
    run = tmp_path / "run"
    fit(run, "train.max_steps=2")
    with held(run), pytest.raises(TrainError, match="another process trains in"):
        fit(run, "train.max_steps=2", go_on=True)


def test_two_runs_of_one_recipe_have_the_same_checkpoints_byte_for_byte(fit, tmp_path):
    for name in ("a", "b"):
        fit(tmp_path / name, "train.max_steps=2", "train.ema=0.9")
    a, b = (tmp_path / name / "checkpoints" / "step-00000002" for name in ("a", "b"))
    assert (a / "SHA256SUMS").read_bytes() == (b / "SHA256SUMS").read_bytes()
    fit(tmp_path / "c", "train.max_steps=2", "train.ema=0.9", "train.seed=1")
    c = tmp_path / "c" / "checkpoints" / "step-00000002"
    assert (a / "SHA256SUMS").read_bytes() != (c / "SHA256SUMS").read_bytes()


def test_as_many_checkpoints_stay_as_the_config_keeps(fit, tmp_path):
    fit(tmp_path / "run", "train.max_steps=7", "train.checkpoint_every=2", "train.keep=2")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000006", "step-00000007"]
    assert newest(checkpoints, pytest.fail).step == 7
    assert open_checkpoint(checkpoints / "step-00000006").state["run"]["world"] == 1


def test_a_disk_that_is_full_at_the_second_checkpoint_stops_the_run_and_keeps_the_first(start_fit, tmp_path, curve):
    """A file size limit, set from outside once the first checkpoint is there."""
    import resource

    run, options = tmp_path / "run", ("train.max_steps=16", "train.checkpoint_every=4", "train.keep=3")
    process = start_fit(run, *options)
    process.until((run / "checkpoints" / "step-00000004").is_dir)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (9000, 9000))
    assert process.wait() == 1
    assert "Traceback" not in process.said
    assert re.search(r"error \[train\]: the checkpoint of step \d+ could not be written", process.said)
    assert "earlier checkpoints are untouched" in process.said
    again = start_fit(run, *options, resume=True)
    assert again.wait() == 0, again.said
    assert [line["step"] for line in curve(run)] == list(range(1, 17))


@pytest.mark.slow
def test_a_killed_loader_worker_is_named_and_the_run_can_go_on(start_fit, tmp_path, curve):
    run, options = tmp_path / "run", ("train.max_steps=2000", "train.checkpoint_every=3", "data.workers=1")
    process = start_fit(run, *options)
    process.until_step(run, 4)
    workers = [pid for pid in processes_of_session(process.pid) if depth_below(pid, process.pid) == 2]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait() == 1
    assert "Traceback" not in process.said
    assert "error [train]: a loader worker failed" in process.said
    assert newest(run / "checkpoints", pytest.fail).step >= 3


def stat_of(pid):
    """Parent and session of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1]), int(fields[3])


def processes_of_session(session):
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if stat_of(path.name)[1] == session:
                found.append(int(path.name))
    return found


def depth_below(pid, ancestor):
    """How many generations a process is below another: loader workers are started by a fork server."""
    depth = 0
    while pid not in {ancestor, 0, 1}:
        pid, depth = stat_of(pid)[0], depth + 1
    return depth
