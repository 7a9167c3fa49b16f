"""A run's folder, and what must be the same for it to be gone on with.

RUN/run.json         the caches' datasets and content hashes, the environment
RUN/config.yaml      the effective config: every value, nothing "auto"; written last, so a folder with it holds a run
RUN/log.jsonl        curves            RUN/tensorboard/   the same for TensorBoard
RUN/checkpoints/     step-00000123/ ...
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hilda_schema.durable import PARTIAL, write_atomically
from hilda_schema.errors import TrainError
from hilda_schema.reader import Cache
from hilda_train.config import FitConfig, differences, dump_effective, from_mapping
from hilda_train.config.strict_yaml import parse
from hilda_train.environment import environment

CONFIG, RUN, CHECKPOINTS = "config.yaml", "run.json", "checkpoints"
_UNFINISHED = {RUN, RUN + PARTIAL, CONFIG + PARTIAL}  # all that a start which was cut short can leave


def describe_caches(caches: Sequence[Cache]) -> list[dict[str, str]]:
    """What a run depends on of its caches: dataset and content hash; no path, since a cache may be moved."""
    return [{"dataset": c.manifest.recipe.dataset.name, "root_sha256": c.manifest.root_sha256} for c in caches]


def require_new(folder: Path) -> None:
    """Refuse a folder that a new run cannot have.

    Raises:
        TrainError: it holds a run already, or something else, or cannot be read.
    """
    try:
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_start(folder, error) from error
    if names - _UNFINISHED:
        holds_run = (folder / CONFIG).exists()
        remedy = "go on with --resume, or give another --out" if holds_run else "give another --out"
        raise TrainError(f"{folder} is not empty", remedy)


def start_run(folder: Path, config: FitConfig, caches: Sequence[Cache]) -> None:
    """Write a new run's description.

    Raises:
        TrainError: the folder holds a run already, or something else, or cannot be written.
    """
    described = {"caches": describe_caches(caches), "environment": environment()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        require_new(folder)
        write_atomically(folder / RUN, json.dumps(described, indent=2).encode() + b"\n")
        write_atomically(folder / CONFIG, dump_effective(config).encode())
    except OSError as error:
        raise _cannot_start(folder, error) from error


def _cannot_start(folder: Path, error: OSError) -> TrainError:
    return TrainError(f"no run can be started in {folder}: {error.strerror}", "give another --out")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others from training in a run's folder; the system lets go of it when this process ends, however it does.

    Raises:
        TrainError: another process trains in it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TrainError(f"another process trains in {folder}", "wait for it, or end it first") from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(descriptor)


def read_config(folder: Path) -> FitConfig:
    """A run's effective config.

    Raises:
        TrainError: the folder holds no run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise TrainError(f"{folder} holds no run: there is no {CONFIG}", "give the folder of `hilda-train fit --out`")
    return from_mapping(parse(path.read_bytes(), str(path)), str(path))


def read_run(folder: Path) -> dict[str, Any]:
    """A run's description.

    Raises:
        TrainError: it is missing or damaged.
    """
    try:
        described = json.loads((folder / RUN).read_text())
    except (OSError, ValueError) as error:
        raise TrainError(f"{folder / RUN} cannot be read: {error}", "start another run") from None
    if not isinstance(described, dict) or not isinstance(described.get("caches"), list):
        raise TrainError(f"{folder / RUN} does not describe a run", "start another run")
    return described


def check_same_run(folder: Path, config: FitConfig, caches: Sequence[Cache]) -> None:
    """Refuse to go on with another config or other caches.

    Raises:
        TrainError: naming what differs.
    """
    changed = differences(read_config(folder), config)
    if changed:
        raise TrainError(
            f"{folder} was started with another config: {'; '.join(changed[:6])}",
            "repeat the options of the first run, or start another run with another --out",
        )
    check_same_caches(folder, caches)


def check_same_caches(folder: Path, caches: Sequence[Cache]) -> None:
    """Refuse caches other than those that a run was started with.

    Raises:
        TrainError: naming the first that differs.
    """
    before, now = read_run(folder)["caches"], describe_caches(caches)
    if before != now:
        raise TrainError(
            f"the caches are not those that {folder} was started with: {_which(before, now)}",
            "give the same caches in the same order, or start another run",
        )


def _which(before: list[Any], now: list[Any]) -> str:
    if len(before) != len(now):
        return f"{len(before)} caches then, {len(now)} now"
    old, new = next((a, b) for a, b in zip(before, now, strict=True) if a != b)
    return f"{json.dumps(old)} then, {json.dumps(new)} now"
