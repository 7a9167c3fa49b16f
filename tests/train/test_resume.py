"""A run that is stopped, killed and resumed ends in the same bits as one that is not."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from hilda_schema.errors import TrainError
from hilda_train.train_state import capture_random, seed_random


def test_a_run_killed_and_stopped_and_resumed_twice_ends_in_the_same_bits(
    start_fit, fit, tmp_path, curve, weights, require_same_bits
):
    """Killed in the middle of an epoch, resumed, stopped by SIGTERM, resumed; with accumulation and an average."""
    options = ("train.max_steps=16", "train.checkpoint_every=3", "train.accumulate=2", "train.ema=0.9")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert fit(whole, *options) == 0

    first = start_fit(run, *options)
    first.until_step(run, 4)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL

    second = start_fit(run, *options, resume=True)
    second.until_step(run, 7)
    second.send(signal.SIGTERM)
    assert second.wait() == 143, second.said
    assert "going on from step" in second.said
    assert "and --resume" in second.said

    third = start_fit(run, *options, resume=True)
    assert third.wait() == 0, third.said
    assert [line["step"] for line in curve(run)] == list(range(1, 17))
    assert curve(run) == curve(whole)
    require_same_bits(weights(run), weights(whole))


def test_ctrl_c_with_loader_workers_saves_and_the_resumed_run_ends_in_the_bits_of_one_without_workers(
    start_fit, fit, tmp_path, curve, weights, require_same_bits
):
    """Ctrl-C on a terminal reaches the workers too."""
    options = ("train.max_steps=24", "train.checkpoint_every=100")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert fit(whole, *options) == 0

    first = start_fit(run, *options, "data.workers=2")
    first.until_step(run, 3)
    first.send(signal.SIGINT, group=True)
    assert first.wait() == 130, first.said
    stopped = len(curve(run))
    assert 3 <= stopped < 24

    second = start_fit(run, *options, "data.workers=2", resume=True)
    assert second.wait() == 0, second.said
    assert f"going on from step {stopped} of 24" in second.said
    assert curve(run) == curve(whole)
    require_same_bits(weights(run), weights(whole))


def back_to(step, run, copy):
    """A copy of a run that has not gone beyond a checkpoint."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return copy / "checkpoints" / f"step-{step:08d}"


def seal(checkpoint):
    """Make the checksums of a changed checkpoint right again."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (checkpoint / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(
    "options",
    [
        ("student={arch: minkunet, depth: 14, width: 0.125, voxels: {size: [2, 2, 2], reduction: random}}",),
        ("optim={kind: sgd, lr: 0.1}", "train.precision=bfloat16", "data.augment.dropout=0.5"),
        ("optim.clip_norm=0.1", "objectives.relational={cross_weight: 1, intra_weight: 1, pairs: 16}"),
        ("objectives.occupancy={kind: also, queries: 30}", "objectives.contrastive={weight: 1, pairs: 16}"),
    ],
    ids=["minkunet", "sgd-bfloat16", "clipped-relational", "also-contrastive"],
)
def test_every_objective_and_optimiser_resumes_in_the_same_bits(
    options, fit, tmp_path, curve, weights, require_same_bits
):
    """Two steps, in the middle of an epoch, then two more."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    options = ("train.max_steps=4", "train.checkpoint_every=2", *options)
    assert fit(whole, *options) == 0
    back_to(2, whole, run)
    seed_random(99)  # a new process starts with other generators
    assert fit(run, *options, go_on=True) == 0
    assert curve(run) == curve(whole)
    require_same_bits(weights(run), weights(whole))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, toy_cache, toy_recipe):
    """Six steps at a constant rate, with drop path and an average; a checkpoint after three."""
    from hilda_train import commands

    out = tmp_path_factory.mktemp("ablation") / "whole"
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    options = ["schedule={kind: constant}", "train.ema=0.5"]
    commands.fit(str(toy_recipe), [str(toy_cache)], out, options, go_on=False, dry_run=False, device="cpu")
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)
    return out


def nothing_lost(checkpoint):
    return checkpoint


def without_random(checkpoint):
    """As if the generators had not been saved: they are those of another process."""
    before = capture_random()
    seed_random(99)
    save_file(dict(capture_random().tensors), checkpoint / "random-0.safetensors")
    torch.set_rng_state(before.tensors["torch"])
    return checkpoint


def without_optimizer(checkpoint):
    """As if the optimiser had started anew."""
    path = checkpoint / "optimizer.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}, path)
    return checkpoint


def without_average(checkpoint):
    """As if the average had started anew from the weights."""
    save_file(load_file(checkpoint / "model.safetensors"), checkpoint / "average.safetensors")
    return checkpoint


def without_position(checkpoint):
    """As if the sampler had started its epoch anew; the constant rate does not notice."""
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(state | {"step": 0}))
    return checkpoint.rename(checkpoint.with_name("step-00000000"))


@pytest.mark.parametrize(
    ("lose", "losses", "final"),
    [
        (nothing_lost, True, True),
        (without_random, False, False),
        (without_optimizer, False, False),
        (without_average, True, False),
        (without_position, False, False),
    ],
)
def test_losing_any_part_of_the_state_changes_the_run(lose, losses, final, whole_run, fit, tmp_path, curve, weights):
    """The proof that the comparison of bits would notice; only the average leaves the losses as they are."""
    run = tmp_path / "run"
    changed = lose(back_to(3, whole_run, run))
    seal(changed)
    first = int(changed.name.removeprefix("step-")) + 1
    assert fit(run, "schedule={kind: constant}", "train.ema=0.5", go_on=True) == 0

    found = [line["loss"] for line in curve(run)[first - 1 : first + 2]]
    expected = [line["loss"] for line in curve(whole_run)[3:]]
    assert (found == expected) is losses
    a, b = weights(run), weights(whole_run)
    learned = [name for name in b if name[0] in {"model", "average"}]
    assert all(torch.equal(a[name], b[name]) for name in learned) is final


def test_another_config_or_a_changed_cache_is_refused_by_name(whole_run, fit, tmp_path, curve):
    from hilda_schema.testing import tiny_cache

    options = ("schedule={kind: constant}", "train.ema=0.5")
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    with pytest.raises(TrainError, match=r"optim.lr: 0.002 -> 0.01; train.seed: 0 -> 1") as error:
        fit(run, *options, "train.seed=1", "optim.lr=0.01", go_on=True)
    assert "repeat the options" in error.value.remedy
    other = tiny_cache(tmp_path / "other", points=200, seed=1)
    with pytest.raises(TrainError, match=r"the caches are not those .* \"root_sha256\": .* then, .* now"):
        fit(run, *options, go_on=True, cache=other)
    moved = shutil.copytree(tiny_cache(tmp_path / "again", points=200), tmp_path / "moved")
    assert fit(run, *options, "train.checkpoint_every=1", "train.keep=5", "about=free", go_on=True, cache=moved) == 0
    assert curve(run) == curve(whole_run)


def test_another_number_of_processes_is_refused(whole_run, fit, tmp_path):
    """One process cannot go on where two were: their batches and generators are others."""
    checkpoint = back_to(3, whole_run, tmp_path / "run")
    state = json.loads((checkpoint / "state.json").read_text())
    state["state"]["run"]["world"] = 2
    (checkpoint / "state.json").write_text(json.dumps(state))
    seal(checkpoint)
    with pytest.raises(TrainError, match=r"another number of processes \(2\)"):
        fit(tmp_path / "run", "schedule={kind: constant}", "train.ema=0.5", go_on=True)
