"""The training of a segmentation head, from frames to scores.

Everything random follows from the seed: the order, the augmentation, what drop path leaves out. Two runs with one seed
on one kind of machine give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hilda_schema.errors import TrainError
from hilda_schema.terminal import Meter, human_bytes, say
from hilda_train.config import FitConfig
from hilda_train.config.resolve import settle_schedule
from hilda_train.data.augment import AugmentOptions
from hilda_train.data.loading import EpochOrder, loader_of, made
from hilda_train.distributed import World
from hilda_train.evaluate.classes import Classes
from hilda_train.evaluate.metrics import Confusion
from hilda_train.evaluate.protocols import Protocol, StageConfig
from hilda_train.evaluate.segment import (
    Encoded,
    Segmenter,
    build_stage_optimizer,
    encode,
    judge,
    segmentation_loss,
)
from hilda_train.evaluate.splits import Place
from hilda_train.evaluate.sweeps import (
    LabelledSweeps,
    SweepOptions,
    join_sweeps,
    only_one,
    sweep_scan_options,
)
from hilda_train.optim import set_learning_rate
from hilda_train.schedule import learning_rate

_HOST = torch.device("cpu")
WORTH_SAYING = 2e9  # bytes


@dataclass(frozen=True, slots=True)
class Task:
    """One training and what it is tested on."""

    urls: tuple[str, ...]  # caches
    train: tuple[Place, ...]
    test: tuple[Place, ...]
    classes: Classes
    protocol: Protocol
    stage: StageConfig
    seed: int
    workers: int
    keep_predictions: bool


@dataclass(slots=True, eq=False)
class Scores:
    """What the test set says."""

    confusion: Confusion
    epoch: int  # after which it was tested, counted from 1
    steps: int = 0
    losses: tuple[float, ...] = ()  # mean of each epoch
    borrowed: int = 0  # points that the student did not see, with the prediction of the nearest one that it did
    predictions: list[Prediction] = field(default_factory=list)  # of the test frames, where they are asked for


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One test frame."""

    key: str
    truth: NDArray[np.int16]  # (F,) classes, -1 for none
    predicted: NDArray[np.int16]  # (F,)


def learn_and_test(model: Segmenter, task: Task, config: FitConfig, device: torch.device) -> Scores:
    """Train as the stage says, then test; the last epoch, or the best where the protocol reports that.

    Args:
        model: on the device.
        task: what.
        config: of the backbone's pre-training: how it sees a sweep.
        device: where.

    Raises:
        HildaError: a frame cannot be read.
        TrainError: the loss is not finite.
    """
    source = _Source(model, task, config, device)
    in_epoch = source.order.steps
    steps = task.stage.length(in_epoch)
    schedule = settle_schedule(task.stage.schedule, steps, in_epoch, [])
    rates = [learning_rate(schedule, task.stage.optim.lr, step, steps) for step in range(steps)]
    epochs = -(-steps // in_epoch)
    tests = epochs if task.protocol.report == "best" else 1
    best: Scores | None = None
    losses: list[float] = []
    meter = LossMeter(source.kept_count + steps + tests * len(task.test))
    with meter:
        source.keep(meter)
        optimizer = build_stage_optimizer(model, task.stage)
        for epoch in range(epochs):
            some = rates[epoch * in_epoch : (epoch + 1) * in_epoch]
            losses.append(_train(model, optimizer, source.batches(epoch), some, task.protocol.lovasz, meter))
            if epoch == epochs - 1 or task.protocol.report == "best":
                scores = _test(model, task, config, device, epoch + 1, meter)
                best = scores if best is None or _value(scores, task) > _value(best, task) else best
    assert best is not None
    best.steps, best.losses = steps, tuple(losses)
    return best


class LossMeter(Meter):
    """A progress bar with the loss of the last step behind it."""

    def __init__(self, total: int) -> None:
        super().__init__("sweeps and steps", total, self._note)
        self.loss: float | None = None

    def _note(self, *_: object) -> str:
        return "" if self.loss is None else f"loss {self.loss:.3f}"


def _train(
    model: Segmenter,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Encoded],
    rates: Sequence[float],
    lovasz: float,
    meter: LossMeter,
) -> float:
    """Take a step with each rate; the mean loss."""
    model.train()
    values = []
    for rate, encoded in zip(rates, batches, strict=False):
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        loss = segmentation_loss(model, encoded, lovasz)
        meter.loss = float(loss.detach())
        if not np.isfinite(meter.loss):
            raise TrainError("the loss is not finite", "lower the protocol's learning rate")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(meter.loss)
        meter.advance()
    return float(np.mean(values))


class _Source:
    """Training batches, encoded: from sweeps as they come, or from features that were kept."""

    def __init__(self, model: Segmenter, task: Task, config: FitConfig, device: torch.device) -> None:
        self._model, self._task, self._device = model, task, device
        batch = min(task.stage.batch_size, len(task.train))
        self.order = EpochOrder(len(task.train), batch, 1, task.seed, World())
        protocol = task.protocol
        augment = None if protocol.augment == "none" else AugmentOptions(**protocol.augment.model_dump())
        scan = sweep_scan_options(config, protocol.intensity, protocol.max_points)
        self._sweeps = LabelledSweeps(
            task.urls, task.train, SweepOptions(scan, augment, task.classes, task.seed, judged=False)
        )
        self._keeps = augment is None and model.frozen
        self._kept: list[Encoded] = []

    @property
    def kept_count(self) -> int:
        """Sweeps that are encoded once, before the first step."""
        return len(self._task.train) if self._keeps else 0

    def keep(self, meter: LossMeter) -> None:
        """Encode every sweep once, where they will be the same each time."""
        if not self._keeps:
            return
        self._model.eval()
        one_by_one = [[(0, number, number)] for number in range(len(self._sweeps))]
        dtype = torch.float16 if self._task.protocol.keep == "float16" else torch.float32
        for encoded in self._encoded(one_by_one):
            self._kept.append(Encoded(encoded.feats.to(dtype), encoded.rows, encoded.target).to(_HOST))
            if len(self._kept) == 1 and (size := self._kept[0].bytes * len(self._sweeps)) > WORTH_SAYING:
                say(f"keeping features of {len(self._sweeps)} sweeps: about {human_bytes(size)} of memory")
            meter.advance()

    def batches(self, epoch: int) -> Iterator[Encoded]:
        """An epoch's batches, on the device."""
        self.order.start(epoch, 0)
        if not self._keeps:
            yield from self._encoded(self.order)
            return
        for batch in self.order:
            yield Encoded.cat(self._kept[number] for _, _, number in batch).to(self._device)

    def _encoded(self, order: EpochOrder | Sequence[list[tuple[int, int, int]]]) -> Iterator[Encoded]:
        loader = loader_of(self._sweeps, order, join_sweeps, self._task.workers, self._device)
        for batch in made(loader):
            yield encode(self._model, batch.to(self._device), self._task.protocol)


def _test(
    model: Segmenter, task: Task, config: FitConfig, device: torch.device, epoch: int, meter: LossMeter
) -> Scores:
    """Predict the test frames, as they were recorded and whole."""
    scan = sweep_scan_options(config, task.protocol.intensity, None)
    sweeps = LabelledSweeps(task.urls, task.test, SweepOptions(scan, None, task.classes, task.seed, judged=True))
    order = [[(0, number, number)] for number in range(len(task.test))]
    scores = Scores(Confusion(len(task.classes.names)), epoch)
    for judged in judge(model, loader_of(sweeps, order, only_one, task.workers, device), device):
        scores.confusion.add(judged.truth, judged.predicted)
        scores.borrowed += judged.borrowed
        if task.keep_predictions:
            truth, predicted = judged.truth.astype(np.int16), judged.predicted.astype(np.int16)
            scores.predictions.append(Prediction(judged.key, truth, predicted))
        meter.advance()
    return scores


def _value(scores: Scores, task: Task) -> float:
    return scores.confusion.miou(task.protocol.absent)
