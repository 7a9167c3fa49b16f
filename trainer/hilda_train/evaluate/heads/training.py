"""The training of a light head. Everything random follows from the seed, as for the probe (`evaluate.training`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch

from hilda_schema.errors import TrainError
from hilda_schema.terminal import human_bytes, say
from hilda_train.config.resolve import settle_schedule
from hilda_train.data.loading import EpochOrder, loader_of, made
from hilda_train.distributed import World
from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.evaluate.heads.items import FrameItems, Tensors, together
from hilda_train.evaluate.protocols import StageConfig
from hilda_train.evaluate.segment import build_stage_optimizer
from hilda_train.evaluate.training import WORTH_SAYING, LossMeter
from hilda_train.optim import set_learning_rate
from hilda_train.schedule import learning_rate

T = TypeVar("T", bound=Tensors)
CLIP_NORM = 35.0  # of the gradient, as CenterPoint has it: a young head's heat maps give large ones
_HOST = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Learned:
    """How a training went."""

    steps: int
    losses: tuple[float, ...]  # mean of each epoch


class Learner(Generic[T]):
    """One training.

    Args:
        model: on the device.
        items: to learn from.
        stage: how long and how fast.
        seed: of the order.
        workers: processes that prepare items.
        device: where.
    """

    def __init__(
        self, model: BevHead[T], items: FrameItems[T], stage: StageConfig, seed: int, workers: int, device: torch.device
    ) -> None:
        self._model, self._items, self._stage, self._workers, self._device = model, items, stage, workers, device
        self._order = EpochOrder(len(items), min(stage.batch_size, len(items)), 1, seed, World())
        self._keeps = items.options.augment is None and model.frozen
        self._kept: list[Seen[T]] = []
        self.steps = stage.length(self._order.steps)

    @property
    def work(self) -> int:
        """Advances of the meter."""
        return self.steps + (len(self._items) if self._keeps else 0)

    def learn(self, meter: LossMeter) -> Learned:
        """Train.

        Raises:
            HildaError: a frame cannot be read.
            TrainError: the loss is not finite.
        """
        in_epoch, stage = self._order.steps, self._stage
        schedule = settle_schedule(stage.schedule, self.steps, in_epoch, [])
        rates = [learning_rate(schedule, stage.optim.lr, step, self.steps) for step in range(self.steps)]
        self._keep(meter)
        optimizer = build_stage_optimizer(self._model, stage)
        losses = []
        for epoch in range(-(-self.steps // in_epoch)):
            some = rates[epoch * in_epoch : (epoch + 1) * in_epoch]
            self._model.train()
            losses.append(self._train(optimizer, epoch, some, meter))
        return Learned(self.steps, tuple(losses))

    def _train(self, optimizer: torch.optim.Optimizer, epoch: int, rates: Sequence[float], meter: LossMeter) -> float:
        values = []
        for rate, seen in zip(rates, self._batches(epoch), strict=False):
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad(set_to_none=True)
            loss = self._model.loss(seen)
            meter.loss = float(loss.detach())
            if not np.isfinite(meter.loss):
                raise TrainError("the loss is not finite", "lower the protocol's learning rate")
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP_NORM)
            optimizer.step()
            values.append(meter.loss)
            meter.advance()
        return float(np.mean(values))

    def _keep(self, meter: LossMeter) -> None:
        """Let the backbone see every item once, where it will be the same each time."""
        if not self._keeps:
            return
        self._model.eval()
        for seen in looked(self._model, self._items, self._workers, self._device):
            self._kept.append(seen.to(_HOST))
            if len(self._kept) == 1 and (size := self._kept[0].bytes * len(self._items)) > WORTH_SAYING:
                say(f"keeping features of {len(self._items)} frames: about {human_bytes(size)} of memory")
            meter.advance()

    def _batches(self, epoch: int) -> Iterator[list[Seen[T]]]:
        self._order.start(epoch, 0)
        if self._keeps:
            for batch in self._order:
                yield [self._kept[number].to(self._device) for _, _, number in batch]
            return
        for items in made(loader_of(self._items, self._order, together, self._workers, self._device)):
            yield self._model.see(items, self._device)


@torch.no_grad()
def looked(model: BevHead[T], items: FrameItems[T], workers: int, device: torch.device) -> Iterator[Seen[T]]:
    """What the backbone sees of every item, one by one, in order."""
    order = [[(0, number, number)] for number in range(len(items))]
    for batch in made(loader_of(items, order, together, workers, device)):
        yield from model.see(batch, device)
