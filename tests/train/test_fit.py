"""The loop: losses fall, a step is what the equations say, and what cannot be trained on stops it with names."""

from __future__ import annotations

import copy
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from hilda_schema.errors import CacheCorrupt, HildaError, TrainError
from hilda_schema.testing import tiny_cache
from hilda_train.checkpoint import newest
from hilda_train.config import apply_set
from hilda_train.data.loading import EpochOrder
from hilda_train.distributed import World
from hilda_train.evaluate.restore import restore_run
from hilda_train.fit import Stop, batches_from, build_trainer, compute_terms, train_step, unless_stopped
from hilda_train.learner import history_sweeps, total
from hilda_train.optim import build_optimizer
from hilda_train.prepare import build_learner, prepare
from hilda_train.recipes import load_recipe
from hilda_train.schedule import learning_rate

CPU = torch.device("cpu")
MINKUNET = "student={arch: minkunet, depth: 14, width: 0.125, voxels: {size: [2, 2, 2]}}"


@pytest.fixture
def trainer_of(toy_cache, toy_recipe, torch_as_before):
    """trainer_of("key=value", ...): a trainer before its first step."""

    def build(*assignments, cache=toy_cache):
        config = apply_set(load_recipe(toy_recipe), list(assignments))
        return build_trainer(prepare(config, [str(cache)], CPU), World(), CPU)

    return build


def occupancy_of(learner, batch):
    """Mean occupancy loss over noise that is the same for every learner: one step's loss is mostly its noise level."""
    with torch.no_grad():
        sweeps = history_sweeps(learner.train().student(batch.points)[-1], batch)
        generators = [torch.Generator().manual_seed(seed) for seed in range(64)]
        return float(np.mean([float(learner.occupancy(sweeps, batch.target, each).loss) for each in generators]))


def test_each_of_hildas_three_losses_falls(fit, tmp_path, curve, toy_cache):
    """Five passes over ten clips; a batch whose clips have no neighbours has no occupancy term."""
    options = (MINKUNET, "objectives.occupancy.weight=1", "optim.lr=0.01", "train.ema=0.5")
    options += ("train.max_steps=25", "train.checkpoint_every=25")
    assert fit(tmp_path / "run", *options) == 0
    lines = curve(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 26))
    for name, share in (("point", 0.25), ("global", 0.9)):
        first, last = ([line[name] for line in part if line[name]] for part in (lines[:5], lines[-10:]))
        assert np.mean(last) < share * np.mean(first), name
    for line in lines:
        assert line["loss"] == pytest.approx(line["point"] + line["global"] + line["occupancy"], rel=1e-5)
        assert all(math.isfinite(value) for value in line.values())
    restored = restore_run(tmp_path / "run", [str(toy_cache)])
    batch, _ = restored.batch(next(clip for clip in restored.clips if clip.whole))
    before, after = (occupancy_of(each, batch) for each in (build_learner(restored.prepared), restored.learner))
    assert after < 0.97 * before


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_step_is_the_optimisers_on_the_mean_gradient_of_its_parts(trainer_of, clip_norm):
    """Against the same, written out: two steps of two parts each, with a warm-up and an average."""
    clipping = "null" if clip_norm is None else str(clip_norm)
    trainer = trainer_of(
        "train.accumulate=2", "student.drop_path=0", "schedule.warmup=3", "train.ema=0.7", f"optim.clip_norm={clipping}"
    )
    config = trainer.prepared.config
    naive = copy.deepcopy(trainer)
    naive.wrapped, naive.optimizer = naive.learner, build_optimizer(naive.learner, config.optim)
    average = {name: tensor.clone() for name, tensor in naive.learner.state_dict().items()}
    parameters = dict(naive.learner.named_parameters())
    stream = batches_from(trainer)
    for step in range(2):
        parts = next(stream)
        assert len(parts) == 2
        gradients, losses = dict.fromkeys(parameters, 0), []
        for batch, tokens in parts:
            naive.learner.zero_grad()
            loss = total(compute_terms(naive, batch, tokens), naive.learner.weights())
            loss.backward()
            losses.append(float(loss.detach()))
            gradients = {
                name: gradients[name] + (0 if each.grad is None else each.grad / 2) for name, each in parameters.items()
            }
        norm = math.sqrt(
            sum(float(each.double().square().sum()) for each in gradients.values() if torch.is_tensor(each))
        )
        scale = 1 if clip_norm is None else min(1, clip_norm / (norm + 1e-6))
        for name, each in parameters.items():
            each.grad = gradients[name] * scale if torch.is_tensor(gradients[name]) else None
        for group in naive.optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, config.optim.lr, step, config.train.max_steps)
        naive.optimizer.step()
        for name, tensor in naive.learner.state_dict().items():
            average[name] = average[name] * 0.7 + tensor * 0.3 if name in parameters else tensor.clone()

        numbers = train_step(trainer, parts)
        assert float(numbers["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
        assert float(numbers["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
        assert trainer.step == step + 1
    stream.close()
    for name, tensor in naive.learner.state_dict().items():
        torch.testing.assert_close(trainer.learner.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(trainer.average.tensors()[name], average[name], rtol=1e-5, atol=1e-6)


def test_the_stream_of_batches_follows_from_the_step_alone(trainer_of):
    """Resumed anywhere, it goes on with the same clips, past the ends of epochs, and ends with the run."""
    options = ("train.max_steps=12", "train.accumulate=2")
    seen = [[key for batch, _ in parts for key in batch.keys] for parts in batches_from(trainer_of(*options))]
    assert len(seen) == 12
    for epoch in (seen[:5], seen[5:10]):
        assert len({key for step in epoch for key in step}) == 10
    assert seen[:5] != seen[5:10]
    trainer = trainer_of(*options)
    trainer.step = 7
    assert [[key for batch, _ in parts for key in batch.keys] for parts in batches_from(trainer)] == seen[7:]


@pytest.mark.parametrize("student", [MINKUNET, "student.drop_path=0"], ids=["minkunet", "waffleiron"])
def test_frames_without_points_pairs_or_neighbours_are_trained_on_alone(fit, tmp_path, curve, student):
    """A batch of one: a whole epoch of the toy cache, which has all of these."""
    options = (student, "data.batch_size=1", "train.max_steps=10", "train.checkpoint_every=10")
    assert fit(tmp_path / "run", *options) == 0
    lines = curve(tmp_path / "run")
    assert len(lines) == 10
    assert min(line["point/cameras"] for line in lines) == 0
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["gradient_norm"]) for line in lines)


def test_a_loss_that_is_not_finite_stops_the_run_names_the_frames_and_keeps_the_checkpoint(fit, tmp_path, curve):
    run = tmp_path / "run"
    with pytest.raises(TrainError, match=r"the loss of .* is not finite at step (\d+), frames toy/scene") as error:
        fit(run, "optim.lr=1e30", "schedule={kind: constant}", "train.checkpoint_every=1")
    assert "--deep" in error.value.remedy
    done = len(curve(run))
    assert f"at step {done + 1}, " in error.value.message
    assert newest(run / "checkpoints", pytest.fail).step == done


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(trainer_of):
    trainer = trainer_of("objectives.point.weight=1e38", "train.ema=0.5")
    before = {name: tensor.clone() for name, tensor in trainer.learner.named_parameters()}
    stream = batches_from(trainer)
    parts = next(stream)
    stream.close()
    with pytest.raises(TrainError, match="the gradient is not finite at step 1, frames toy/") as error:
        train_step(trainer, parts)
    assert all(key in error.value.message for batch, _ in parts for key in batch.keys)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.learner.named_parameters())
    assert trainer.step == 0


def test_bfloat16_stays_near_float32(fit, tmp_path, curve, weights):
    """The student's products are rounded, its weights and the losses are not."""
    for precision in ("float32", "bfloat16"):
        fit(tmp_path / precision, MINKUNET, f"train.precision={precision}", "train.max_steps=3")
    exact, rounded = curve(tmp_path / "float32"), curve(tmp_path / "bfloat16")
    assert exact != rounded
    for a, b, share in zip(exact, rounded, (0.03, 0.03, 0.1), strict=True):  # the first step has a rate of 0
        for name in ("point", "global", "occupancy"):
            assert b[name] == pytest.approx(a[name], rel=share)
    assert {str(tensor.dtype) for (file, _), tensor in weights(tmp_path / "bfloat16").items() if file == "model"} == {
        "torch.float32",
        "torch.int64",
    }


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_mode_is_what_the_config_says(fit, tmp_path, monkeypatch, deterministic):
    import hilda_train.fit

    seen = []
    original = hilda_train.fit.train_step

    def watched(*arguments):
        seen.append(torch.get_deterministic_debug_mode())
        return original(*arguments)

    monkeypatch.setattr(hilda_train.fit, "train_step", watched)
    fit(tmp_path / "run", f"train.deterministic={str(deterministic).lower()}", "train.max_steps=2")
    assert seen == [2 if deterministic else 0] * 2


@pytest.mark.slow
def test_two_runs_on_several_threads_have_the_same_bits(fit, tmp_path, curve, weights, require_same_bits):
    """Another process, as far as generators go; the toy recipe's student, and products split over two threads."""
    torch.set_num_threads(2)
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        fit(tmp_path / name, "train.max_steps=3")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    require_same_bits(weights(tmp_path / "a"), weights(tmp_path / "b"))


def damage(cache, pattern):
    """Flip a bit of every file of that name."""
    found = list(Path(cache).rglob(pattern))
    assert found
    for file in found:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("pattern", ["points/xyz_m/c*", "vit/layer_4/tokens/c*"])
def test_a_damaged_cache_stops_the_run_by_name(fit, toy_cache, tmp_path, pattern):
    cache = shutil.copytree(toy_cache, tmp_path / "cache")
    damage(cache, pattern.replace("/c*", "/**/c*"))
    with pytest.raises(CacheCorrupt, match=pattern.partition("/c")[0]):
        fit(tmp_path / "run", cache=cache)


def test_a_cache_that_changed_under_the_run_stops_it(trainer_of, tmp_path):
    """Opened, then replaced by another valid one of the same frames: never a mix of both."""
    cache = tiny_cache(tmp_path / "cache", points=200)
    trainer = trainer_of(cache=cache)
    shutil.rmtree(cache)
    tiny_cache(cache, points=200, seed=1)
    with pytest.raises(HildaError, match="cache"):
        next(batches_from(trainer))


def test_a_signal_is_remembered_and_a_second_one_ends_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with Stop().listening() as stop:
        assert not stop.agreed(CPU)
        signal.raise_signal(signal.SIGTERM)
        assert stop.agreed(CPU)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(SystemExit) as ended:
            signal.raise_signal(signal.SIGINT)
        assert ended.value.code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def failing():
    yield "first"
    raise TrainError("a loader worker failed")


def test_a_loader_that_fails_after_a_signal_ends_the_batches_and_before_it_the_run():
    """Ctrl-C on a terminal ends the workers before the loop has looked at its own signal."""
    stop = Stop()
    stop.signal = signal.SIGINT
    assert list(unless_stopped(failing(), stop)) == ["first"]
    with pytest.raises(TrainError, match="a loader worker failed"):
        list(unless_stopped(failing(), Stop()))


def test_a_run_starts_from_the_weights_of_a_file(trainer_of, tmp_path, capsys):
    """Weights and moving average are the file's; heads are new; the first loss is that of these weights."""
    source = trainer_of("train.seed=5").learner.student.state_dict()
    torch.save({"model_points": source}, tmp_path / "start.pt")
    trainer = trainer_of(f"student.weights={tmp_path / 'start.pt'}", "train.ema=0.9")
    for name, tensor in trainer.learner.student.state_dict().items():
        assert torch.equal(tensor, source[name])
    averaged = trainer.average.tensors()
    assert all(torch.equal(averaged[f"student.{name}"], source[name]) for name in source)
    assert f"{len(source)} tensors" in capsys.readouterr().err
    with pytest.raises(TrainError, match="lacks"):
        trainer_of(MINKUNET, f"student.weights={tmp_path / 'start.pt'}")


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_built(trainer_of):
    trainer = trainer_of()
    with pytest.raises(HildaError, match="cannot be shared by 3 processes"):
        build_trainer(trainer.prepared, World(0, 3), CPU)
    assert isinstance(trainer.order, EpochOrder)
