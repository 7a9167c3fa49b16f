"""What a user asked of `hilda-cache`: plain values, no dataset opened, no model loaded.

A request is what travels to Dask workers, so it is small, picklable and holds no secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hilda_cache.drives import READER, Drive, open_drive, own_reader, recorded_reader
from hilda_schema.errors import UsageError

if TYPE_CHECKING:
    from hilda_cache.teachers.spec import TeacherSpec
    from hilda_schema.manifest import DatasetInfo

Precision = Literal["auto", "float32", "bfloat16"]

ASKED = "asked for"
"""Ends the recorded reason of a precision that somebody chose, which nothing was measured for."""


@dataclass(frozen=True, slots=True)
class DriveSpec:
    """A drive as workers open it: dataset, folder and the reader's options."""

    dataset: str
    root: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_store(cls, dataset: DatasetInfo, root: Path, reader: str | None = None) -> DriveSpec:
        """The drive that a store was made from, where it lies now.

        Args:
            dataset: as the store's recipe says it.
            root: the raw dataset.
            reader: where the user's own reader lies, which the store cannot know; None for a dataset of this package.

        Raises:
            UsageError: the store was made with a user's own reader and none is given, or the other way round.
        """
        options = dict(dataset.options)
        own = options.pop(READER, "")
        if own and reader is None:
            raise UsageError(f"the store was made with a reader of its own, {own}", "name it with --dataset")
        if reader is not None and reader != dataset.name and not own:
            raise UsageError(f"the store was made from {dataset.name}, not {reader}", "leave --dataset out")
        name = with_absolute_path(reader) if own and reader else dataset.name
        return cls(name, str(root.resolve()), tuple(sorted(options.items())))

    def open(self) -> Drive:
        """Open the drive; see `open_drive` for the errors."""
        return open_drive(self.dataset, self.root, **dict(self.options))

    def recorded_options(self) -> dict[str, str]:
        """The options as a store keeps them: the reader's, and which reader it was where it is a user's own."""
        return dict(self.options) | recorded_reader(self.dataset)


def with_absolute_path(dataset: str) -> str:
    """The name of a dataset, or of a user's reader as every process finds it.

    Raises:
        UsageError: it is neither.
    """
    code = own_reader(dataset)
    return dataset if code is None else code.text


@lru_cache(maxsize=1)
def open_drive_once(spec: DriveSpec) -> Drive:
    """The drive, opened once per process: the tables of a large one take a minute to read."""
    return spec.open()


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a drive: None or empty means all of it."""

    scenes: tuple[str, ...] | None = None
    frames: str = ":"  # A:B, positions within each scene, as a Python slice
    cameras: tuple[str, ...] | None = None

    def frame_slice(self) -> slice:
        """The frames as a slice.

        Raises:
            UsageError: not of the form A:B with whole numbers.
        """
        match = re.fullmatch(r"(-?\d+)?:(-?\d+)?", self.frames)
        if not match:
            raise UsageError(f"--frames {self.frames!r} is not a range", "write A:B, A: or :B, e.g. --frames 0:10")
        start, stop = (int(text) if text else None for text in match.groups())
        return slice(start, stop)


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """Everything that `hilda-cache extract` was asked for."""

    drive: DriveSpec
    teachers: tuple[TeacherSpec, ...]
    selection: Selection = Selection()
    encoding: Literal["grid", "point"] = "grid"
    dtype: Literal["float16", "int8"] = "float16"
    precision: Precision = "auto"
    missing: Literal["fail", "skip"] = "fail"
    part_frames: int | None = None
    store_points: bool = True


def parse_image_size(text: str) -> tuple[int, int]:
    """Read "224x448" as (224, 448): height, then width, in pixels.

    Raises:
        UsageError: it is not of that form.
    """
    match = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if not match:
        raise UsageError(f"image size {text!r} is not HEIGHTxWIDTH", "write e.g. --image-size 224x448")
    return int(match[1]), int(match[2])


def split_per_teacher(option: str, values: list[str], names: list[str]) -> dict[str, str]:
    """Read an option that may be given once for all teachers or as NAME=VALUE for one.

    Args:
        option: its name, for messages.
        values: as given on the command line.
        names: the teachers.

    Returns:
        A value for every name that has one.

    Raises:
        UsageError: an unknown teacher, or two values for one.
    """
    common: str | None = None
    own: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals:
            if common is not None:
                raise UsageError(f"{option} is given twice: {common!r} and {value!r}", f"write {option} NAME=VALUE")
            common = value
        elif name not in names:
            raise UsageError(f"{option} names teacher {name!r}", f"the teachers are {', '.join(names)}")
        elif name in own:
            raise UsageError(f"{option} is given twice for teacher {name!r}")
        else:
            own[name] = rest
    return {name: own.get(name, common) for name in names if name in own or common is not None}  # type: ignore[misc]


def name_teacher(text: str) -> tuple[str, str]:
    """Split "dinov2=facebook/dinov2-small" in name and source; without a name, one is made from the source.

    Raises:
        UsageError: the name cannot be a folder name in the store.
    """
    name, equals, source = text.partition("=")
    if not equals:
        source = text
        stem = source.removesuffix("/").rsplit("/", 1)[-1].split("@", 1)[0].split(":", 1)[0]
        name = re.sub(r"[^a-z0-9_-]+", "-", stem.removesuffix(".py").lower()).strip("-_")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
        raise UsageError(
            f"teacher name {name!r} is not usable", "use small letters, digits, - and _: --teacher NAME=SPEC"
        )
    return name, source
