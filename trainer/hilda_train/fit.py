"""The training loop: a pure step, and around it what makes a run safe to stop at any moment.

What a step sees and its noise follow from the seed and its place in the run, never from what happened before; what a
network draws by itself (drop path) comes from generators that a checkpoint carries. So a run that is interrupted and
resumed computes the same bits as one that is not.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hilda_schema.errors import TrainError
from hilda_schema.terminal import Meter, say
from hilda_train.checkpoint import newest, save, set_aside_after
from hilda_train.config import digest
from hilda_train.data.batches import Batch
from hilda_train.data.loading import EpochOrder, make_loader, with_tokens
from hilda_train.data.tokens import ScanTokens, sample_targets
from hilda_train.distributed import World, gather_objects, max_over_ranks, mean_over_ranks, synchronise_batch_norm
from hilda_train.heap import Heap
from hilda_train.learner import Learner, total
from hilda_train.objectives.term import Term, require_finite
from hilda_train.optim import MovingAverage, build_optimizer, set_learning_rate
from hilda_train.prepare import Prepared, build_learner
from hilda_train.run import CHECKPOINTS
from hilda_train.runlog import RunLog
from hilda_train.schedule import learning_rate
from hilda_train.students.weights import load_weights
from hilda_train.train_state import capture, capture_random, restore, run_state, seed_random

Batches = Generator[list[tuple[Batch, list[ScanTokens]]], None, None]
"""The parts of one step after another."""


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
    order: EpochOrder
    step: int = 0  # optimiser steps done
    logs: dict[str, Tensor] = field(default_factory=dict)  # of the last step

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        steps = self.prepared.config.train.max_steps
        assert steps is not None  # resolved
        return steps


def build_trainer(prepared: Prepared, world: World, device: torch.device) -> Trainer:
    """Build learner and optimiser on a device; every rank has the same weights.

    Raises:
        UsageError: the batch cannot be shared by the processes, or the file to start from is not there.
        TrainError: that file does not fit the student.
    """
    config = prepared.config
    order = EpochOrder(len(prepared.clips), config.data.batch_size, config.train.accumulate, config.train.seed, world)
    torch.use_deterministic_algorithms(config.train.deterministic, warn_only=False)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses to multiply on a GPU
    learner = build_learner(prepared).to(device)
    if config.student.weights is not None:
        loaded = load_weights(learner.student, Path(config.student.weights))
        if world.leads:
            say(f"starting from {config.student.weights}: {loaded}")
    optimizer = build_optimizer(learner, config.optim)
    average = MovingAverage(learner, config.train.ema) if config.train.ema is not None else None
    wrapped: nn.Module = learner
    if world.size > 1:
        synchronise_batch_norm(learner)
        devices = [device.index] if device.type == "cuda" else None
        # A student whose last level is not asked for has layers without a gradient.
        # Buffers are running statistics, which are the same everywhere.
        wrapped = DistributedDataParallel(
            learner, device_ids=devices, find_unused_parameters=True, broadcast_buffers=False
        )
    seed_random(config.train.seed + world.rank)  # or all ranks would drop the same paths
    return Trainer(prepared, world, device, learner, wrapped, optimizer, average, order)


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
        () numbers for the log, the mean over parts: "loss", each term, and what the terms report; "gradient_norm",
        before clipping.

    Raises:
        TrainError: a loss or the gradient is not finite; names the frames. The weights are still those before the step.
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
    sums["gradient_norm"] = _clipped_norm(trainer.learner, config.optim.clip_norm)
    if not sums["gradient_norm"].isfinite():
        frames = ", ".join(key for batch, _ in parts for key in batch.keys)
        raise TrainError(
            f"the gradient is not finite at step {trainer.step + 1}, frames {frames}",
            "lower the learning rate, or set optim.clip_norm",
        )
    trainer.optimizer.step()
    if trainer.average is not None:
        trainer.average.update(trainer.learner)
    trainer.step += 1
    return sums


def _clipped_norm(module: nn.Module, largest: float | None) -> Tensor:
    """The norm that the whole gradient has, before it is scaled down to the largest allowed one."""
    learning = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
    if largest is not None:
        nn.utils.clip_grads_with_norm_(learning, largest, norm)
    return norm


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
        """Whether any rank was asked to stop: all must stop after the same step, with the same exit code."""
        self.signal = max_over_ranks(self.signal or 0, device) or None
        return self.signal is not None


def resume(trainer: Trainer, folder: Path) -> bool:
    """Go on from the newest checkpoint that can be trusted; whether there was one.

    Raises:
        TrainError: the checkpoint is of another run.
    """
    checkpoints = folder / CHECKPOINTS
    found = newest(checkpoints, say) if checkpoints.is_dir() else None
    if found is None:
        return False
    state = run_state(found)
    if state.get("config") != digest(trainer.prepared.config) or state.get("world") != trainer.world.size:
        raise TrainError(
            f"{found.path} was saved by another config or another number of processes ({state.get('world')})",
            "resume as the run was started",
        )
    restore(found, trainer.learner, trainer.optimizer, trainer.average, trainer.world.rank)
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


def batches_from(trainer: Trainer) -> Batches:
    """The parts of every step from the trainer's place on, to the end of the run."""
    prepared, order = trainer.prepared, trainer.order
    config = prepared.config
    loader = make_loader(prepared.dataset, order, config.data.workers, trainer.device)
    step = trainer.step
    while step < trainer.steps:
        order.start(step // order.steps, step % order.steps)
        stream = with_tokens(loader, prepared.caches, prepared.tokens)
        parts: list[tuple[Batch, list[ScanTokens]]] = []
        for item in stream:
            parts.append(item)
            if len(parts) == config.train.accumulate:
                yield parts
                parts, step = [], step + 1
                if step == trainer.steps:
                    return


def unless_stopped(batches: Batches, stop: Stop) -> Batches:
    """Pass batches on; where a signal has arrived, a loader that fails ends them instead of the run.

    Whoever signals a group of processes (Ctrl-C, a batch system) also ends the loader's workers.
    """
    try:
        yield from batches
    except TrainError as error:
        if stop.signal is None:
            raise
        say(f"stopping before the next step: {error.message}")


def run_loop(trainer: Trainer, folder: Path, stop: Stop) -> None:
    """Train from the trainer's place to the end, or until asked to stop."""
    train = trainer.prepared.config.train
    batches = batches_from(trainer)
    if trainer.world.size == 1:  # others would wait for this one in the middle of a step
        batches = unless_stopped(batches, stop)
    saved, heap = trainer.step, Heap()
    with closing(batches), Reporter(trainer, folder) as reporter:
        for parts in reporter.timed(batches):
            numbers = train_step(trainer, parts)
            trainer.logs = dict(zip(numbers, mean_over_ranks(torch.stack([*numbers.values()])).unbind(), strict=True))
            reporter.step_done()
            heap.step_done()
            stopping = stop.agreed(trainer.device)
            if stopping or trainer.step % train.checkpoint_every == 0 or trainer.step == trainer.steps:
                save_checkpoint(trainer, folder, reporter.log)
                saved = trainer.step
            if stopping:
                break
        if saved != trainer.step:
            save_checkpoint(trainer, folder, reporter.log)


class Reporter:
    """The run's log and its progress bar, and where the time of the last steps went. Only the first process speaks."""

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self._trainer = trainer
        self.log = RunLog(folder, trainer.step, say) if trainer.world.leads else None
        self._meter = Meter("steps", trainer.steps, self._note)
        self._wait_s = self._total_s = 0.0
        self._steps = 0
        self._speed = ""

    def __enter__(self) -> Reporter:
        if self.log is not None:
            self._meter.__enter__()
            self._meter.done = self._trainer.step
        return self

    def __exit__(self, *raised: object) -> None:
        if self.log is not None:
            self._meter.__exit__(*raised)
            self.log.close()

    def timed(self, batches: Batches) -> Batches:
        """Pass batches on, measuring what waiting for them and using them takes."""
        while True:
            asked = time.perf_counter()
            parts = next(batches, None)
            if parts is None:
                return
            self._wait_s += time.perf_counter() - asked
            yield parts
            self._total_s += time.perf_counter() - asked
            self._steps += 1

    def step_done(self) -> None:
        """Tell of the trainer's last step."""
        if self.log is None:
            return
        step = self._trainer.step
        if step % self._trainer.prepared.config.train.log_every == 0 or step == self._trainer.steps:
            self.log.write(step, self._line())
        self._meter.advance()

    def _line(self) -> dict[str, float]:
        """A log line's numbers; starts counting anew. The time of the step in hand counts with the next line."""
        config = self._trainer.prepared.config
        values = {name: float(value) for name, value in self._trainer.logs.items()}
        values["lr"] = learning_rate(config.schedule, config.optim.lr, self._trainer.step - 1, self._trainer.steps)
        if self._steps:
            values["seconds"] = round(self._total_s / self._steps, 4)
            values["wait_share"] = round(self._wait_s / max(self._total_s, 1e-9), 4)
        self._wait_s = self._total_s = 0.0
        self._steps = 0
        return values

    def _note(self, *_: object) -> str:
        """The text behind the progress bar: the loss and its terms, speed, share of waiting."""
        parts = [f"{name} {float(value):.3f}" for name, value in self._trainer.logs.items() if "/" not in name]
        if self._total_s:
            rate, share = self._steps / self._total_s, self._wait_s / self._total_s
            self._speed = f"{rate:.2f} it/s, data wait {share:.0%}"
        return ", ".join([*parts, self._speed]) if self._speed else ", ".join(parts)
