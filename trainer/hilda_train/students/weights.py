"""Weights of a published or exported backbone into a student: our exports, and checkpoints of the SLidR family.

SLidR and its descendants (Seal, SuperFlow, ...) save MinkowskiEngine's `Res16UNet34C`, whose names our MinkUNet34
carries. Around the tensors they put a dictionary and, with several GPUs, prefixes; both are taken off here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hilda_schema.errors import TrainError, UsageError

CONTAINERS = ("model_points", "state_dict", "model")
"""Keys under which checkpoints keep the tensors, in the order in which they are looked for."""
PREFIXES = ("module.", "model_points.", "backbone.", "student.")
SHOWN = 3  # names in a message


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of a file."""

    taken: int  # tensors that the student now holds: all of its own
    left: tuple[str, ...]  # names in the file that the student has no place for, such as a final layer

    def __str__(self) -> str:
        """One line for people."""
        rest = f"; not used: {_listed(self.left)}" if self.left else ""
        return f"{self.taken} tensors{rest}"


def load_weights(student: nn.Module, path: Path) -> Loaded:
    """Replace a student's weights by those of a file.

    Args:
        student: gets every tensor of its state, or none.
        path: safetensors, or a PyTorch checkpoint; nothing in it is run.

    Raises:
        UsageError: there is no such file.
        TrainError: it cannot be read, a tensor of the student is missing in it, has another shape or is not finite.
    """
    found = _without_prefixes(_tensors(path))
    wanted = student.state_dict()
    if missing := sorted(wanted.keys() - found.keys()):
        raise TrainError(
            f"{path} lacks {len(missing)} of the student's {len(wanted)} tensors: {_listed(missing)}",
            f"it holds {_listed(sorted(found))}; set student.depth and student.arch to those of the file",
        )
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            raise TrainError(
                f"{path}: {name} is {tuple(found[name].shape)}, the student's is {tuple(tensor.shape)}",
                "set student.width, student.stem_kernel_size and student.channels to those of the file",
            )
        if not bool(found[name].isfinite().all()):
            raise TrainError(f"{path}: {name} holds numbers that are not finite", "get the file again")
    student.load_state_dict({name: found[name] for name in wanted})
    return Loaded(len(wanted), tuple(sorted(found.keys() - wanted.keys())))


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "give a .safetensors file or a PyTorch checkpoint")
    content = _read(path)
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise TrainError(f"{path} holds no weights: {_listed([str(key) for key in content])}")
    return tensors


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch comments on files that it goes on to refuse
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's restricted unpickler fails in every way that Python knows
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TrainError(
            f"{path} cannot be read: {first_line}",
            "a checkpoint that needs more than tensors and plain values must be saved again as safetensors",
        ) from error
    if not isinstance(content, Mapping):
        raise TrainError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what wrappers put before them."""
    result = {}
    for name, tensor in tensors.items():
        while prefix := next((each for each in PREFIXES if name.startswith(each)), ""):
            name = name.removeprefix(prefix)
        result[name] = tensor
    return result


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
