"""Reading files that strangers wrote: nothing leaves the root, exhausts memory or passes for what it is not.

Every reader opens its tables and LiDAR files here, so that a broken byte is reported in the same words
everywhere.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.frame import Points
from hilda_schema.errors import DriveError, HildaError, MissingSensor
from hilda_schema.keys import Key

MAX_SWEEP_BYTES = 256 << 20  # 100 times a large sweep
MAX_TABLE_BYTES = 64 << 20  # for tables of one scene; whole-dataset tables give their own bound
MAX_NAME_BYTES = 255  # of one step of a path, on every common file system
MAX_RANGE_M = 10_000.0  # no automotive LiDAR sees a tenth of it: such a coordinate is another format's bytes

_DAMAGED = "the file is damaged or incomplete: download it again"


def contained(root: Path, relative: str) -> Path:
    """Join a name found in a dataset to the dataset's root.

    Args:
        root: resolved folder.
        relative: "/"-separated path below it, as a table names it.

    Returns:
        `root / relative`, which need not exist.

    Raises:
        DriveError: the name is no text, empty, absolute, holds "..", a backslash or NUL, or a symbolic link
            leads out of root.
    """
    steps = PurePosixPath(relative).parts if isinstance(relative, str) else ()
    if not steps or steps[0] == "/" or ".." in steps or "\\" in relative or "\0" in relative:
        raise DriveError(f"{relative!r} is not a path below {root}", "a table of the dataset has been tampered with")
    path = root.joinpath(*steps)
    try:
        if any(len(os.fsencode(step)) > MAX_NAME_BYTES for step in steps):
            raise ValueError("a name is too long for a file")
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError) as error:  # also: a circle of links, characters no name can have
        raise DriveError(f"{str(path)[:200]!r} is no path: {error}", _DAMAGED) from error
    if not inside:
        raise DriveError(f"{path} is a link that leaves {root}", "copy the files into the folder, or open the real one")
    return path


def file_size(path: Path, max_bytes: int) -> int:
    """Size in bytes of a regular file of at most `max_bytes`.

    Raises:
        MissingSensor: it is not there.
        DriveError: it is no regular file, too large, empty, or may not be read.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingSensor(f"{path} is not there", "fetch the missing part of the dataset") from error
    except OSError as error:
        raise DriveError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if not stat.S_ISREG(status.st_mode):
        raise DriveError(f"{path} is not a regular file", _DAMAGED)
    if status.st_size == 0:
        raise DriveError(f"{path} is empty (0 bytes)", _DAMAGED)
    if status.st_size > max_bytes:
        raise DriveError(
            f"{path} holds {status.st_size} bytes, more than the {max_bytes} such a file can have", _DAMAGED
        )
    return status.st_size


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """All bytes of a regular file of at most `max_bytes`.

    Raises:
        MissingSensor: it is not there.
        DriveError: as `file_size`; or it changes while it is read.
    """
    size = file_size(path, max_bytes)
    try:
        with path.open("rb") as file:
            data = file.read(size + 1)  # not `max_bytes`: Python allocates what it is asked to read
    except OSError as error:
        raise DriveError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if len(data) != size:
        raise DriveError(f"{path} changes while it is read", "run the command again when nobody writes to it")
    return data


def read_text(path: Path, max_bytes: int = MAX_TABLE_BYTES) -> str:
    """A table in UTF-8.

    Raises:
        DriveError: it is not there (never MissingSensor: a table is no sensor file), too large, empty, or
            not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode()
    except MissingSensor as error:
        raise DriveError(error.message, "give the folder that holds the whole raw dataset") from error
    except UnicodeDecodeError as error:
        raise DriveError(f"{path} is not UTF-8 text", _DAMAGED) from error


def read_json(path: Path, max_bytes: int = MAX_TABLE_BYTES) -> Any:
    """A JSON table: strict, no NaN, no key twice.

    Raises:
        DriveError: it is not there, too large, not JSON, nested too deep, or names a key twice in one object.
    """
    text = read_text(path, max_bytes)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise DriveError(f"{path} is nested too deep for a table", _DAMAGED) from error
    except ValueError as error:
        raise DriveError(f"{path} is not valid JSON: {error}", _DAMAGED) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError(f"a key stands twice in {sorted(name for name, _ in pairs)}")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def read_float32_rows(path: Path, columns: int) -> NDArray[np.float32]:
    """Rows of a headerless LiDAR file (KITTI, nuScenes `.bin`), little-endian float32.

    Args:
        path: the file.
        columns: numbers a point, from the dataset's specification; never guessed from the file.

    Returns:
        (N, columns) float32, N >= 1.

    Raises:
        MissingSensor: it is not there.
        DriveError: it is empty, too large, or does not hold a whole number of rows.
    """
    size = file_size(path, MAX_SWEEP_BYTES)
    stride = 4 * columns
    if size % stride:
        fitting = [f"{4 * other} ({other} x float32)" for other in range(3, 9) if size % (4 * other) == 0]
        found = f"its size fits a stride of {' or '.join(fitting)}" if fitting else "it is cut inside a point"
        raise DriveError(
            f"{path} holds {size} bytes, {size % stride} more than a multiple of the expected stride "
            f"{stride} ({columns} x float32): {found}",
            _DAMAGED,
        )
    return np.frombuffer(read_bytes(path, MAX_SWEEP_BYTES), dtype="<f4").reshape(-1, columns)


def drop_non_finite(points: Points) -> tuple[Points, int]:
    """Leave out the points whose coordinates or intensity are NaN or infinite.

    Returns:
        The points (the same object where all are finite), every array cut alike, and how many were left out.
    """
    keep = np.isfinite(points.xyz_m).all(axis=1) & np.isfinite(points.intensity)
    dropped = int(len(keep) - np.count_nonzero(keep))
    if not dropped:
        return points, 0
    columns = {field.name: getattr(points, field.name) for field in fields(points)}
    return replace(points, **{name: a[keep] for name, a in columns.items() if a is not None}), dropped


def check_range(xyz_m: NDArray[np.floating], path: Path) -> None:
    """Refuse a sweep with a coordinate beyond `MAX_RANGE_M`, as random bytes read as floats have.

    Args:
        xyz_m: (N, 3) finite, in the sensor's or the vehicle's frame.
        path: the file they come from.

    Raises:
        DriveError: naming the file and the first such point.
    """
    far = (np.abs(xyz_m) > MAX_RANGE_M).any(axis=1)
    if far.any():
        row = int(np.argmax(far))
        raise DriveError(f"{path}: point {row} lies at {xyz_m[row].tolist()} m, where no LiDAR sees", _DAMAGED)


def image_size_px(path: Path) -> tuple[int, int]:
    """Width and height of a JPEG or PNG, from its header alone.

    Raises:
        MissingSensor: it is not there.
        DriveError: it is empty, no JPEG or PNG, its header is cut, or it claims more pixels than Pillow
            takes for a decompression bomb.
    """
    from PIL import Image, UnidentifiedImageError  # not at the top: caches are read and shared without Pillow

    file_size(path, MAX_SWEEP_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("JPEG", "PNG")) as image:
                return image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DriveError(f"{path} claims too many pixels: {error}", _DAMAGED) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DriveError(f"{path} has no readable JPEG or PNG header", _DAMAGED) from error


def first_image_size_px(paths: Iterable[Path]) -> tuple[int, int] | None:
    """Width and height of the first image that can be opened; None where there is none.

    Missing and damaged images are passed over: they are named when their own frame is read.
    """
    for path in paths:
        try:
            return image_size_px(path)
        except DriveError:
            continue
    return None


@contextmanager
def naming_folders() -> Iterator[None]:
    """Turn what the operating system says about folders that are looked through into one line.

    Raises:
        DriveError: the body met an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DriveError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions") from error


@contextmanager
def naming_frame(key: Key) -> Iterator[None]:
    """Put the frame's key before the message of every error raised inside.

    Raises:
        HildaError: of the class that the body raised.
    """
    try:
        yield
    except HildaError as error:
        raise type(error)(f"{key}: {error.message}", error.remedy) from error
