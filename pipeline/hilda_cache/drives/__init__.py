"""One reader per dataset, all yielding the same frozen dataclasses (`frame.py`).

`open_drive` is the one door: readers are imported when asked for, so that opening a KITTI drive does not load the
Feather reader of Argoverse.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from hilda_cache.drives.frame import CameraView, Drive, Frame, FrameInfo, Points, PointsReport
from hilda_schema.errors import DriveError, UsageError

__all__ = [
    "DATASETS",
    "CameraView",
    "Drive",
    "Frame",
    "FrameInfo",
    "Points",
    "PointsReport",
    "open_drive",
    "reader_options",
]

# dataset name -> "module:class"; every class takes (root, **options)
DATASETS = {
    "argoverse2": "hilda_cache.drives.argoverse2:Argoverse2",
    "kitti_raw": "hilda_cache.drives.kitti_raw:KittiRaw",
    "nuscenes": "hilda_cache.drives.nuscenes:NuScenes",
    "pandaset": "hilda_cache.drives.pandaset:PandaSet",
    "semantickitti": "hilda_cache.drives.semantickitti:SemanticKitti",
}


def open_drive(dataset: str, root: str | Path, **options: str) -> Drive:
    """Open a recorded drive.

    Args:
        dataset: one of `DATASETS`.
        root: the dataset's folder, as its publisher lays it out.
        options: the reader's own, e.g. `lidar="both"` for PandaSet or `version="v1.0-mini"` for nuScenes.

    Raises:
        UsageError: an unknown dataset or option.
        DriveError: the folder does not hold that dataset.
    """
    known = set(reader_options(dataset))
    folder = Path(root).resolve()
    if not folder.is_dir():
        raise DriveError(f"{root} is not a folder", "give the folder that holds the raw dataset")
    if unknown := sorted(set(options) - known):
        raise UsageError(f"{dataset} has no option {unknown[0]!r}", f"it takes {', '.join(sorted(known)) or 'none'}")
    drive: Drive = _reader(dataset)(folder, **options)
    return drive


def reader_options(dataset: str) -> tuple[str, ...]:
    """Names of the options that a dataset's reader takes.

    Raises:
        UsageError: an unknown dataset.
    """
    names: tuple[str, ...] = _reader(dataset).OPTIONS
    return names


def _reader(dataset: str) -> Any:
    if dataset not in DATASETS:
        raise UsageError(f"dataset {dataset!r} is not known", f"use one of {', '.join(sorted(DATASETS))}")
    module, _, name = DATASETS[dataset].partition(":")
    return getattr(import_module(module), name)
