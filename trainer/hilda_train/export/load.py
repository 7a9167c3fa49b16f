"""From a run's folder to its backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hilda_schema.errors import UsageError
from hilda_train.checkpoint import Checkpoint, newest, open_checkpoint
from hilda_train.config import FitConfig, digest
from hilda_train.export.backbone import Backbone
from hilda_train.recipes import load_recipe
from hilda_train.students import build_student

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
STUDENT = "student."


def load_backbone(run: Path, warn: Callable[[str], None], step: int | None = None) -> Backbone:
    """Read the student of a run: its moving average where the run kept one, otherwise its weights.

    Args:
        run: the run's folder.
        warn: told of damaged checkpoints that are passed over.
        step: which checkpoint; the newest one where it is not given.

    Raises:
        UsageError: the folder is not a run's, or has no checkpoint of that step.
        TrainError: no checkpoint can be trusted, or it holds another student than the config says.
    """
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} is not a run: it has no {CONFIG}", "give the folder that hilda-train fit wrote")
    config = load_recipe(run / CONFIG)
    checkpoint = _checkpoint(run / CHECKPOINTS, warn, step)
    stem = "average" if checkpoint.specs("average") else "model"
    expected = build_student(config.student.options()).state_dict()
    named = {f"{STUDENT}{name}": tensor for name, tensor in expected.items()}
    tensors = checkpoint.read(stem, named, partly=True)
    state = {name.removeprefix(STUDENT): tensor for name, tensor in tensors.items()}
    return Backbone(state, config.student, _facts(config, checkpoint, stem))


def _checkpoint(folder: Path, warn: Callable[[str], None], step: int | None) -> Checkpoint:
    if step is not None:
        path = folder / f"step-{step:08d}"
        if not path.is_dir():
            raise UsageError(f"{folder} has no checkpoint of step {step}")
        return open_checkpoint(path)
    found = newest(folder, warn)
    if found is None:
        raise UsageError(f"{folder} has no checkpoint yet")
    return found


def _facts(config: FitConfig, checkpoint: Checkpoint, stem: str) -> dict[str, Any]:
    targets = [] if config.targets == "auto" else [f"{each.teacher}/{each.layer}" for each in config.targets]
    return {
        "about": config.about,
        "config_digest": digest(config),
        "step": checkpoint.step,
        "weights": "moving average" if stem == "average" else "as trained",
        "teacher_layers": targets,
        "levels": list(config.student.levels),
        "intensity": {name: each.model_dump() for name, each in config.data.intensity.items()},
        "caches": checkpoint.state.get("run", {}).get("caches", []),
    }
