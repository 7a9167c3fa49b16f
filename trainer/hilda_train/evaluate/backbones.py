"""What is judged: the backbone of a run, weights of a file, or random weights to hold them against."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hilda_schema.errors import UsageError
from hilda_train.config import FitConfig
from hilda_train.export import load_backbone
from hilda_train.recipes import load_recipe
from hilda_train.run import CONFIG, read_config
from hilda_train.students import Student, build_student
from hilda_train.students.weights import load_weights

RANDOM = "random"
TEACHER = "teacher"
_LIKE = "add --like RUN or --like RECIPE: it says which backbone"


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A backbone to be judged."""

    student: Student
    config: FitConfig  # of its pre-training, or of what it is like
    about: dict[str, Any]  # where its weights are from, for results; no path, since a run may be moved


def config_of(what: str, like: str | None) -> FitConfig:
    """The config that goes with a run, a file or random weights.

    Args:
        what: a run's folder, a file of weights, or "random".
        like: a run's folder or a recipe, for the last two.

    Raises:
        UsageError: `like` is missing, is not needed, or names no recipe; a teacher, which has no such backbone.
        TrainError: a folder is not a run's.
    """
    if what == TEACHER:
        raise UsageError("a teacher's stored features can be probed only", "hilda-train probe teacher --layer LAYER")
    if what != RANDOM and Path(what).is_dir():
        if like is not None:
            raise UsageError(f"{what} is a run, which says itself what it is like", "leave --like out")
        return read_config(Path(what))
    if what != RANDOM and not Path(what).is_file():
        raise UsageError(f"there is no run or file {what}", "give a run's folder, a file of weights, or random")
    if like is None:
        raise UsageError(f"which backbone has {'random' if what == RANDOM else what} weights?", _LIKE)
    if Path(like).is_dir() or (Path(like) / CONFIG).exists():
        return read_config(Path(like))
    return load_recipe(like)


def load_subject(what: str, config: FitConfig, seed: int) -> Subject:
    """Build a backbone.

    Args:
        what: as for `config_of`.
        config: what that returned; its student may differ in what weights do not depend on.
        seed: of random weights.

    Raises:
        UsageError: there is no checkpoint.
        TrainError: the weights do not fit.
    """
    torch.manual_seed(seed)
    student = build_student(config.student.options())
    if what == RANDOM:
        about: dict[str, Any] = {"kind": "random", "seed": seed}
    elif Path(what).is_dir():
        backbone = load_backbone(Path(what))
        student.load_state_dict(backbone.state)
        names = ("about", "config_digest", "step", "weights", "caches")
        about = {"kind": "run", "name": Path(what).resolve().name, **{name: backbone.facts[name] for name in names}}
    else:
        loaded = load_weights(student, Path(what))
        about = {"kind": "file", "name": Path(what).name, "tensors": str(loaded)}
    return Subject(student, config, {**about, "sha256": sha256_of(student)})


def sha256_of(student: Student) -> str:
    """Hash of a backbone's weights: their names and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(student.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
