"""Which parts a drive is cut into, and what determines each one's content.

A part is a run of consecutive frames of one scene. Its id is a hash of everything that its bytes depend on, so that
the same inputs give the same id on any machine, and a changed image, calibration or teacher gives another.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hilda_cache.drives import CameraView, Drive, FrameInfo
from hilda_cache.request import Selection
from hilda_schema.errors import DriveError, UsageError
from hilda_schema.keys import Key
from hilda_schema.manifest import PartEntry, Recipe, TeacherInfo, canonical_json, sha256_hex

# Two parts are held in memory, one being taught and one being stored: as float32 tokens, so twice this each.
PART_BYTES = 256 * 2**20
MAX_PART_FRAMES = 64


@dataclass(frozen=True, slots=True)
class PartPlan:
    """A part before it is made: small enough for a million of them to be planned."""

    scene: str
    start: int  # position of the first frame in the scene
    stop: int  # one past the last


@dataclass(frozen=True, slots=True)
class PartOutcome:
    """What a worker reports of a part: small, never arrays."""

    entry: PartEntry
    reused: bool
    images: int
    seconds: dict[str, float]  # stage of the journey -> wall time
    cpu_seconds: dict[str, float]  # -> processor time


def select_cameras(drive: Drive, selection: Selection) -> tuple[str, ...]:
    """The cameras to store, in the drive's own order.

    Raises:
        UsageError: a camera that the drive does not have, or no camera at all.
    """
    if not drive.camera_names:
        raise UsageError(
            f"{drive.dataset} at {drive.root} has no camera folder: a teacher would see nothing",
            "put the dataset's images and their calibration beside the sweeps",
        )
    if selection.cameras is None:
        return drive.camera_names
    for name in selection.cameras:
        if name not in drive.camera_names:
            raise UsageError(f"camera {name!r} is not in this drive", _nearest(name, drive.camera_names))
    return tuple(name for name in drive.camera_names if name in selection.cameras)


def select_scenes(drive: Drive, selection: Selection) -> tuple[str, ...]:
    """The scenes to store, sorted.

    Raises:
        UsageError: a scene that the drive does not have.
    """
    scenes = drive.scenes()
    if selection.scenes is None:
        return scenes
    for name in selection.scenes:
        if name not in scenes:
            raise UsageError(f"scene {name!r} is not in this drive", _nearest(name, scenes))
    return tuple(name for name in scenes if name in selection.scenes)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5]
    return f"did you mean {' or '.join(close)}?" if close else "it has none"


def plan_parts(drive: Drive, selection: Selection, part_frames: int) -> list[PartPlan]:
    """Cut the selected frames into parts of at most `part_frames`, as even as a scene's length allows.

    Raises:
        UsageError: the selection holds no frame, or names a scene that the drive does not have.
    """
    plans = []
    for scene in select_scenes(drive, selection):
        positions = range(len(drive.frames(scene)))[selection.frame_slice()]
        count = -(-len(positions) // part_frames)
        edges = [positions.start + len(positions) * k // count for k in range(count + 1)] if count else []
        plans += [PartPlan(scene, start, stop) for start, stop in pairwise(edges)]
    if not plans:
        longest = max((len(drive.frames(scene)) for scene in select_scenes(drive, selection)), default=0)
        raise UsageError(
            f"the selection holds no frame: --frames {selection.frames} of scenes of at most {longest} frames",
            "widen --scenes or --frames",
        )
    return plans


def find_frame(drive: Drive, key: Key) -> FrameInfo:
    """The frame of a store in the drive that it was made from.

    Raises:
        UsageError: the drive has no such frame.
    """
    found = key.scene in drive.scenes() and next((each for each in drive.frames(key.scene) if each.key == key), None)
    if not found:
        raise UsageError(f"frame {key} is not in {drive.root}", "give the drive that the cache was made from")
    return found


def bytes_per_frame(teachers: Iterable[TeacherInfo], cameras: int, token_bytes: float = 2.0) -> float:
    """Token bytes of one frame in the grid encoding (2 bytes a value in float16)."""
    values = sum(layer.channels * layer.height * layer.width for info in teachers for layer in info.layers)
    return values * cameras * token_bytes


def default_part_frames(teachers: Iterable[TeacherInfo], cameras: int) -> int:
    """As many frames as keep a part near `PART_BYTES`, so that a worker's memory has a known bound."""
    per_frame = bytes_per_frame(teachers, cameras)
    return max(1, min(MAX_PART_FRAMES, int(PART_BYTES // per_frame) if per_frame else MAX_PART_FRAMES))


@dataclass(frozen=True, slots=True)
class Sources:
    """The sensor files behind a part."""

    sha256: dict[str, str]  # drive-relative name -> hash; only files that are there
    missing: tuple[str, ...]  # drive-relative names of files that the tables name and the disk lacks


def hash_sources(drive: Drive, infos: Iterable[FrameInfo], cameras: Iterable[str]) -> Sources:
    """Hash every file that extracting these frames reads."""
    wanted = set(cameras)
    found, missing = {}, []
    for info in infos:
        images = [view.image_path for view in info.cameras if view.name in wanted]
        for path in (*info.lidar_paths, *images):
            name = path.relative_to(drive.root).as_posix()
            digest = file_sha256(path)
            if digest is None:
                missing.append(name)
            else:
                found[name] = digest
    return Sources(found, tuple(sorted(missing)))


def file_sha256(path: Path) -> str | None:
    """sha256 of a regular file's bytes, None where there is no such file.

    Raises:
        DriveError: it is something else (a pipe would never end), or may not be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise DriveError(f"{path} is not a regular file", "restore the file from the dataset")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DriveError(f"{path} cannot be read: {error.strerror}", "check its permissions, or the disk") from error


def calibration_sha256(infos: Iterable[FrameInfo], cameras: Iterable[str]) -> str:
    """Hash of every pose, intrinsic and time stamp that projecting these frames uses."""
    wanted = set(cameras)
    rows = [
        [info.stamp_ns, _exact(info.ego_SE3_lidar), _exact(info.world_SE3_ego)]
        + [_exact_view(view) for view in info.cameras if view.name in wanted]
        for info in infos
    ]
    return sha256_hex(canonical_json(rows))


def _exact(matrix: np.ndarray) -> list[str]:
    return [float(value).hex() for value in np.asarray(matrix).ravel()]


def _exact_view(view: CameraView) -> list[object]:
    numbers = [view.intrinsics, view.cam_SE3_ego, view.world_SE3_ego, np.array(view.distortion)]
    return [view.name, view.stamp_ns, view.width_px, view.height_px, *map(_exact, numbers)]


def part_id(recipe: Recipe, infos: Iterable[FrameInfo], position: int, sources: Sources, calibration: str) -> str:
    """The part's name: 32 hexadecimal digits of the hash of all that its bytes depend on.

    Args:
        recipe: the store's.
        infos: the part's frames, consecutive in their scene.
        position: place of the first one in the scene, as the drive lists it.
        sources: their sensor files.
        calibration: see `calibration_sha256`.
    """
    identity = {
        "schema": recipe.schema_version,
        "recipe": recipe.digest(),
        "frames": [str(info.key) for info in infos],
        "position": position,
        "sources": sources.sha256,
        "missing": list(sources.missing),
        "calibration": calibration,
    }
    return sha256_hex(canonical_json(identity))[:32]
