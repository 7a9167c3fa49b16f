"""Is the future foreseen? Forecasts of the occupancy objective against carrying the present forward.

The bar is the simplest forecast there is: what the sweep of t0 finds occupied will be so at t1. It is exact for
everything that stands still and is seen as well from both places; only cells that something leaves or enters, or that
come into view, can be won.

Legend: H = W grid cells, D draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.errors import UsageError
from hilda_train.data.clips import Clip
from hilda_train.data.occupancy import occupancy_target
from hilda_train.evaluate.restore import Restored
from hilda_train.learner import history_sweeps
from hilda_train.objectives.bev import OCCUPIED, UNOBSERVED, BevGrid
from hilda_train.objectives.occupancy_bce import OccupancyBce
from hilda_train.objectives.occupancy_diffusion import OccupancyDiffusion

Mask = NDArray[np.bool_]

DRAWS = 4
DDIM_STEPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Forecast:
    """One clip's future as it was, as it was foreseen, and as the present carried forward; all in the frame of t0."""

    key: str  # of the frame t0
    truth: NDArray[np.uint8]  # (H, W) FREE, OCCUPIED, UNOBSERVED at t1
    present: NDArray[np.uint8]  # (H, W) the same at t0
    probability: NDArray[np.float32]  # (H, W) of being occupied at t1
    grid: BevGrid

    @property
    def foreseen(self) -> Mask:
        """(H, W) cells that the model calls occupied."""
        return self.probability > 0.5

    @property
    def carried(self) -> Mask:
        """(H, W) cells that were occupied at t0."""
        carried: Mask = self.present == OCCUPIED
        return carried

    @property
    def observed(self) -> Mask:
        """(H, W) cells that the sweep of t1 could see."""
        observed: Mask = self.truth != UNOBSERVED
        return observed


def can_forecast(restored: Restored) -> bool:
    """Whether the run has an objective that foresees the occupancy of t1."""
    return isinstance(restored.learner.occupancy, OccupancyDiffusion | OccupancyBce)


@torch.no_grad()
def forecast(restored: Restored, clip: Clip, draws: int = DRAWS, seed: int = 0) -> Forecast:
    """Foresee one clip's t1 from t-1 and t0.

    Args:
        restored: a run for which `can_forecast` is true.
        clip: with both neighbours.
        draws: DDIM samples whose mean is the probability; a decoder needs none.
        seed: of the draws.

    Raises:
        UsageError: the clip lacks a neighbour.
    """
    batch, _ = restored.batch(clip)
    if not len(batch.target):
        raise UsageError(f"frame {batch.keys[0]} has no neighbours to be forecast from", "choose another frame")
    learner, grid = restored.learner, restored.prepared.dataset.options.bev
    assert grid is not None
    sweeps = history_sweeps(learner.student(batch.points)[-1], batch)
    if isinstance(learner.occupancy, OccupancyDiffusion):
        generator = torch.Generator().manual_seed(seed)
        drawn = [learner.occupancy.sample(sweeps, 1, DDIM_STEPS, generator)[0] for _ in range(draws)]
        probability = (torch.stack(drawn).mean(dim=0) + 1) / 2
    else:
        assert isinstance(learner.occupancy, OccupancyBce)
        probability = learner.occupancy.predict(sweeps, 1)[0].sigmoid()
    truth = batch.target[0].numpy()
    return Forecast(batch.keys[0], truth, present_of(restored, clip, grid), probability.float().numpy(), grid)


def present_of(restored: Restored, clip: Clip, grid: BevGrid) -> NDArray[np.uint8]:
    """(H, W) occupancy that the sweep of t0 itself shows."""
    points = restored.prepared.caches[clip.cache][clip.current].points
    target: Tensor = occupancy_target(
        torch.from_numpy(points.xyz_m.copy()), torch.from_numpy(~points.ground), torch.zeros(3), grid
    )
    present: NDArray[np.uint8] = target.numpy()
    return present


class IoU:
    """Intersection over union of occupied cells, summed over forecasts before it is divided."""

    def __init__(self) -> None:
        self.hits = self.union = 0

    def add(self, predicted: Mask, truth: Mask, where: Mask) -> None:
        """Count the cells of one forecast that lie in `where`; all (H, W)."""
        self.hits += int((predicted & truth & where).sum())
        self.union += int(((predicted | truth) & where).sum())

    @property
    def value(self) -> float:
        """The ratio; NaN where there was nothing to find and nothing was found."""
        return self.hits / self.union if self.union else float("nan")


def widened(mask: Mask, cells: int = 1) -> Mask:
    """(H, W) the mask and all cells within so many steps of it, diagonal ones too."""
    padded = np.pad(mask, cells)
    size, reach = len(mask), range(2 * cells + 1)
    wide: Mask = np.logical_or.reduce([padded[y : y + size, x : x + size] for y in reach for x in reach])
    return wide


def scores(forecast: Forecast, regions: Mapping[str, Mask], table: dict[str, dict[str, IoU]]) -> None:
    """Add one forecast to a table: region -> "model" and "carried forward" -> IoU, over observed cells.

    Args:
        forecast: one clip's.
        regions: name -> (H, W) cells; see `regions_of` for those that a cache alone can tell.
        table: filled; empty at first.
    """
    truth = forecast.truth == OCCUPIED
    for name, region in regions.items():
        row = table.setdefault(name, {"model": IoU(), "carried forward": IoU()})
        row["model"].add(forecast.foreseen, truth, region & forecast.observed)
        row["carried forward"].add(forecast.carried, truth, region & forecast.observed)


def regions_of(forecast: Forecast) -> dict[str, Mask]:
    """All cells; and those at or beside a change that both sweeps could see: where something moved or was missed.

    Returns:
        Name -> (H, W).
    """
    seen_twice = forecast.observed & (forecast.present != UNOBSERVED)
    changed = (forecast.carried != (forecast.truth == OCCUPIED)) & seen_twice
    return {"all cells": np.ones_like(changed), "around a change": widened(changed) & seen_twice}
