"""`hilda-train structure`: how the representations of a run are built, at one checkpoint or over several.

The rows are point-camera pairs, drawn once and the same for every checkpoint: equally many from each of a few sweeps,
by a generator that follows from the seed and the frame's key.

Legend: N drawn pairs, P pairs of a sweep, C and D channels.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hilda_schema.durable import write_atomically
from hilda_schema.errors import TrainError, UsageError
from hilda_schema.terminal import say
from hilda_train.checkpoint import of_step
from hilda_train.data.batches import Batch
from hilda_train.data.clips import Clip, clips_of
from hilda_train.evaluate.restore import Restored, load_weights, restore_run, spread
from hilda_train.evaluate.structure import structure_between, structure_of, zeroshot_accuracy
from hilda_train.prepare import matches
from hilda_train.run import CHECKPOINTS

SWEEPS = 8
PAIRS = 2048
METRICS = ("gram_gap", "cka", "uniformity", "tolerance", "rankme", "zeroshot")

Table = dict[str, dict[str, dict[str, float]]]  # target -> representation -> metric -> value


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """Pairs of one sweep that structure is judged on."""

    batch: Batch
    point: Tensor  # (N,) int64 row in the batch's points
    teacher: tuple[Tensor, ...]  # per target (N, D_l)
    taught: tuple[Tensor, ...]  # per target (N,) bool
    label: Tensor | None  # (N,) the dataset's own classes; None where the cache has none


def structure(
    run: Path, caches: Sequence[str], steps: Sequence[int], scenes: Sequence[str], plot: Path | None, *, as_json: bool
) -> None:
    """Print the structure of a run's representations at its newest checkpoint, or at those of the steps given.

    Raises:
        UsageError: a plot of fewer than two steps, or with no folder to be written to.
        TrainError: as `restore_run`.
        CacheError: a cache cannot be opened.
    """
    if plot is not None and len(set(steps)) < 2:
        raise UsageError("a curve needs two checkpoints or more", "give --step twice, or leave --out away")
    if plot is not None and not plot.parent.is_dir():
        raise UsageError(f"there is no folder {plot.parent} to write {plot.name} to", "make it first")
    restored = restore_run(run, caches)
    clips = clips_to_judge(restored, scenes)
    drawn = [draw_pairs(restored, clip, PAIRS // len(clips)) for clip in clips]
    curve = dict(measured(restored, run, drawn, sorted(set(steps))))
    pairs = sum(len(each.point) for each in drawn)
    if as_json:
        result = {"sweeps": len(clips), "pairs": pairs, "steps": [{"step": k, "targets": v} for k, v in curve.items()]}
        sys.stdout.write(json.dumps(_finite(result), indent=2) + "\n")
    else:
        say(f"{pairs} pairs of {len(clips)} sweeps; rows of length one")
        sys.stdout.write("".join(f"{line}\n" for line in table_lines(curve)))
    if plot is not None:
        from hilda_train.report.figures import draw_families

        write_atomically(plot, draw_families(families_of(curve)))
        say(f"wrote {plot}")


def clips_to_judge(restored: Restored, scenes: Sequence[str]) -> list[Clip]:
    """A few clips, spread evenly over the scenes asked for; over the held-out ones where none are.

    Raises:
        UsageError: no frame is in such a scene.
    """
    clips: Sequence[Clip] = restored.clips
    if scenes:
        config = restored.prepared.config
        clips = [
            clip
            for number, cache in enumerate(restored.prepared.caches)
            for clip in clips_of(cache.frames, number, config.data.gap_s)
            if matches(str(cache.frames["scene"][clip.current]), scenes)
        ]
    if not clips:
        raise UsageError(f"no frame is in a scene called {', '.join(scenes)}", "hilda-cache info names the scenes")
    return spread(clips, SWEEPS)


def draw_pairs(restored: Restored, clip: Clip, count: int, seed: int = 0) -> Drawn:
    """Draw at most `count` pairs of a clip's current sweep, without replacement.

    Raises:
        HildaError: the clip cannot be read.
    """
    batch, targets = restored.batch(clip)
    first = sum(batch.pair_counts[:-1])  # the current sweep is a clip's last
    rng = np.random.default_rng([seed, zlib.crc32(batch.keys[0].encode())])
    chosen = rng.permutation(batch.pair_counts[-1])[:count]
    rows = torch.from_numpy(np.sort(chosen)) + first
    return Drawn(
        batch,
        batch.pair_point[rows],
        tuple(layer[rows] for layer in targets.layers),
        tuple(taught[rows] for taught in targets.taught),
        _labels(restored, batch, rows),
    )


def _labels(restored: Restored, batch: Batch, rows: Tensor) -> Tensor | None:
    cache, index = batch.sources[-1]
    frame = restored.prepared.caches[cache][index]
    if frame.points.label is None:
        return None
    return torch.from_numpy(frame.points.label[frame.pairs.point[batch.pair_row[rows].numpy()]].astype(np.int64))


def measured(
    restored: Restored, run: Path, drawn: Sequence[Drawn], steps: Sequence[int]
) -> Iterator[tuple[int, Table]]:
    """The structure at each step; at the newest checkpoint where no step is given.

    Raises:
        UsageError: a step without a checkpoint.
    """
    if not steps:
        yield restored.step, structure_at(restored, drawn)
    for step in steps:
        load_weights(restored.learner, of_step(run / CHECKPOINTS, step))
        yield step, structure_at(restored, drawn)


@torch.no_grad()
def structure_at(restored: Restored, drawn: Sequence[Drawn]) -> Table:
    """Teacher, student (the head's output) and backbone, per target, with the learner's present weights.

    Raises:
        TrainError: the run learns from no stored layer, or there are too few pairs.
    """
    names = [f"{each.teacher}/{each.layer}" for each in restored.prepared.tokens.layers]
    if not names:
        raise TrainError(
            "this run learns from no stored layer", "structure compares a student with its teacher's layers"
        )
    learner = restored.learner
    rows: list[dict[str, list[Tensor]]] = [{} for _ in names]
    labels: list[list[Tensor | None]] = [[] for _ in names]
    for each in drawn:
        levels = learner.student.encode(each.batch.points)
        for target, (level, taught) in enumerate(zip(levels, each.taught, strict=True)):
            backbone = level.feats[level.point_row[each.point[taught]]]
            found = {"teacher": each.teacher[target][taught], "backbone": backbone}
            if learner.point is not None:
                found["student"] = learner.point.heads[target](backbone)
            for name, value in found.items():
                rows[target].setdefault(name, []).append(value)
            labels[target].append(None if each.label is None else each.label[taught])
    joined = [{name: torch.cat(parts) for name, parts in target.items()} for target in rows]
    return {name: _judge(joined[k], _all_or_none(labels[k]), name) for k, name in enumerate(names)}


def _all_or_none(labels: Sequence[Tensor | None]) -> Tensor | None:
    """Labels of all rows; None where some sweep has none."""
    known = [each for each in labels if each is not None]
    return torch.cat(known) if len(known) == len(labels) else None


def _judge(rows: Mapping[str, Tensor], label: Tensor | None, name: str) -> dict[str, dict[str, float]]:
    teacher = rows["teacher"]
    if len(teacher) < 2:
        raise TrainError(f"the sweeps have {len(teacher)} pairs with {name}", "choose other scenes with --scene")
    found = {"teacher": structure_of(teacher, label)}
    for each in ("student", "backbone"):
        if each in rows:
            found[each] = structure_between(rows[each], teacher) | structure_of(rows[each], label)
    if label is not None:
        for each in found.keys() & {"teacher", "student"}:  # the backbone has another width
            found[each]["zeroshot"] = zeroshot_accuracy(rows[each], teacher, label)
    return found


def table_lines(curve: Mapping[int, Table]) -> Iterator[str]:
    """The numbers for people."""
    yield f"{'step':>8} {'target':24} {'':9}" + "".join(f"{metric:>12}" for metric in METRICS)
    for step, targets in curve.items():
        for target, parts in targets.items():
            for part, values in parts.items():
                cells = (f"{values[metric]:12.4f}" if metric in values else " " * 12 for metric in METRICS)
                yield f"{step:8d} {target:24} {part:9}" + "".join(cells).rstrip()


def families_of(curve: Mapping[int, Table]) -> dict[str, dict[str, dict[str, tuple[list[int], list[float]]]]]:
    """Target -> metric -> part -> (steps, values), of what is known at every step."""
    steps = list(curve)
    families: dict[str, dict[str, dict[str, tuple[list[int], list[float]]]]] = {}
    for target, parts in curve[steps[0]].items():
        for metric in METRICS:
            for part in parts:
                values = [curve[step][target][part].get(metric, float("nan")) for step in steps]
                if np.isfinite(values).all():
                    families.setdefault(target, {}).setdefault(metric, {})[part] = (steps, values)
    return families


def _finite(value: Any) -> Any:
    """What JSON can hold: null for NaN."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
