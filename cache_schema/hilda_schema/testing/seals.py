"""What a seal must say of its part: ids, order, keys, poses, sources, sizes.

Legend: F frames.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hilda_schema.errors import UsageError
from hilda_schema.keys import Key
from hilda_schema.layout import LIDAR
from hilda_schema.manifest import FrameRow, Recipe, Seal
from hilda_schema.testing import rules
from hilda_schema.testing.rules import Rule

POSE_TOLERANCE = 1e-3  # of R R^T from the identity: poses printed with a few digits pass, scaled ones do not


def check_seal(seal: Seal, part: str, recipe: Recipe) -> Iterator[tuple[Rule, str]]:
    """What is wrong about what a seal says.

    Args:
        seal: read from the part's folder.
        part: the folder's name.
        recipe: the manifest's.

    Yields:
        The rule, and how it is broken.
    """
    if seal.part != part:
        yield rules.PART_ID, f"part is {seal.part}, the folder is {part}"
    if seal.recipe_digest != recipe.digest():
        yield rules.DIGEST, "recipe_digest is not that of the manifest's recipe"
    if tuple(camera.name for camera in seal.cameras) != recipe.dataset.cameras:
        yield rules.SIZES, "cameras are not the recipe's cameras in their order"
    expected = {f"{teacher.name}/{layer.name}" for teacher in recipe.teachers for layer in teacher.layers}
    for layer in sorted(seal.encoding_error.keys() ^ expected):
        yield rules.LAYERS, f"encoding_error {'lacks' if layer in expected else 'names'} {layer}"
    yield from _check_order(seal)
    yield from _check_sources(seal)
    for frame in seal.frames:
        yield from _check_frame(frame, seal.scene, recipe)


def _check_order(seal: Seal) -> Iterator[tuple[Rule, str]]:
    if len({frame.key for frame in seal.frames}) != len(seal.frames):
        yield rules.TIME_ORDER, "a key is there twice"
    for before, after in pairwise(seal.frames):
        if after.stamp_ns < before.stamp_ns:
            yield rules.TIME_ORDER, f"{after.key} is earlier than {before.key} before it"


def _check_sources(seal: Seal) -> Iterator[tuple[Rule, str]]:
    for name, digest in seal.sources.items():
        if name.startswith("/") or not re.fullmatch(r"[0-9a-f]{64}", digest):
            yield rules.SOURCES, f"sources: {name[:80]!r} is no relative name with a sha256"
    for camera in seal.cameras:
        if 0 in (camera.width_px, camera.height_px) and any(camera.name not in each.absent for each in seal.frames):
            yield rules.SIZES, f"{camera.name} has no size, but a frame has its image"


def _check_frame(frame: FrameRow, scene: str, recipe: Recipe) -> Iterator[tuple[Rule, str]]:
    yield from _check_key(frame.key, scene, recipe)
    for name in sorted(frame.absent.keys() - {LIDAR, *recipe.dataset.cameras}):
        yield rules.PRESENT, f"{frame.key}: {name[:80]!r} is absent, but no camera of the store"
    for name in ("world_SE3_lidar", "world_SE3_ego"):
        if not is_pose(np.array(getattr(frame, name)).reshape(4, 4)):
            yield rules.POSES, f"{frame.key}: {name} is no rotation and translation, row by row"


def _check_key(text: str, scene: str, recipe: Recipe) -> Iterator[tuple[Rule, str]]:
    try:
        key = Key.parse(text)
    except UsageError as error:
        yield rules.KEYS, error.message
        return
    if key.scene != scene or str(key) != text or not key.frame or key.camera:
        yield rules.KEYS, f"{text[:200]!r} is not a frame of scene {scene[:200]!r}"
    if key.drive != recipe.dataset.name:
        yield rules.DRIVE, f"{text[:200]!r} is not of drive {recipe.dataset.name!r}"


def is_pose(matrix: NDArray[np.float64]) -> bool:
    """Whether a (4, 4) matrix is a rotation (not a mirror) and a translation."""
    rotation = matrix[:3, :3]
    orthonormal = np.abs(rotation @ rotation.T - np.eye(3)).max() <= POSE_TOLERANCE
    return bool(orthonormal and np.linalg.det(rotation) > 0 and (matrix[3] == (0, 0, 0, 1)).all())
