"""The training of a segmentation head, from frames to scores.

Everything random follows from the seed: the order, the augmentation, what drop path leaves out. Two runs with one seed
on one kind of machine give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hilda_schema.errors import TrainError
from hilda_schema.terminal import Meter, human_bytes, say
from hilda_train.config import FitConfig
from hilda_train.config.resolve import settle_schedule
from hilda_train.data.augment import AugmentOptions
from hilda_train.data.loading import EpochOrder, loader_of, made
from hilda_train.data.tokens import TeacherLayer
from hilda_train.distributed import World
from hilda_train.evaluate.classes import Classes
from hilda_train.evaluate.head import Encoded, Judged, Scores, segmentation_loss
from hilda_train.evaluate.protocols import Protocol, StageConfig
from hilda_train.evaluate.segment import Segmenter, build_stage_optimizer
from hilda_train.evaluate.splits import Place
from hilda_train.evaluate.sweeps import (
    LabelledSweeps,
    SweepOptions,
    join_sweeps,
    only_one,
    sweep_scan_options,
)
from hilda_train.evaluate.teacher import POINTS_PER_FRAME, TeacherFrames, TeacherOptions, TeacherProbe, join_points
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


Model = Segmenter | TeacherProbe


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """How frames reach a model."""

    train: Dataset[Any]  # of `task.train`
    test: Dataset[Any]  # of `task.test`, each as `Model.judge` takes it
    join: Callable[[list[Any]], Any]  # training items -> a batch as `Model.encode` takes it
    keeps: bool  # what a model encodes is the same in every epoch


def student_feed(task: Task, config: FitConfig, *, frozen: bool) -> Feed:
    """Sweeps for a backbone.

    Args:
        task: what.
        config: of the backbone's pre-training: how it sees a sweep.
        frozen: whether the backbone learns nothing.
    """
    protocol = task.protocol
    augment = None if protocol.augment == "none" else AugmentOptions(**protocol.augment.model_dump())
    few, whole = (sweep_scan_options(config, protocol.intensity, most) for most in (protocol.max_points, None))
    taught = SweepOptions(few, augment, task.classes, task.seed, judged=False)
    judged = SweepOptions(whole, None, task.classes, task.seed, judged=True)
    return Feed(
        LabelledSweeps(task.urls, task.train, taught),
        LabelledSweeps(task.urls, task.test, judged),
        join_sweeps,
        augment is None and frozen,
    )


def teacher_feed(task: Task, layer: TeacherLayer, width: int) -> Feed:
    """Points for a probe of a teacher's stored layer, which has so many channels."""
    few, whole = (TeacherOptions(layer, width, task.classes, task.seed, most) for most in (POINTS_PER_FRAME, None))
    taught, judged = TeacherFrames(task.urls, task.train, few), TeacherFrames(task.urls, task.test, whole)
    return Feed(taught, judged, join_points, keeps=False)


def learn_and_test(model: Model, task: Task, feed: Feed, device: torch.device) -> Scores:
    """Train as the stage says, then test; the last epoch, or the best where the protocol reports that.

    Args:
        model: on the device.
        task: what.
        feed: its frames.
        device: where.

    Raises:
        HildaError: a frame cannot be read.
        TrainError: the loss is not finite.
    """
    source = _Source(model, task, feed, device)
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
                scores = _test(model, task, feed, device, epoch + 1, meter)
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
    model: Model,
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
        loss = segmentation_loss(model.head, encoded, lovasz)
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

    def __init__(self, model: Model, task: Task, feed: Feed, device: torch.device) -> None:
        self._model, self._task, self._feed, self._device = model, task, feed, device
        batch = min(task.stage.batch_size, len(task.train))
        self.order = EpochOrder(len(task.train), batch, 1, task.seed, World())
        self._kept: list[Encoded] = []

    @property
    def kept_count(self) -> int:
        """Sweeps that are encoded once, before the first step."""
        return len(self._task.train) if self._feed.keeps else 0

    def keep(self, meter: LossMeter) -> None:
        """Encode every sweep once, where they will be the same each time."""
        if not self._feed.keeps:
            return
        self._model.eval()
        one_by_one = [[(0, number, number)] for number in range(len(self._task.train))]
        dtype = torch.float16 if self._task.protocol.keep == "float16" else torch.float32
        for encoded in self._encoded(one_by_one):
            self._kept.append(Encoded(encoded.feats.to(dtype), encoded.rows, encoded.target).to(_HOST))
            if len(self._kept) == 1 and (size := self._kept[0].bytes * len(self._task.train)) > WORTH_SAYING:
                say(f"keeping features of {len(self._task.train)} sweeps: about {human_bytes(size)} of memory")
            meter.advance()

    def batches(self, epoch: int) -> Iterator[Encoded]:
        """An epoch's batches, on the device."""
        self.order.start(epoch, 0)
        if not self._feed.keeps:
            yield from self._encoded(self.order)
            return
        for batch in self.order:
            yield Encoded.cat(self._kept[number] for _, _, number in batch).to(self._device)

    def _encoded(self, order: EpochOrder | Sequence[list[tuple[int, int, int]]]) -> Iterator[Encoded]:
        loader = loader_of(self._feed.train, order, self._feed.join, self._task.workers, self._device)
        for batch in made(loader):
            yield self._model.encode(batch.to(self._device), self._task.protocol)


def _test(model: Model, task: Task, feed: Feed, device: torch.device, epoch: int, meter: LossMeter) -> Scores:
    """Predict the test frames, as they were recorded and whole."""
    scores = Scores.of(len(task.classes.names), epoch=epoch, keeps=task.keep_predictions)
    for judged in judge(model, feed.test, len(task.test), task.workers, device):
        scores.add(judged)
        meter.advance()
    return scores


@torch.no_grad()
def judge(model: Model, frames: Dataset[Any], count: int, workers: int, device: torch.device) -> Iterator[Judged]:
    """Predict the frames of a dataset, one by one and whole.

    Raises:
        HildaError: a frame cannot be read.
        TrainError: a prediction is not finite.
    """
    model.eval()
    order = [[(0, number, number)] for number in range(count)]
    for item in made(loader_of(frames, order, only_one, workers, device)):
        yield model.judge(item, device)


def _value(scores: Scores, task: Task) -> float:
    return scores.confusion.miou(task.protocol.absent)
