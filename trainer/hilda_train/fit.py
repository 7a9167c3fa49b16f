"""The training loop: a pure step, and around it what makes a run safe to stop at any moment.

A step's randomness follows from the seed and its place in the run, never from what happened before, so a run that is
interrupted and resumed computes the same bits as one that is not.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hilda_schema.errors import TrainError
from hilda_schema.terminal import Meter, say
from hilda_train.checkpoint import newest, save, set_aside_after, sweep
from hilda_train.config import digest
from hilda_train.data.batches import Batch
from hilda_train.data.loading import EpochOrder, make_loader, with_tokens
from hilda_train.data.tokens import ScanTokens, sample_targets
from hilda_train.distributed import World, gather_objects, mean_over_ranks, synchronise_batch_norm
from hilda_train.learner import Learner, total
from hilda_train.objectives.term import Term, require_finite
from hilda_train.optim import MovingAverage, build_optimizer, set_learning_rate
from hilda_train.prepare import Prepared, build_learner
from hilda_train.run import CHECKPOINTS
from hilda_train.runlog import RunLog
from hilda_train.schedule import learning_rate
from hilda_train.train_state import capture, capture_random, restore


@dataclass(slots=True, eq=False)
class Trainer:
    """One process's share of a run."""

    prepared: Prepared
    world: World
    device: torch.device
    learner: Learner
    wrapped: nn.Module  # the learner, or DistributedDataParallel around it
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    step: int = 0  # optimiser steps done
    logs: dict[str, Tensor] = field(default_factory=dict)  # of the last step

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        steps = self.prepared.config.train.max_steps
        assert steps is not None  # resolved
        return steps


def build_trainer(prepared: Prepared, world: World, device: torch.device) -> Trainer:
    """Build learner and optimiser on a device; every rank has the same weights."""
    config = prepared.config
    torch.use_deterministic_algorithms(config.train.deterministic, warn_only=False)
    learner = build_learner(prepared).to(device)
    optimizer = build_optimizer(learner, config.optim)
    average = MovingAverage(learner, config.train.ema) if config.train.ema is not None else None
    wrapped: nn.Module = learner
    if world.size > 1:
        synchronise_batch_norm(learner)
        devices = [device.index] if device.type == "cuda" else None
        # A student whose last level is not asked for has layers without a gradient.
        wrapped = DistributedDataParallel(learner, device_ids=devices, find_unused_parameters=True)
    return Trainer(prepared, world, device, learner, wrapped, optimizer, average)


def autocast(trainer: Trainer) -> AbstractContextManager[object]:
    """bfloat16 products where the config says so."""
    if trainer.prepared.config.train.precision == "bfloat16":
        return torch.autocast(trainer.device.type, torch.bfloat16)
    return nullcontext()


def compute_terms(trainer: Trainer, batch: Batch, tokens: list[ScanTokens]) -> dict[str, Term]:
    """The terms of one part of a step."""
    batch = batch.to(trainer.device)
    targets = sample_targets(batch, tokens, trainer.prepared.widths, trainer.device)
    with autocast(trainer):
        terms: dict[str, Term] = trainer.wrapped(batch, targets)
    return terms


def train_step(trainer: Trainer, parts: list[tuple[Batch, list[ScanTokens]]]) -> dict[str, Tensor]:
    """One optimiser step over the parts of its batch.

    Returns:
        () numbers for the log, the mean over parts: "loss", each term, and what the terms report.

    Raises:
        TrainError: a loss is not finite; names the frames. The weights are still those before the step.
    """
    config = trainer.prepared.config
    weights = trainer.learner.weights()
    set_learning_rate(trainer.optimizer, learning_rate(config.schedule, config.optim.lr, trainer.step, trainer.steps))
    trainer.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, (batch, tokens) in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last or trainer.world.size == 1 else trainer.wrapped.no_sync():  # type: ignore[operator]
            terms = compute_terms(trainer, batch, tokens)
            require_finite(terms, f"step {trainer.step + 1}, frames {', '.join(batch.keys)}")
            loss = total(terms, weights) / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
        for name, value in _numbers(terms, loss).items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + (value if name == "loss" else value / len(parts))
    if config.optim.clip_norm is not None:
        sums["gradient_norm"] = nn.utils.clip_grad_norm_(trainer.learner.parameters(), config.optim.clip_norm).detach()
    trainer.optimizer.step()
    if trainer.average is not None:
        trainer.average.update(trainer.learner)
    trainer.step += 1
    return sums


def _numbers(terms: Mapping[str, Term], loss: Tensor) -> dict[str, Tensor]:
    found = {"loss": loss.detach()}
    for name, term in terms.items():
        found[name] = term.loss.detach()
        found |= {f"{name}/{key}": value.detach().float() for key, value in term.logs.items()}
    return found


class Stop:
    """Asks the loop to end after the step in hand; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Listen to SIGINT and SIGTERM."""

        def on_signal(number: int, _frame: FrameType | None) -> None:
            if self.signal is not None:
                raise SystemExit(128 + number)
            self.signal = number
            say(f"{signal.Signals(number).name}: saving a checkpoint after this step")

        before = {each: signal.signal(each, on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def agreed(self, device: torch.device) -> bool:
        """Whether any rank was asked to stop: all must stop after the same step."""
        return bool(mean_over_ranks(torch.tensor(float(self.signal is not None), device=device)) > 0)


def resume(trainer: Trainer, folder: Path) -> bool:
    """Go on from the newest checkpoint that can be trusted; whether there was one.

    Raises:
        TrainError: the checkpoint is of another run.
    """
    checkpoints = folder / CHECKPOINTS
    found = newest(checkpoints, say) if checkpoints.is_dir() else None
    if found is None:
        return False
    state = restore(found, trainer.learner, trainer.optimizer, trainer.average, trainer.world.rank)
    if state.get("config") != digest(trainer.prepared.config) or state.get("world") != trainer.world.size:
        raise TrainError(
            f"{found.path} was saved by another config or another number of processes ({state.get('world')})",
            "resume as the run was started",
        )
    trainer.step = found.step
    if trainer.world.leads:
        set_aside_after(checkpoints, found.step)
    return True


def save_checkpoint(trainer: Trainer, folder: Path, log: RunLog | None) -> None:
    """Save everything between two steps; every rank brings its generators, the first one writes."""
    randoms = gather_objects(capture_random())
    if not trainer.world.leads:
        return
    if log is not None:
        log.sync()
    state = {"config": digest(trainer.prepared.config), "world": trainer.world.size}
    snapshot = capture(trainer.step, trainer.learner, trainer.optimizer, trainer.average, randoms, state)
    save(folder / CHECKPOINTS, snapshot, trainer.prepared.config.train.keep)


def batches_from(trainer: Trainer) -> Iterator[list[tuple[Batch, list[ScanTokens]]]]:
    """The parts of every step from the trainer's place on, to the end of the run."""
    prepared = trainer.prepared
    config = prepared.config
    order = EpochOrder(
        len(prepared.clips), config.data.batch_size, config.train.accumulate, config.train.seed, trainer.world
    )
    loader = make_loader(prepared.dataset, order, config.data.workers, trainer.device)
    step = trainer.step
    while step < trainer.steps:
        order.start(step // order.steps, step % order.steps)
        stream = with_tokens(iter(loader), prepared.caches, prepared.tokens)
        parts: list[tuple[Batch, list[ScanTokens]]] = []
        for item in stream:
            parts.append(item)
            if len(parts) == config.train.accumulate:
                yield parts
                parts, step = [], step + 1
                if step == trainer.steps:
                    return


def run_loop(trainer: Trainer, folder: Path, stop: Stop) -> None:
    """Train from the trainer's place to the end, or until asked to stop."""
    train = trainer.prepared.config.train
    log = RunLog(folder, trainer.step, say) if trainer.world.leads else None
    if trainer.world.leads:
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        sweep(folder / CHECKPOINTS)
    pace = Pace()
    meter = Meter("steps", trainer.steps, lambda *_: pace.note(trainer.logs)) if trainer.world.leads else None
    saved = trainer.step
    try:
        with meter if meter is not None else nullcontext():
            if meter is not None and trainer.step:
                meter.advance(trainer.step)
            for parts in pace.timed(batches_from(trainer)):
                numbers = train_step(trainer, parts)
                trainer.logs = {name: mean_over_ranks(value) for name, value in numbers.items()}
                if log is not None and (trainer.step % train.log_every == 0 or trainer.step == trainer.steps):
                    log.write(trainer.step, pace.take(trainer))
                if meter is not None:
                    meter.advance()
                stopping = stop.agreed(trainer.device)
                if stopping or trainer.step % train.checkpoint_every == 0 or trainer.step == trainer.steps:
                    save_checkpoint(trainer, folder, log)
                    saved = trainer.step
                if stopping:
                    break
        if saved != trainer.step:
            save_checkpoint(trainer, folder, log)
    finally:
        if log is not None:
            log.close()


class Pace:
    """Where the time of the last steps went."""

    def __init__(self) -> None:
        self._wait_s = self._total_s = 0.0
        self._steps = 0
        self._shown = ""

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Pass batches on, measuring what waiting for them and using them takes."""
        while True:
            asked = time.perf_counter()
            item = next(batches, None)
            if item is None:
                return
            self._wait_s += time.perf_counter() - asked
            yield item
            self._total_s += time.perf_counter() - asked
            self._steps += 1

    def take(self, trainer: Trainer) -> dict[str, float]:
        """A log line's numbers; starts counting anew. The step in hand counts with the next line."""
        config = trainer.prepared.config
        values = {name: float(value) for name, value in trainer.logs.items()}
        values["lr"] = learning_rate(config.schedule, config.optim.lr, trainer.step - 1, trainer.steps)
        if self._steps:
            values["seconds"] = round(self._total_s / self._steps, 4)
            values["wait_share"] = round(self._wait_s / max(self._total_s, 1e-9), 4)
        self._wait_s = self._total_s = 0.0
        self._steps = 0
        return values

    def note(self, logs: Mapping[str, Tensor]) -> str:
        """The text behind the progress bar: the loss and its terms, speed, share of waiting."""
        parts = [f"{name} {float(value):.3f}" for name, value in logs.items() if "/" not in name]
        if self._total_s:
            rate, share = self._steps / self._total_s, self._wait_s / self._total_s
            self._shown = f"{rate:.2f} it/s, data wait {share:.0%}"
        return ", ".join([*parts, self._shown]) if self._shown else ", ".join(parts)
