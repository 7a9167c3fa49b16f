"""Every error a user can meet, one tree, each with a stable code.

HildaError
├── UsageError          usage.*     the request itself is wrong (an option, a selection)
├── DriveError          drive.*     a recorded drive cannot be read as its format demands
│   └── MissingSensor   drive.missing   a sensor file that the tables name is not there
├── TeacherError        teacher.*   a vision model cannot be loaded, trusted or run
├── ClusterError        cluster.*   the processes that do the work cannot do it
│   └── SchedulerLost   cluster.lost    whoever handed out the work is gone
├── CacheError          cache.*     a store cannot be opened, trusted or written
│   ├── CacheNotFound   cache.not-found
│   ├── CacheIncomplete cache.incomplete
│   ├── CacheCorrupt    cache.corrupt   bytes are not the bytes that were sealed
│   ├── CacheFull       cache.full      the disk is full, or a quota
│   ├── CacheVersion    cache.version   written by a newer schema than this program reads
│   ├── CacheConflict   cache.conflict  another recipe, or another writer, owns the store
│   └── NotInCache      cache.absent    the frame, teacher, layer or camera is not stored
├── LabelError         labels.*    a label file cannot be read, trusted or written
└── TrainError          train.*     a run cannot start, go on or be resumed

A message says what happened and where (file, key, frame); `remedy` says what to do next. Command lines print
both on one line each and exit with `exit_code`; nobody is shown a traceback for their own mistake.
"""

from __future__ import annotations

from typing import ClassVar


class HildaError(Exception):
    """Base of the tree.

    Args:
        message: what happened and where, one sentence, no trailing full stop.
        remedy: the next thing to do, ideally a command; empty where there is none.
    """

    code: ClassVar[str] = "hilda"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f"; {self.remedy}" if self.remedy else "")


class UsageError(HildaError):
    """The request itself is wrong: an option, a name, a selection."""

    code = "usage"
    exit_code = 2


class DriveError(HildaError):
    """A recorded drive cannot be read as its format demands."""

    code = "drive.format"


class MissingSensor(DriveError):
    """A sensor file that the drive's tables name is not there."""

    code = "drive.missing"


class TeacherError(HildaError):
    """A vision model cannot be loaded, trusted or run."""

    code = "teacher"


class ClusterError(HildaError):
    """The processes that do the work cannot do it."""

    code = "cluster"


class SchedulerLost(ClusterError):
    """Whoever handed out the work is gone, and with it all tasks."""

    code = "cluster.lost"


class CacheError(HildaError):
    """A store cannot be opened, trusted or written."""

    code = "cache"


class CacheNotFound(CacheError):
    """There is no store at that place."""

    code = "cache.not-found"


class CacheIncomplete(CacheError):
    """An extraction into the store has not finished."""

    code = "cache.incomplete"


class CacheCorrupt(CacheError):
    """The bytes on disk are not the bytes that were sealed."""

    code = "cache.corrupt"


class CacheFull(CacheError):
    """The disk, or a quota on it, holds no more."""

    code = "cache.full"


class CacheVersion(CacheError):
    """The store was written by a schema that this program does not read."""

    code = "cache.version"


class CacheConflict(CacheError):
    """Another recipe, or another writer, owns the store."""

    code = "cache.conflict"


class NotInCache(CacheError):
    """The frame, teacher, layer or camera asked for is not stored."""

    code = "cache.absent"


class LabelError(HildaError):
    """A file of labels cannot be read, trusted or written, or lacks a frame."""

    code = "labels"


class TrainError(HildaError):
    """A training run cannot start, go on or be resumed."""

    code = "train"
