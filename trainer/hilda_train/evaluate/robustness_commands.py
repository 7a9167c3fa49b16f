"""`hilda-train robustness`: a probe trained on clean sweeps, tested on corrupted ones, beside a baseline's.

Legend: F points of a recorded sweep, M points of the corrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hilda_schema.reader import Frame, PointArrays
from hilda_schema.terminal import Meter, say
from hilda_train.commands import pick_device
from hilda_train.evaluate.backbones import RANDOM
from hilda_train.evaluate.commands import Asked, Ready, describe, make_ready, number, percent, tell
from hilda_train.evaluate.corruptions import CORRUPTIONS, SEVERITIES, Sweep
from hilda_train.evaluate.metrics import Confusion
from hilda_train.evaluate.robustness import (
    Corrupt,
    Resilience,
    corruption_errors,
    mean_corruption_error,
    mean_resilience_rate,
    measure,
    require_known,
    resilience_rates,
)
from hilda_train.evaluate.splits import Place
from hilda_train.evaluate.sweeps import LabelledSweeps, SweepOptions
from hilda_train.evaluate.training import judge, learn_and_test
from hilda_train.run import describe_caches


class CorruptedSweeps(LabelledSweeps):
    """Labelled sweeps that are corrupted before anything else is done to them.

    A return that belongs to nothing of the recorded sweep has no class and counts nowhere.
    """

    def __init__(self, urls: Sequence[str], places: Sequence[Place], options: SweepOptions, corrupt: Corrupt) -> None:
        super().__init__(urls, places, options)
        self._corrupt = corrupt

    def recorded(self, frame: Frame) -> tuple[PointArrays, NDArray[np.int64]]:
        """The M points that are left or new, and the (M,) rows of the recorded points that they are of."""
        made = self._corrupt(Sweep.of(frame.points), str(frame.key))
        # No ground flag, time or ring: a student sees positions and intensities only.
        return PointArrays(made.xyz_m, made.intensity, np.zeros(len(made.source), np.bool_)), made.source


def robustness(asked: Asked, baseline: str, names: Sequence[str]) -> None:
    """Print how much a backbone and a baseline lose under corruptions.

    Args:
        asked: the probe.
        baseline: "random", a run's folder or a file of weights; trained and tested in the same way.
        names: of the corruptions; all where there are none.

    Raises:
        HildaError: whatever is wrong with the request, the caches or the weights.
    """
    require_known(names)
    device = pick_device(asked.device)
    is_run = baseline != RANDOM and Path(baseline).is_dir()
    like = None if is_run else asked.like or asked.what
    ready, found = probed(asked, names, device)
    other, its = probed(replace(asked, what=baseline, like=like), names, device)
    task = ready.task
    result = {
        "evaluation": "robustness",
        "mce": mean_corruption_error(found.corrupted, its.corrupted),
        "model": resilience(ready, found),
        "baseline": resilience(other, its),
        "corruption_errors": corruption_errors(found.corrupted, its.corrupted),
        "classes": task.classes.name,
        "protocol": asked.protocol,
        "seed": asked.seed,
        "train": describe(ready.caches, task.train),
        "test": describe(ready.caches, task.test),
        "caches": describe_caches(ready.caches),
    }
    tell(result, "\n".join(lines_of(result)), asked)


def probed(asked: Asked, names: Sequence[str], device: torch.device) -> tuple[Ready, Resilience]:
    """Train a probe on clean sweeps, and measure it on clean and corrupted ones."""
    ready = make_ready(asked, device)
    task, model = ready.task, ready.model
    say(f"{asked.what}: training on {len(task.train)} clean sweeps")
    learn_and_test(model, task, ready.feed, device)
    chosen = tuple(names) or tuple(CORRUPTIONS)
    with Meter("test sets", 1 + len(SEVERITIES) * len(chosen), lambda *_: "") as meter:
        return ready, measure(_Tested(ready, device, meter), chosen, asked.seed)


class _Tested:
    """A probe's mIoU on test sets that are all averaged over the same classes: those that occur in the clean one.

    A corruption can take away all points of a rare class. Left out, as a probe does with classes that do not occur, it
    would raise the mean of a model that never finds it; so it counts as not found.
    """

    def __init__(self, ready: Ready, device: torch.device, meter: Meter) -> None:
        self._ready, self._device, self._meter = ready, device, meter
        clean = ready.feed.test
        assert isinstance(clean, LabelledSweeps)
        self._clean = clean
        self._occurring: NDArray[np.bool_] | None = None

    def __call__(self, corrupt: Corrupt | None) -> float:
        task = self._ready.task
        sweeps = self._clean
        if corrupt is not None:
            sweeps = CorruptedSweeps(task.urls, task.test, self._clean.options, corrupt)
        confusion = Confusion(len(task.classes.names))
        for judged in judge(self._ready.model, sweeps, len(task.test), task.workers, self._device):
            confusion.add(judged.truth, judged.predicted)
        if self._occurring is None:
            assert corrupt is None  # the clean sweeps come first
            self._occurring = confusion.points > 0
        self._meter.advance()
        return miou_over(confusion, self._occurring)


def miou_over(confusion: Confusion, classes: NDArray[np.bool_]) -> float:
    """Mean IoU of some classes, (K,); 0 of one that has no point. NaN where there are no classes."""
    return float(np.nan_to_num(confusion.iou)[classes].mean()) if classes.any() else float("nan")


def resilience(ready: Ready, found: Resilience) -> dict[str, Any]:
    """One model's numbers, as JSON can hold them."""
    rates = resilience_rates(found.corrupted, found.clean)
    return {
        "weights": ready.about,
        "clean_miou": number(found.clean),
        "mrr": number(mean_resilience_rate(found.corrupted, found.clean)),
        "miou": {name: [number(value) for value in values] for name, values in found.corrupted.items()},
        "resilience_rates": {name: number(rate) for name, rate in rates.items()},
    }


def lines_of(result: dict[str, Any]) -> list[str]:
    """The result for people, in per cent."""
    model, baseline = result["model"], result["baseline"]
    levels = "".join(f"{severity:>8}" for severity in SEVERITIES)
    lines = [
        f"robustness ({result['protocol']}, {result['classes']}, seed {result['seed']}): mIoU %, tested on "
        f"{result['test']['frames']} frames",
        f"{'':16}{'model':8}{levels}  {'baseline':8}{levels}{'CE':>9}{'RR':>9}",
    ]
    for name, values in model["miou"].items():
        cells = "".join(f"{percent(value):>8}" for value in values)
        others = "".join(f"{percent(value):>8}" for value in baseline["miou"][name])
        error, rate = result["corruption_errors"][name], model["resilience_rates"][name]
        lines.append(f"{name:16}{'':8}{cells}{'':10}{others}{percent(error):>9}{percent(rate):>9}")
    lines += [
        f"clean mIoU {percent(model['clean_miou'])}, baseline {percent(baseline['clean_miou'])}",
        f"mRR {percent(model['mrr'])}, baseline {percent(baseline['mrr'])}; mCE {percent(result['mce'])}",
    ]
    return lines
