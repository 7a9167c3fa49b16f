"""Teacher features for a batch: token grids read as stored, sampled on the device.

A frame's grids are megabytes, and handing them from one process to another costs more than reading them. So loader
workers prepare everything else, and the training process reads the grids itself, on a thread, while the step before
runs.

Legend: P pairs, G (scan, camera) groups, V cameras of a scan, D teacher channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hilda_schema.errors import NotInCache, TrainError
from hilda_schema.reader import Cache, StoredTokens
from hilda_train.data.batches import Batch
from hilda_train.objectives.token_sampling import decode_int8_tokens, sample_tokens


@dataclass(frozen=True, slots=True, order=True)
class TeacherLayer:
    """A stored layer to learn from."""

    teacher: str
    layer: str


@dataclass(frozen=True, slots=True, eq=False)
class ScanTokens:
    """What the teachers saw of one scan's images, as stored; on the host."""

    layers: tuple[StoredTokens | NDArray[np.float32] | None, ...]
    """Per layer: the stored grid; (P, D) features of the scan's pairs where the store has no grid; None where it lacks
    the teacher."""
    global_token: NDArray[np.float32] | None  # (V, D), NaN rows for absent cameras


def read_scan_tokens(
    cache: Cache,
    row: int,
    pair_row: NDArray[np.int64],
    layers: Sequence[TeacherLayer],
    global_teacher: str | None,
) -> ScanTokens:
    """Read one frame's tokens.

    Args:
        cache: its cache.
        row: its frame.
        pair_row: (P,) which of the frame's pairs the scan kept: a store without grids has features for all of them.
        layers: wanted layers, in the student's order.
        global_teacher: whose global token, None for no one's.
    """
    frame = cache[row]
    grids = cache.manifest.recipe.encoding.kind == "grid"
    stored: list[StoredTokens | NDArray[np.float32] | None] = []
    for wanted in layers:
        try:
            if grids:
                stored.append(frame.stored_tokens(wanted.teacher, layer=wanted.layer))
            else:
                stored.append(frame.point_features(wanted.teacher, layer=wanted.layer)[pair_row])
        except NotInCache:
            stored.append(None)
    token = None
    if global_teacher is not None:
        try:
            token = frame.global_tokens(global_teacher)
        except NotInCache:
            token = None
    return ScanTokens(tuple(stored), token)


def read_tokens(
    batch: Batch, caches: Sequence[Cache], layers: Sequence[TeacherLayer], global_teacher: str | None
) -> list[ScanTokens]:
    """The tokens of every scan of a batch; see `read_scan_tokens`."""
    pairs = torch.split(batch.pair_row, list(batch.pair_counts))
    return [
        read_scan_tokens(caches[cache], row, kept.numpy(), layers, global_teacher)
        for (cache, row), kept in zip(batch.sources, pairs, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What a batch is taught."""

    layers: tuple[Tensor, ...]  # per layer (P, D_l) float32; rows that are not taught are zero
    taught: tuple[Tensor, ...]  # per layer (P,) bool: the pair's cache has this teacher
    whole: bool  # every cache has every teacher, so that all pairs are taught; known without asking the device
    global_tokens: tuple[Tensor | None, ...]  # per scan (V, D) float32, NaN rows for absent cameras


def sample_targets(batch: Batch, tokens: Sequence[ScanTokens], widths: Sequence[int], device: torch.device) -> Targets:
    """Sample every pair's targets, on the device, one scan at a time: scans of different caches have other grids.

    Args:
        batch: on the device.
        tokens: per scan of the batch, on the host.
        widths: D_l per layer; those of a run that reads no layer go unused.
        device: where to sample.
    """
    starts = np.cumsum((0, *batch.pair_counts)).tolist()
    layers, taught = [], []
    for number, width in enumerate(widths[: len(tokens[0].layers)]):
        rows, known = [], []
        for scan, (first, last) in enumerate(pairwise(starts)):
            group = batch.pair_group[first:last] - batch.group_starts[scan]
            sampled = sample_stored(tokens[scan].layers[number], group, batch.uv01[first:last], width, device)
            known.append(torch.full((last - first,), sampled is not None, device=device))
            rows.append(sampled if sampled is not None else torch.zeros((last - first, width), device=device))
        layers.append(torch.cat(rows))
        taught.append(torch.cat(known))
    whole = all(layer is not None for each in tokens for layer in each.layers)
    return Targets(tuple(layers), tuple(taught), whole, tuple(_on(each.global_token, device) for each in tokens))


def sample_stored(
    stored: StoredTokens | NDArray[np.float32] | None, camera: Tensor, uv01: Tensor, width: int, device: torch.device
) -> Tensor | None:
    """Features of some pairs of one scan, of any encoding.

    Args:
        stored: a layer of a `ScanTokens`.
        camera: (P,) int64 index into the store's cameras.
        uv01: (P, 2) position in the image, ((u + 0.5) / width_px, (v + 0.5) / height_px).
        width: D that was announced.
        device: where to sample.

    Returns:
        (P, D) float32, NaN for an absent camera; None where the scan's cache lacks the teacher.

    Raises:
        TrainError: the layer has another width.
    """
    if stored is None:
        return None
    found = stored if isinstance(stored, np.ndarray) else stored.values
    if found.shape[-1] != width:
        raise TrainError(f"a cache stores {found.shape[-1]} channels where {width} were announced")
    values = torch.from_numpy(found).to(device, non_blocking=True)
    if isinstance(stored, np.ndarray):
        return values
    if stored.scale is not None:
        assert stored.channel_scale is not None
        assert stored.channel_mean is not None
        # Copied: the cache keeps a layer's statistics for all of its frames, and hands them out read-only.
        parts = (
            torch.tensor(each, device=device) for each in (stored.scale, stored.channel_scale, stored.channel_mean)
        )
        values = decode_int8_tokens(values, *parts)
    return sample_tokens(values, camera, uv01)


def _on(array: NDArray[np.float32] | None, device: torch.device) -> Tensor | None:
    return None if array is None else torch.from_numpy(array).to(device, non_blocking=True)
