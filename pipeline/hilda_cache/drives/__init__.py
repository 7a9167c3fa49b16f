"""One reader per dataset, all yielding the same frozen dataclasses (`frame.py`).

`open_drive` is the one door: readers are imported when asked for, so that opening a KITTI drive does not load the
Feather reader of Argoverse. A user's own reader is named as `module:factory` or `path/to/file.py:factory`
(docs/own-drive.md); `conformance.py` checks one.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from hilda_cache.drives.files import naming_folders
from hilda_cache.drives.frame import CameraView, Drive, Frame, FrameInfo, Points, PointsReport
from hilda_cache.user_code import UserCode, code_revision, load_user_code, parse_user_code
from hilda_schema.errors import DriveError, HildaError, UsageError

__all__ = [
    "DATASETS",
    "CameraView",
    "Drive",
    "Frame",
    "FrameInfo",
    "Points",
    "PointsReport",
    "open_drive",
    "own_reader",
    "reader_options",
    "recorded_reader",
]

# dataset name -> "module:class"; every class takes (root, **options)
DATASETS = {
    "argoverse2": "hilda_cache.drives.argoverse2:Argoverse2",
    "kitti_raw": "hilda_cache.drives.kitti_raw:KittiRaw",
    "nuscenes": "hilda_cache.drives.nuscenes:NuScenes",
    "pandaset": "hilda_cache.drives.pandaset:PandaSet",
    "semantickitti": "hilda_cache.drives.semantickitti:SemanticKitti",
}

READER = "reader"
"""The option under which a store says which reader of a user's own it was made with."""


def open_drive(dataset: str, root: str | Path, **options: str) -> Drive:
    """Open a recorded drive.

    Args:
        dataset: one of `DATASETS`, or a reader of the user's own: `module:factory`, `path/to/file.py:factory`. It is
            called as `factory(root, **options)` and returns a `Drive`.
        root: the dataset's folder, as its publisher lays it out.
        options: the reader's own, e.g. `lidar="both"` for PandaSet or `version="v1.0-mini"` for nuScenes.

    Raises:
        UsageError: an unknown dataset or option.
        DriveError: the folder does not hold that dataset, or the user's reader fails.
    """
    known = set(reader_options(dataset))
    if unknown := sorted(set(options) - known):
        raise UsageError(f"{dataset} has no option {unknown[0]!r}", f"it takes {', '.join(sorted(known)) or 'none'}")
    folder = Path(root).resolve()
    with naming_folders():
        if not folder.is_dir():
            raise DriveError(f"{root} is not a folder", "give the folder that holds the raw dataset")
        if (code := own_reader(dataset)) is not None:
            return _open_own(code, folder, options)
        drive: Drive = _reader(dataset)(folder, **options)
        return drive


def reader_options(dataset: str) -> tuple[str, ...]:
    """Names of the options that a dataset's reader takes.

    Raises:
        UsageError: an unknown dataset.
        DriveError: the user's reader cannot be imported.
    """
    if (code := own_reader(dataset)) is not None:
        _, factory = load_user_code(code, DriveError)
        return tuple(inspect.signature(factory).parameters)[1:]
    names: tuple[str, ...] = _reader(dataset).OPTIONS
    return names


def own_reader(dataset: str) -> UserCode | None:
    """The user's reader that `dataset` names; None where it is one of `DATASETS`.

    Raises:
        UsageError: it is neither.
    """
    if dataset in DATASETS:
        return None
    remedy = f"use one of {', '.join(sorted(DATASETS))}, or your own reader: module:factory or path/to/file.py:factory"
    code = parse_user_code(dataset, "dataset", remedy)
    if code is None:
        raise UsageError(f"dataset {dataset!r} is not known", remedy)
    return code


def recorded_reader(dataset: str) -> dict[str, str]:
    """What a store says of a user's reader beside its options: its name and the state of its code.

    Two readers of one folder may differ in any value, so that the code is part of what determines a store's bytes.

    Returns:
        {"reader": text}; empty for one of `DATASETS`.
    """
    if (code := own_reader(dataset)) is None:
        return {}
    module, _ = load_user_code(code, DriveError)
    return {READER: " ".join(filter(None, (code.public, code_revision(module))))}


def _open_own(code: UserCode, folder: Path, options: dict[str, str]) -> Drive:
    _, factory = load_user_code(code, DriveError)
    try:
        with code.importable():
            drive = factory(folder, **options)
    except HildaError:
        raise
    except Exception as error:  # the user's own code
        first = (str(error).splitlines() or [""])[0]
        raise DriveError(f"{code.public} failed on {folder}: {type(error).__name__}: {first}") from error
    if not isinstance(drive, Drive):
        raise DriveError(f"{code.public} returned {type(drive).__name__}, not a Drive", "derive it from that class")
    if drive.dataset in DATASETS:
        raise DriveError(
            f"{code.public} calls its dataset {drive.dataset!r}, which the reader of this package does",
            "give it a name of its own",
        )
    return drive


def _reader(dataset: str) -> Any:
    module, _, name = DATASETS[dataset].partition(":")
    return getattr(import_module(module), name)
