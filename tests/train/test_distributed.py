"""Processes that train as one: the same curve as one process, and nobody left waiting where one fails."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe
from hilda_schema.writer import finish_store, start_store, write_part

CHECKS = Path(__file__).with_name("check_ranks.py")
STUDENTS = {
    "minkunet": "student={arch: minkunet, depth: 14, width: 0.125, voxels: {size: [2.0, 2.0, 2.0]}}",
    "waffleiron": "student.drop_path=0",  # each rank draws its own paths
}
PER_PART = {"point/cameras", "global/tokens"}  # counted in a rank's share of a step


def ranks_env(size=2):
    """What torchrun sets, for each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def require_same_curve(a, b):
    """Two curves agree to rounding, in every number."""
    assert [line.keys() for line in a] == [line.keys() for line in b]
    for one, other in zip(a, b, strict=True):
        for name in one.keys() - PER_PART:
            assert one[name] == pytest.approx(other[name], rel=2e-4, abs=2e-5), (one["step"], name)


def test_batch_norm_and_agreement_of_two_ranks(zygote):
    processes = [zygote.start(CHECKS, env["RANK"], **env) for env in ranks_env()]
    for process in processes:
        assert process.wait() == 0, process.said


def test_a_rank_that_does_not_answer_is_an_error(zygote):
    processes = [zygote.start(CHECKS, env["RANK"], "frozen", **env) for env in ranks_env()]
    assert processes[0].wait() == 1
    assert "TrainError: another process of this run has died or does not answer" in processes[0].said
    processes[1].wait()


@pytest.fixture(scope="module")
def partly_taught(tmp_path_factory):
    """A cache like the toy one that lacks the teacher "vit"."""
    path = tmp_path_factory.mktemp("partly") / "cache"
    recipe = tiny_recipe()
    recipe = recipe.model_copy(update={"teachers": recipe.teachers[1:]})
    parts = tiny_parts(recipe, scenes=1, frames=4, points=100, seed=5)
    start_store(path, recipe, planned_parts=len(parts))
    finish_store(path, recipe, [write_part(path, recipe, part) for part in parts])
    return path


@pytest.mark.parametrize("student", STUDENTS)
def test_two_processes_give_the_curve_of_one_with_the_same_global_batch(
    student, start_fit, fit, tmp_path, curve, partly_taught
):
    """With accumulation, frames without points or without neighbours, and frames that teach one of two ranks only."""
    options = [STUDENTS[student], "data.batch_size=4", "train.accumulate=2", "train.max_steps=3", "optim.lr=1e-3"]
    processes = [start_fit(tmp_path / "two", *options, more=["--cache", partly_taught], **env) for env in ranks_env()]
    assert fit(tmp_path / "one", *options, more=[partly_taught]) == 0
    for process in processes:
        assert process.wait() == 0, process.said
    require_same_curve(curve(tmp_path / "two"), curve(tmp_path / "one"))


@pytest.mark.slow
def test_torchrun_gives_the_curve_of_one_process(fit, tmp_path, curve, toy_cache, toy_recipe):
    options = [STUDENTS["minkunet"], "data.batch_size=4", "train.max_steps=6", "data.workers=1"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [word for each in options for word in ("--set", each)]
    command = ["-m", "hilda_train", "fit", str(toy_recipe), "--cache", str(toy_cache), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [*launch, *command, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert fit(tmp_path / "one", *options, "data.workers=0") == 0
    require_same_curve(curve(tmp_path / "two"), curve(tmp_path / "one"))


@pytest.mark.slow
def test_ranks_stop_together_and_resume_together(start_fit, tmp_path, curve, weights, require_same_bits):
    """A signal to one rank stops both after the same step; drop path and all, they go on in the same bits."""
    options = ("train.max_steps=12", "train.checkpoint_every=100", "data.batch_size=4")
    whole, run = tmp_path / "whole", tmp_path / "run"
    for process in [start_fit(whole, *options, **env) for env in ranks_env()]:
        assert process.wait() == 0, process.said
    first = [start_fit(run, *options, **env) for env in ranks_env()]
    first[1].until_step(run, 3)
    first[1].send(signal.SIGTERM)
    assert [process.wait() for process in first] == [143, 143], first[0].said
    assert 3 <= len(curve(run)) < 12
    for process in [start_fit(run, *options, resume=True, **env) for env in ranks_env()]:
        assert process.wait() == 0, process.said
    assert curve(run) == curve(whole)
    require_same_bits(weights(run), weights(whole))


def test_a_rank_that_dies_ends_the_others(start_fit, tmp_path, curve):
    run = tmp_path / "run"
    processes = [start_fit(run, "train.max_steps=200", "data.batch_size=4", **env) for env in ranks_env()]
    processes[0].until_step(run, 2)
    processes[1].send(signal.SIGKILL)
    assert processes[0].wait() == 1
    assert "Traceback" not in processes[0].said
    assert "error [train]: another process of this run" in processes[0].said


def test_ranks_that_see_different_stores_refuse_to_begin(start_fit, tmp_path):
    other = tiny_cache(tmp_path / "other", points=100, seed=9)
    first, second = ranks_env()
    processes = [start_fit(tmp_path / "run", **first), start_fit(tmp_path / "run", cache=other, **second)]
    assert [process.wait() for process in processes] == [1, 1], processes[0].said
    assert all("process 1 goes by another config or caches than process 0" in process.said for process in processes)
    assert not (tmp_path / "run").exists()


def test_a_rank_that_fails_ends_the_others(start_fit, tmp_path, toy_cache):
    """One process meets damage in its own copy of the cache, in the middle of the run; the other must not wait."""
    copy = tmp_path / "copy" / toy_cache.name
    shutil.copytree(toy_cache, copy)
    for file in copy.rglob("vit/layer_4/tokens/c.*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    first, second = ranks_env()
    options = ("train.max_steps=200", "data.batch_size=4")
    processes = [
        start_fit(tmp_path / "run", *options, **first),
        start_fit(tmp_path / "run", *options, cache=copy, **second),
    ]
    assert [process.wait() for process in processes] == [1, 1], processes[0].said
    assert "error [cache.corrupt]: " in processes[1].said
    assert "error [train]: another process of this run" in processes[0].said
    assert not any("Traceback" in process.said for process in processes)
