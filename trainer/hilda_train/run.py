"""A run's folder, and what must be the same for it to be gone on with.

RUN/config.yaml      the effective config: every value, nothing "auto"
RUN/run.json         the caches' names and content hashes, the environment, the command
RUN/log.jsonl        curves            RUN/tensorboard/   the same for TensorBoard
RUN/checkpoints/     step-00000123/ ...

"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hilda_schema.errors import TrainError
from hilda_schema.reader import Cache
from hilda_train.config import FitConfig, differences, dump_effective, from_mapping
from hilda_train.config.strict_yaml import parse
from hilda_train.environment import environment

CONFIG, RUN, CHECKPOINTS = "config.yaml", "run.json", "checkpoints"


def describe_caches(caches: Sequence[Cache]) -> list[dict[str, str]]:
    """What a run depends on of its caches: dataset and content hash; no path, since a cache may be moved."""
    return [{"dataset": c.manifest.recipe.dataset.name, "root_sha256": c.manifest.root_sha256} for c in caches]


def start_run(folder: Path, config: FitConfig, caches: Sequence[Cache]) -> None:
    """Write a new run's description.

    Raises:
        TrainError: the folder holds a run already, or something else.
    """
    if folder.exists() and any(folder.iterdir()):
        remedy = "go on with --resume, or give another --out" if (folder / CONFIG).exists() else "give another --out"
        raise TrainError(f"{folder} is not empty", remedy)
    folder.mkdir(parents=True, exist_ok=True)
    described = {"caches": describe_caches(caches), "environment": environment()}
    write_atomically(folder / RUN, json.dumps(described, indent=2).encode() + b"\n")
    write_atomically(folder / CONFIG, dump_effective(config).encode())


def read_config(folder: Path) -> FitConfig:
    """A run's effective config.

    Raises:
        TrainError: the folder holds no run.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise TrainError(f"{folder} holds no run: there is no {CONFIG}", "give the folder of `hilda-train fit --out`")
    return from_mapping(parse(path.read_text(), str(path)), str(path))


def read_run(folder: Path) -> dict[str, Any]:
    """A run's description.

    Raises:
        TrainError: it is missing or damaged.
    """
    try:
        described: dict[str, Any] = json.loads((folder / RUN).read_text())
    except (OSError, ValueError) as error:
        raise TrainError(f"{folder / RUN} cannot be read: {error}", "start another run") from None
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
    before, now = read_run(folder)["caches"], describe_caches(caches)
    if before != now:
        raise TrainError(
            f"the caches are not those that {folder} was started with: {_which(before, now)}",
            "give the same caches in the same order, or start another run",
        )


def _which(before: list[dict[str, str]], now: list[dict[str, str]]) -> str:
    if len(before) != len(now):
        return f"{len(before)} caches then, {len(now)} now"
    number = next(k for k, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
    old, new = before[number], now[number]
    return (
        f"{old['dataset']} sha256:{old['root_sha256'][:12]} then, {new['dataset']} sha256:{new['root_sha256'][:12]} now"
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
