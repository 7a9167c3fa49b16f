"""What `hilda-train knn` and `hilda-train zeroshot` do once their options are understood. They run on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hilda_schema.errors import UsageError
from hilda_train.config import FitConfig
from hilda_train.evaluate.backbones import config_of, load_subject
from hilda_train.evaluate.classes import load_classes
from hilda_train.evaluate.commands import (
    Asked,
    choose_frames,
    describe,
    deterministic,
    open_caches,
    scored,
    table,
    tell,
)
from hilda_train.evaluate.head import Scores
from hilda_train.evaluate.restore import restore_run
from hilda_train.evaluate.sweeps import require_sensors, sweep_scan_options
from hilda_train.evaluate.untrained import Frames, head_of, teacher_prototypes, text_prototypes
from hilda_train.evaluate.untrained import knn as run_knn
from hilda_train.evaluate.untrained import zeroshot as run_zeroshot
from hilda_train.run import describe_caches


def knn(asked: Asked, k: int) -> None:
    """Print how well a backbone's neighbours vote."""
    deterministic()
    config = config_of(asked.what, asked.like)
    frames, parts = _frames(asked, config)
    subject = load_subject(asked.what, config, asked.seed)
    scores = run_knn(subject.student.eval(), frames, k)
    result = _result(asked, "knn", f"k = {k}", frames, parts, scores)
    result["weights"] = subject.about
    tell(result, table(result), asked)


def zeroshot(asked: Asked, prototypes: Path | None, target: str | None) -> None:
    """Print how well a head's output agrees with vectors of the classes.

    Raises:
        UsageError: there is no such run or target, or the file of vectors does not fit.
        TrainError: the run has no head or no checkpoint.
        CacheError: a cache cannot be opened.
    """
    run = Path(asked.what)
    if not run.is_dir():
        raise UsageError(f"there is no run {run}", "give the folder of `hilda-train fit --out`: it has the head")
    deterministic()
    config = config_of(asked.what, None)
    frames, parts = _frames(asked, config)
    restored = restore_run(run, frames.urls)
    which, head = head_of(restored, target)
    width = restored.prepared.widths[which]
    if prototypes is None:
        vectors, kind = teacher_prototypes(restored, frames, which), "the teacher's class means"
    else:
        vectors, kind = text_prototypes(prototypes, frames.classes, width), prototypes.name
    scores = run_zeroshot(restored, frames, which, head, vectors)
    result = _result(asked, "zeroshot", kind, frames, parts, scores)
    layer = restored.prepared.tokens.layers[which]
    result["weights"] = {"kind": "run", "name": run.resolve().name, "step": restored.step}
    result["target"] = f"{layer.teacher}/{layer.layer}"
    tell(result, table(result), asked)


def _frames(asked: Asked, config: FitConfig) -> tuple[Frames, dict[str, Any]]:
    """What is judged on what, and its description for a result."""
    classes = load_classes(asked.classes)
    urls, caches = open_caches(asked, config.data, classes)
    require_sensors(sweep_scan_options(config, {}, None), caches)
    _, train, test = choose_frames(asked, config.data, caches)
    parts = {
        "train": describe(caches, train),
        "test": describe(caches, test),
        "caches": describe_caches(caches),
    }
    return Frames(urls, tuple(train), tuple(test), classes, config, asked.seed), parts


def _result(
    asked: Asked, name: str, kind: str, frames: Frames, parts: dict[str, Any], scores: Scores
) -> dict[str, Any]:
    """As JSON can hold it; classes that do not occur are left out of the mean."""
    return {
        "evaluation": name,
        "protocol": {"name": kind},
        **scored(frames.classes, scores, "left out"),
        **parts,
        "seed": asked.seed,
    }
