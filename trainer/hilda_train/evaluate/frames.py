"""Frames of caches as a dataset: what every evaluation's loader workers share, whatever they make of a frame."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch.utils.data import Dataset

from hilda_schema.errors import HildaError
from hilda_schema.reader import Cache, Frame, open_cache
from hilda_train.data.batches import naming
from hilda_train.evaluate.splits import Place

T = TypeVar("T")


class CacheFrames(Dataset[T | HildaError]):
    """Frames, asked for as (epoch, position, number).

    As with `ClipDataset`, all that is random about one follows from the seed and these numbers.
    """

    def __init__(self, urls: Sequence[str], places: Sequence[Place], seed: int) -> None:
        self.urls, self.places, self.seed = tuple(urls), tuple(places), seed
        self._open: list[Cache] | None = None

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": None}  # a worker opens its own files

    def __getitem__(self, item: tuple[int, int, int]) -> T | HildaError:
        """One frame; an error is handed on as a value, because a loader would wrap it in its own traceback."""
        epoch, position, number = item
        if self._open is None:
            self._open = [open_cache(url) for url in self.urls]
        try:
            cache, row = self.places[number]
            frame = self._open[cache][row]
            with naming(frame):
                return self.prepare(frame, np.random.default_rng([self.seed, epoch, position]))
        except HildaError as error:
            return error

    @abstractmethod
    def prepare(self, frame: Frame, rng: np.random.Generator) -> T:
        """What is made of a frame."""
