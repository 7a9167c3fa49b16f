"""A finished run, brought back to life on its caches: for pictures and evaluations, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from hilda_schema.errors import TrainError
from hilda_schema.reader import Cache
from hilda_schema.terminal import say
from hilda_train.checkpoint import Checkpoint, newest
from hilda_train.config import FitConfig
from hilda_train.data.augment import AugmentOptions
from hilda_train.data.batches import Batch, ClipDataset, join
from hilda_train.data.clips import Clip, clips_of
from hilda_train.data.tokens import Targets, read_tokens, sample_targets
from hilda_train.learner import Learner
from hilda_train.prepare import Prepared, build_learner, matches, prepare
from hilda_train.run import CHECKPOINTS, check_same_caches, read_config

UNCHANGED = AugmentOptions(rotation_deg=0.0, flip=0.0, scale=0.0, dropout=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Restored:
    """A run's learner in evaluation mode, and clips to look at."""

    prepared: Prepared
    learner: Learner
    step: int
    held_out: tuple[Clip, ...]  # of the scenes that were not trained on
    _dataset: ClipDataset  # of all clips of the caches, as recorded

    @property
    def clips(self) -> tuple[Clip, ...]:
        """Clips to judge by: held-out ones where there are any, else those that were trained on."""
        return self.held_out or self.prepared.clips

    def batch(self, clip: Clip) -> tuple[Batch, Targets]:
        """One clip as a batch, not augmented, with its targets.

        Raises:
            HildaError: the clip cannot be read.
        """
        dataset = ClipDataset(self._dataset.urls, [clip], self._dataset.options)
        sample = dataset[0, 0, 0]
        if isinstance(sample, Exception):
            raise sample
        bev = dataset.options.bev
        batch = join([sample], bev.cells if bev else 1)
        plan = self.prepared.tokens
        tokens = read_tokens(batch, self.prepared.caches, plan.layers, plan.global_teacher)
        return batch, sample_targets(batch, tokens, self.prepared.widths, torch.device("cpu"))


def restore_run(run: Path, urls: Sequence[str], warn: Callable[[str], None] = say) -> Restored:
    """Load a run's newest checkpoint on the CPU: its moving average where it kept one, else its weights.

    Args:
        run: its folder.
        urls: the caches that it was trained from, in the same order.
        warn: told of damaged checkpoints that are passed over.

    Raises:
        TrainError: the folder holds no run, the caches are not those of the run, or there is no checkpoint.
        CacheError: a cache cannot be opened.
    """
    config = read_config(run)
    prepared = prepare(config, urls, torch.device("cpu"))
    check_same_caches(run, prepared.caches)
    folder = run / CHECKPOINTS
    checkpoint = newest(folder, warn) if folder.is_dir() else None
    if checkpoint is None:
        raise TrainError(f"{run} has no checkpoint yet", "let the run reach train.checkpoint_every, or its end")
    learner = build_learner(prepared)
    load_weights(learner, checkpoint)
    dataset = ClipDataset(urls, (), replace(prepared.dataset.options, augment=UNCHANGED))
    return Restored(prepared, learner.eval(), checkpoint.step, held_out_clips(config, prepared.caches), dataset)


def load_weights(learner: Learner, checkpoint: Checkpoint) -> None:
    """Give a learner a checkpoint's moving average where it has one, else its weights.

    Raises:
        TrainError: the checkpoint is of another learner, or damaged.
    """
    stem = "average" if checkpoint.specs("average") else "model"
    learner.load_state_dict(checkpoint.read(stem, learner.state_dict()))


def held_out_clips(config: FitConfig, caches: Sequence[Cache]) -> tuple[Clip, ...]:
    """Clips of the scenes that `data.held_out` names."""
    return tuple(
        clip
        for number, cache in enumerate(caches)
        for clip in clips_of(cache.frames, number, config.data.gap_s)
        if matches(str(cache.frames["scene"][clip.current]), config.data.held_out)
    )


T = TypeVar("T")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of some items, the first and the last among them and the others evenly between."""
    last = len(items) - 1
    return [items[k] for k in sorted({round(i * last / max(1, count - 1)) for i in range(count)})] if items else []
