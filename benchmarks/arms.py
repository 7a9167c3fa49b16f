"""What the comparisons of pre-training methods share: arms that are trained and judged alike, tables, plots.

An arm is a recipe with what an experiment changes in it. Every arm is pre-trained under every seed for the same number
of steps on the same clips, and judged by the same commands that a user has: a linear probe and fine-tuning with few
labels, on scenes that pre-training never saw. What lies in the work folder already is not made again, so a comparison
goes on where it was stopped.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Scores = dict[str, dict[str, list[float]]]  # evaluation -> arm -> value under each seed


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to pre-train."""

    name: str
    recipe: str | None  # None: weights as they are drawn
    sets: tuple[str, ...] = ()
    published: str = ""  # what the paper reports for this row, for the table
    caches: tuple[Path, ...] = ()  # to pre-train on; none: the setting's, which all arms are judged on
    like: str = ""  # of an untrained arm: the trained one that it has the backbone of; the first where none is named
    layer: str = ""  # of a teacher, "teacher/layer": its own probe, the ceiling of the others
    without: tuple[str, ...] = ()  # evaluations that say nothing of this arm


@dataclass(frozen=True, slots=True)
class Judge:
    """One evaluation that ends in an mIoU: the `hilda-train` command, and its words after the weights."""

    name: str
    words: tuple[str, ...]
    seen: bool = False  # also over the points that a camera sees, all that a teacher can be judged on

    @property
    def names(self) -> tuple[str, ...]:
        """Of its values."""
        return (self.name, f"{self.name}, seen") if self.seen else (self.name,)


@dataclass(frozen=True, slots=True)
class Setting:
    """What all arms of a comparison have in common."""

    work: Path
    caches: tuple[Path, ...]
    sets: tuple[str, ...]  # over every recipe: the student, the budget
    judges: tuple[Judge, ...]
    seeds: tuple[int, ...]
    jobs: int = 1


def run_all(setting: Setting, arms: Sequence[Arm]) -> Scores:
    """Train and judge every arm under every seed; untrained ones last, for they are like the first that is trained."""
    trained = [arm for arm in arms if arm.recipe is not None]
    found: dict[tuple[str, int], dict[str, float]] = {}
    for some in (trained, [arm for arm in arms if arm.recipe is None]):
        tasks = [(arm, seed) for seed in setting.seeds for arm in some]
        with ThreadPoolExecutor(setting.jobs) as pool:
            values = pool.map(lambda task: _run(setting, *task, like=task[0].like or trained[0].name), tasks)
            found |= {(arm.name, seed): each for (arm, seed), each in zip(tasks, values, strict=True)}
    return {
        name: {arm.name: [found[arm.name, seed][name] for seed in setting.seeds] for arm in arms}
        for judge in setting.judges
        for name in judge.names
    }


def _run(setting: Setting, arm: Arm, seed: int, like: str) -> dict[str, float]:
    """Evaluation -> value of one arm under one seed."""
    folder = setting.work / f"{arm.name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    taught, caches = (
        [word for cache in some for word in ("-c", str(cache))]
        for some in (arm.caches or setting.caches, setting.caches)
    )
    weights: tuple[object, ...] = ("random", "--like", setting.work / f"{like}-{seed}" / "run")
    if arm.layer:
        weights = ("teacher", *weights[1:], "--layer", arm.layer)
    if arm.recipe is not None:
        sets = [word for each in (*setting.sets, *arm.sets, f"train.seed={seed}") for word in ("-s", each)]
        hilda("fit", arm.recipe, *taught, "-o", folder / "run", "--resume", *sets, log=folder / "fit.log")
        weights = (folder / "run",)
    values = {}
    for judge in setting.judges:
        out = folder / f"{judge.name}.json"
        if judge.words[0] in arm.without:
            values |= dict.fromkeys(judge.names, float("nan"))
            continue
        if not out.exists():
            words = (judge.words[0], *weights, *caches, *judge.words[1:], "--seed", seed, "-o", out)
            hilda(*words, log=folder / f"{judge.name}.log")
        result = json.loads(out.read_text())
        found = (result["miou"], result["visible"]["miou"]) if judge.seen else (result["miou"],)
        values |= {name: 100 * float(value) for name, value in zip(judge.names, found, strict=True)}
    print(f"{arm.name} seed {seed}: " + ", ".join(f"{name} {v:.2f}" for name, v in values.items()), flush=True)
    return values


def hilda(*words: object, log: Path) -> str:
    """Run a `hilda-train` command with one thread: what it printed. Its messages are in the log, shown if it fails."""
    program = Path(sys.executable).with_name("hilda-train")
    with log.open("w") as file:
        done = subprocess.run(
            [program, *map(str, words)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"hilda-train {' '.join(map(str, words))}\n{log.read_text()[-2000:]}")
    return done.stdout


def table(scores: Scores, arms: Sequence[Arm], against: str) -> str:
    """Mean and standard deviation over seeds, and the paired difference to one arm.

    A difference is between runs of one seed: of one order of clips, one draw of labels, one start.
    """
    names = list(scores)
    width = max(len(arm.name) for arm in arms)
    lines = [f"{'':{width}}  " + "  ".join(f"{name:>14} {'to ' + against:>16}" for name in names) + "  published"]
    for arm in arms:
        cells = []
        for name in names:
            values, base = scores[name][arm.name], scores[name][against]
            apart = [a - b for a, b in zip(values, base, strict=True)]
            difference = "" if arm.name == against else _spread(apart, signed=True)
            cells.append(f"{_spread(values):>14} {difference:>16}")
        lines.append(f"{arm.name:{width}}  " + "  ".join(cells) + f"  {arm.published}")
    return "\n".join(line.rstrip() for line in lines)


def _spread(values: Sequence[float], *, signed: bool = False) -> str:
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return "-"
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{mean:+.2f} ± {spread:.2f}" if signed else f"{mean:.2f} ± {spread:.2f}"


def plot(scores: Scores, arms: Sequence[Arm], path: Path) -> None:
    """Write a picture: a panel for each evaluation, a row for each arm, a dot for each seed, a bar at the mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(scores) + 2, 0.42 * len(arms) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for panel, (name, by_arm) in zip(panels, scores.items(), strict=True):
        for row, arm in enumerate(arms):
            values = by_arm[arm.name]
            panel.plot(values, [row] * len(values), "o", color="#4477aa", markersize=5, alpha=0.7)
            panel.plot([statistics.fmean(values)] * 2, [row - 0.28, row + 0.28], color="#222222", linewidth=2)
        panel.set_yticks(range(len(arms)), [arm.name for arm in arms])
        panel.set_xlabel("mIoU (%)")
        panel.set_title(name, fontsize=10)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def record(path: Path, scores: Scores, seeds: Iterable[int], **about: Any) -> None:
    """Write every single value, so that another statistic can be taken of them."""
    values = {
        name: {arm: [None if math.isnan(each) else each for each in found] for arm, found in by_arm.items()}
        for name, by_arm in scores.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**about, "seeds": list(seeds), "scores": values}, indent=1) + "\n")
