"""Checkpoints on disk: whole or not there, checked before they are trusted, and data only.

    checkpoints/step-00000500/
        model.safetensors       every tensor file is safetensors: loading one runs no code
        optimizer.safetensors   ...
        state.json              step and everything that is not a tensor
        SHA256SUMS              of the files above; `sha256sum -c` reads it too

A checkpoint is written under another name (`.partial`), every file and the folder are flushed to the disk, and then
the folder is renamed: whoever finds the final name finds all of it, whenever the process or the machine died. Removing
one starts with the opposite rename. The newest checkpoint whose checksums hold is the one that counts; a damaged one
is skipped aloud.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hilda_schema.durable import sync
from hilda_schema.errors import TrainError, UsageError
from hilda_schema.manifest import canonical_json
from hilda_schema.terminal import human_bytes

FORMAT = 1
STATE, SUMS = "state.json", "SHA256SUMS"
MAX_STATE_BYTES = 64 * 2**20
MAX_SUMS_BYTES = 64 * 2**10
MAX_TENSORS = 100_000

_FINAL = re.compile(r"step-(\d{8,12})")
_LEFT_OVER = re.compile(r"step-\d{8,12}(\.removed)?\.partial")
_SUM_LINE = re.compile(r"([0-9a-f]{64})  ([a-z0-9_-]{1,64}\.(?:safetensors|json))")
_BLOCK = 8 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What is to be saved."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """File stem -> name -> tensor: "model", "optimizer", ..."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Everything else, as JSON can hold it."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a file says of a tensor, known without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A checkpoint whose checksums held when it was opened."""

    path: Path
    step: int
    state: Mapping[str, Any]
    aliases: Mapping[str, Mapping[str, str]]
    """File stem -> name -> the name under which the same tensor is stored. A file that is not here is not looked at."""

    def specs(self, stem: str) -> dict[str, TensorSpec]:
        """Names, shapes and dtypes of a file's tensors; empty where there is no such file.

        Raises:
            TrainError: the file is damaged, lacks a tensor, or holds too many or one of an unknown type.
        """
        if stem not in self.aliases:
            return {}
        file = self._file(stem)
        with _opened(file) as tensors:
            if len(tensors.keys()) > MAX_TENSORS:
                raise TrainError(f"{file} holds more than {MAX_TENSORS} tensors")
            stored = {name: _spec(tensors.get_slice(name), file) for name in tensors.keys()}  # noqa: SIM118
        for name, original in self.aliases.get(stem, {}).items():
            if original not in stored:
                raise TrainError(f"{self.path / STATE} says that {name} is {original}, which {file.name} lacks")
            stored[name] = stored[original]
        return stored

    def read(
        self, stem: str, expected: Mapping[str, Tensor | TensorSpec], *, partly: bool = False
    ) -> dict[str, Tensor]:
        """Read a file's tensors, all of which must be as expected; nothing is allocated before that is known.

        Args:
            stem: "model" for model.safetensors.
            expected: every name with a tensor or spec of the right shape and dtype.
            partly: the file may hold more, which is left unread.

        Raises:
            TrainError: a tensor is missing, not expected, or of another shape or dtype.
        """
        self._require_match(stem, expected, partly)
        stored_as = {name: self.aliases.get(stem, {}).get(name, name) for name in expected}
        with _opened(self._file(stem)) as tensors:
            # Cloned: what safetensors returns may be a view of the file, which a later step removes.
            found = {original: tensors.get_tensor(original).clone() for original in dict.fromkeys(stored_as.values())}
        return {name: found[original] for name, original in stored_as.items()}

    def _file(self, stem: str) -> Path:
        return self.path / f"{stem}.safetensors"

    def _require_match(self, stem: str, expected: Mapping[str, Tensor | TensorSpec], partly: bool) -> None:
        specs = self.specs(stem)
        if partly:
            specs = {name: spec for name, spec in specs.items() if name in expected}
        remedy = "it belongs to another model: resume with the config in the run's folder"
        if odd := sorted(specs.keys() ^ expected.keys()):
            side = "has" if odd[0] in specs else "lacks"
            raise TrainError(f"{self._file(stem)} {side} {odd[0]} ({len(odd)} tensors differ)", remedy)
        for name, spec in specs.items():
            wanted = expected[name]
            if spec.shape != tuple(wanted.shape) or spec.dtype != wanted.dtype:
                raise TrainError(
                    f"{self._file(stem)}: {name} is {tuple(spec.shape)} {spec.dtype}, "
                    f"the model's is {tuple(wanted.shape)} {wanted.dtype}",
                    remedy,
                )


# safetensors' words; others (8-bit floats, complex numbers) are in no state that this program saves.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def save(folder: Path, snapshot: Snapshot, keep: int) -> Path:
    """Write a checkpoint and, once it is safe, remove those older than the newest `keep`.

    Args:
        folder: of all checkpoints of a run; made where it is missing.
        snapshot: what to save. A checkpoint of the same step is replaced.
        keep: how many stay, at least two: only a checkpoint that is read again proves that the disk kept it.

    Returns:
        The checkpoint's folder.

    Raises:
        TrainError: it could not be written (disk full, folder not writable); the ones before it are untouched.
    """
    assert keep >= 2, keep
    final = folder / f"step-{snapshot.step:08d}"
    partial = final.with_name(f"{final.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        _write(partial, snapshot)
        _replace(partial, final)
    except (OSError, SafetensorError, TrainError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _not_written(folder, snapshot, error) from error
    older = [path for step, path in _finished(folder) if step <= snapshot.step]
    for path in older[keep:]:
        _remove(path)
    return final


def newest(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Open the newest checkpoint that can be trusted.

    Args:
        folder: of all checkpoints of a run.
        warn: told of every damaged checkpoint that is passed over.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        TrainError: there are checkpoints, and every one is damaged.
    """
    damaged = []
    for step, path in _finished(folder):
        try:
            return open_checkpoint(path)
        except TrainError as error:
            damaged.append(error.message)
            warn(f"checkpoint of step {step} is passed over: {error.message}")
    if damaged:
        raise TrainError(
            f"none of the {len(damaged)} checkpoints in {folder} can be trusted: {damaged[0]}",
            "restore one from a backup, or start a new run",
        )
    return None


def of_step(folder: Path, step: int) -> Checkpoint:
    """Open the checkpoint of a step.

    Raises:
        UsageError: there is none.
        TrainError: see `open_checkpoint`.
    """
    found = dict(_finished(folder))
    if step not in found:
        known = ", ".join(map(str, sorted(found))) or "none at all"
        raise UsageError(f"{folder} has no checkpoint of step {step}", f"there are {known}")
    return open_checkpoint(found[step])


def open_checkpoint(path: Path) -> Checkpoint:
    """Open one checkpoint after checking every byte of it.

    Raises:
        TrainError: a file is missing, damaged or not of this format.
    """
    sums = _read_sums(path)
    for name, expected in sums.items():
        found = _hash(path / name)
        if found != expected:
            raise TrainError(f"{path / name} is damaged: its sha256 is not the one in {SUMS}")
    try:
        content = json.loads(_read_small(path / STATE, MAX_STATE_BYTES))
        step, state, aliases = content["step"], content["state"], content["aliases"]
        if content["format"] != FORMAT:
            raise TrainError(f"{path} has format {content['format']!r}; this program reads {FORMAT}")
        if type(step) is not int or not isinstance(state, dict):
            raise TypeError
        aliases = {str(stem): {str(k): str(v) for k, v in names.items()} for stem, names in aliases.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TrainError(f"{path / STATE} is not a checkpoint's state") from None
    if {f"{stem}.safetensors" for stem in aliases} | {STATE} != sums.keys():
        raise TrainError(f"{path / SUMS} does not list the files that {STATE} names")
    return Checkpoint(path, step, state, aliases)


def set_aside_after(folder: Path, step: int) -> list[str]:
    """Rename checkpoints of later steps, so that no later resume takes them for this run's future.

    Returns:
        The names they have now; nothing is deleted.
    """
    renamed = []
    for later, path in _finished(folder):
        if later > step:
            aside = path.with_name(f"{path.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            renamed.append(aside.name)
    return renamed


def sweep(folder: Path) -> None:
    """Delete what an interrupted save or removal left behind."""
    for path in folder.iterdir():
        if _LEFT_OVER.fullmatch(path.name):
            shutil.rmtree(path)


def _finished(folder: Path) -> list[tuple[int, Path]]:
    """Steps and folders that have their final name, newest first."""
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _FINAL.fullmatch(path.name))]
    return sorted(((int(match[1]), path) for match, path in found), reverse=True)


def _write(partial: Path, snapshot: Snapshot) -> None:
    own, aliases = {}, {}
    for stem, tensors in snapshot.tensors.items():
        own[stem], aliases[stem] = _without_ties(tensors)
    content = {"format": FORMAT, "step": snapshot.step, "aliases": aliases, "state": snapshot.state}
    text = canonical_json(content)
    partial.mkdir()
    for stem, tensors in own.items():
        save_file(tensors, partial / f"{stem}.safetensors")
    (partial / STATE).write_bytes(text)
    names = sorted(path.name for path in partial.iterdir())
    for name in names:  # safetensors keeps its files from everybody else; let the user's umask decide
        (partial / name).chmod((partial / STATE).stat().st_mode)
    lines = [f"{_hash(partial / name, flush=True)}  {name}\n" for name in names]
    (partial / SUMS).write_text("".join(lines))
    sync(partial / SUMS)
    sync(partial)


def _without_ties(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, as safetensors wants them, and the names of those that were the same one."""
    own: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        # A view into a larger tensor would be refused, or saved with all of it.
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        own[name] = tensor.detach() if whole else tensor.detach().clone(memory_format=torch.contiguous_format)
    return own, aliases


def _replace(partial: Path, final: Path) -> None:
    if final.exists():
        _remove(final)
    partial.rename(final)
    sync(final.parent)


def _remove(path: Path) -> None:
    """Take the final name away first, so that a half-removed checkpoint never has it."""
    going = path.with_name(f"{path.name}.removed.partial")
    path.rename(going)
    shutil.rmtree(going)


def _not_written(folder: Path, snapshot: Snapshot, error: Exception) -> TrainError:
    wanted = sum(tensor.nbytes for tensors in snapshot.tensors.values() for tensor in tensors.values())
    what = f"the checkpoint of step {snapshot.step} could not be written to {folder}"
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(folder).free
        # By now the partial checkpoint is gone: what is free is what it could have used.
        if free < wanted or getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
            return TrainError(
                f"{what}: it needs {human_bytes(wanted)} and the disk has {human_bytes(free)}",
                "make room and resume; earlier checkpoints are untouched",
            )
    return TrainError(f"{what}: {error}", "earlier checkpoints are untouched")


def _read_sums(path: Path) -> dict[str, str]:
    *lines, rest = _read_small(path / SUMS, MAX_SUMS_BYTES).decode("ascii", errors="replace").split("\n")
    matches = [_SUM_LINE.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match}
    if rest or None in matches or not {STATE, "model.safetensors"} <= sums.keys():
        raise TrainError(f"{path / SUMS} does not list a checkpoint's files")
    return sums


def _read_small(path: Path, limit: int) -> bytes:
    with _open_regular(path) as stream:
        if (size := os.fstat(stream.fileno()).st_size) > limit:
            raise TrainError(f"{path} is larger than {human_bytes(limit)}")
        content: bytes = stream.read(size)
    return content


def _hash(path: Path, *, flush: bool = False) -> str:
    """sha256 of a file; with `flush`, after its bytes have reached the disk."""
    digest = hashlib.sha256()
    with _open_regular(path) as stream:
        if flush:
            os.fsync(stream.fileno())
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _open_regular(path: Path) -> Any:
    """Open for reading a file that is one: no link that leads elsewhere, no pipe that never ends."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TrainError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TrainError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _spec(part: Any, file: Path) -> TensorSpec:
    word = part.get_dtype()
    if word not in _DTYPES:
        raise TrainError(f"{file} holds a tensor of type {word}", f"known are {', '.join(_DTYPES)}")
    return TensorSpec(tuple(part.get_shape()), _DTYPES[word])


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{file} is not a safetensors file: {error}") from None
