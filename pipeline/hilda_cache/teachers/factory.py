"""A user's own network as a teacher: `module:factory`, or `path/to/file.py:factory`.

The factory takes no argument and returns a frozen torch module. Called with images (B, 3, H, W), RGB, standardised, the
module returns a dict: names -> maps (B, C, H, W), shallow to deep, and optionally "global" -> (B, D). `MEAN` and `STD`
in the factory's module say how images are standardised (RGB in 0..1; ImageNet's where they are absent).

This runs the user's code, by the user's own naming of it; nothing that came with weights or data is run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from hilda_cache.teachers.base import Preprocessing, TeacherCard
from hilda_cache.teachers.checkpoint import licence, triple
from hilda_cache.teachers.frozen import FrozenTeacher, first_line
from hilda_cache.teachers.layers import select_layers
from hilda_cache.teachers.spec import Source, TeacherSpec
from hilda_cache.teachers.state import state_sha256
from hilda_cache.user_code import UserCode, code_revision, load_user_code
from hilda_schema.errors import TeacherError

GLOBAL = "global"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load_factory_teacher(spec: TeacherSpec, source: Source, device: str) -> FactoryTeacher:
    """Load a teacher from a user's function; see `load_teacher`.

    Raises:
        TeacherError: also for norm "post".
    """
    if spec.norm == "post":
        raise TeacherError(
            f"teacher {spec.name!r}: only the function itself can apply a final normalisation", 'use norm "pre"'
        )
    return FactoryTeacher(spec, source, device)


class FactoryTeacher(FrozenTeacher):
    """A teacher around a module that a user's function made.

    Raises:
        TeacherError: the code fails, or does not return what is described above.
    """

    def __init__(self, spec: TeacherSpec, source: Source, device: str) -> None:
        self._source = source
        self._chosen: tuple[str, ...] | None = None  # all, until it is known what there is
        module, build = _import_factory(source)
        super().__init__(build, device)
        everything, global_width = self._measure(*spec.image_size)
        names = [shape.name for shape in everything]
        chosen = [everything[i] for i in select_layers(spec.layers, names, spec.name)]
        self._chosen = tuple(shape.name for shape in chosen)
        mean, std = _mean_std(module, source)
        self.card = TeacherCard(
            name=spec.name,
            source=source.public,
            revision=" ".join(filter(None, (spec.revision, code_revision(module)))),
            architecture=type(self._model).__name__,
            weights_sha256=state_sha256(self._model),
            licence=licence(Path(module.__file__).parent) if source.kind == "file" and module.__file__ else "unknown",
            norm=spec.norm,
            preprocessing=Preprocessing(*spec.image_size, mean, std),
            layers=tuple(chosen),
            global_width=global_width,
        )

    def _see(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        output: Any = self._model(images)
        _check_output(output, len(images), self._source)
        names = self._chosen or tuple(name for name in output if name != GLOBAL)
        if missing := [name for name in names if name not in output]:
            raise TeacherError(f"{self._source.public} gave no {missing[0]!r} this time")
        return {name: output[name] for name in names}, output.get(GLOBAL)


def _check_output(output: Any, batch: int, source: Source) -> None:
    """Make sure that a module returned maps by name."""
    want = f"return a dict of names -> (B, C, H, W), and {GLOBAL!r} -> (B, D) where there is one"
    if not isinstance(output, dict) or not any(name != GLOBAL for name in output):
        raise TeacherError(f"{source.public} returned {type(output).__name__}, not a dict of maps", want)
    for name, value in output.items():
        dims = 2 if name == GLOBAL else 4
        if not isinstance(value, Tensor) or value.ndim != dims or len(value) != batch:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise TeacherError(f"{source.public} returned {shape} for {name!r} and {batch} images", want)


def _import_factory(source: Source) -> tuple[ModuleType, Callable[[], nn.Module]]:
    """Import the factory's module, and a function that makes a fresh network each time."""
    code = UserCode.of(source.place, source.factory)
    module, factory = load_user_code(code, TeacherError)

    def build() -> nn.Module:
        try:
            with code.importable():
                # A copy, because a factory may hand out one object again and again, and ours gets rounded.
                made = copy.deepcopy(factory())
        except Exception as error:  # the user's own code
            raise TeacherError(f"{source.public} failed: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(made, nn.Module):
            raise TeacherError(f"{source.public} returned {type(made).__name__}, not a torch module")
        return made.float()

    return module, build


def _mean_std(module: ModuleType, source: Source) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    mean, std = getattr(module, "MEAN", _IMAGENET[0]), getattr(module, "STD", _IMAGENET[1])
    return triple(mean, f"MEAN of {source.public}"), triple(std, f"STD of {source.public}")
