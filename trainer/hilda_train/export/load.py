"""From a run's folder to its backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hilda_schema.errors import UsageError
from hilda_schema.terminal import say
from hilda_train.checkpoint import Checkpoint, newest, of_step
from hilda_train.config import FitConfig, digest
from hilda_train.export.backbone import Backbone
from hilda_train.run import CHECKPOINTS, read_config, read_run
from hilda_train.students import build_student

STUDENT = "student."


def load_backbone(run: Path, step: int | None = None, warn: Callable[[str], None] = say) -> Backbone:
    """Read the student of a run: its moving average where the run kept one, otherwise its weights.

    Args:
        run: the run's folder.
        step: which checkpoint; the newest one where it is not given.
        warn: told of damaged checkpoints that are passed over.

    Raises:
        UsageError: there is no checkpoint, or none of that step.
        TrainError: the folder is not a run's, no checkpoint can be trusted, or it holds another student than the
            config says.
    """
    config = read_config(run)
    checkpoint = _checkpoint(run / CHECKPOINTS, step, warn)
    stem = "average" if checkpoint.specs("average") else "model"
    options = {name: value for name, value in config.student.options().items() if name != "backend"}
    expected = build_student(options).state_dict()  # by our own engine: a state is the same in all of them
    named = {f"{STUDENT}{name}": tensor for name, tensor in expected.items()}
    tensors = checkpoint.read(stem, named, partly=True)
    state = {name.removeprefix(STUDENT): tensor for name, tensor in tensors.items()}
    return Backbone(state, config.student, _facts(config, read_run(run), checkpoint, stem))


def _checkpoint(folder: Path, step: int | None, warn: Callable[[str], None]) -> Checkpoint:
    if step is not None:
        return of_step(folder, step)
    found = newest(folder, warn)
    if found is None:
        raise UsageError(f"{folder} has no checkpoint yet", "let the run reach train.checkpoint_every, or its end")
    return found


def _facts(config: FitConfig, run: dict[str, Any], checkpoint: Checkpoint, stem: str) -> dict[str, Any]:
    targets = [] if config.targets == "auto" else [f"{each.teacher}/{each.layer}" for each in config.targets]
    return {
        "about": config.about,
        "config_digest": digest(config),
        "caches": run.get("caches", []),
        "step": checkpoint.step,
        "weights": "moving average" if stem == "average" else "as trained",
        "teacher_layers": targets,
        "levels": list(config.student.levels),
        "intensity": {name: each.model_dump() for name, each in config.data.intensity.items()},
    }
