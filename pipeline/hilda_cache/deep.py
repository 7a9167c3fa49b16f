"""Deep verification: extract some frames again from the drive and a live teacher, and compare with what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.lanes import Stopwatch
from hilda_cache.options import specs_of_store
from hilda_cache.parts import find_frame, hash_sources
from hilda_cache.request import DriveSpec, ExtractRequest, open_drive_once
from hilda_cache.reshape.derive import unreduced
from hilda_cache.work import make_frame, teachers_of
from hilda_schema.content import FrameContent
from hilda_schema.encoding import normalise_uv
from hilda_schema.errors import NotInCache
from hilda_schema.manifest import Recipe
from hilda_schema.reader import Cache, Frame
from hilda_schema.reduction import reduce_channels
from hilda_schema.sampling import sample_grid

MIN_COSINE = 0.999  # below the loss of every encoding, above any other image, layer or revision
MAX_RELATIVE_ERROR = (2 * (1 - MIN_COSINE)) ** 0.5  # of a vector turned by that angle
MAX_PIXEL_ERROR = 0.05
ORIGIN = frozenset({"source", "revision", "licence"})  # may differ: weights and features are compared themselves


def live_request(recipe: Recipe, root: Path, teachers: list[str], reader: str | None = None) -> ExtractRequest:
    """The request that makes a store's frames again, with the drive opened.

    Args:
        recipe: of the store.
        root: the raw dataset.
        teachers: where the store's teachers lie, [NAME=]SPEC each.
        reader: where the user's own reader of the drive lies, if it was one.

    Raises:
        UsageError: the teachers given are not those of the store.
        DriveError: the drive cannot be opened.
    """
    request = ExtractRequest(
        DriveSpec.of_store(recipe.dataset, root, reader), specs_of_store(recipe.teachers, teachers)
    )
    open_drive_once(request.drive)
    return request


def compare_frames(cache: Cache, count: int, request: ExtractRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """Extract `count` frames spread over the store again.

    Returns:
        One row a frame (its key, the smallest cosine of every layer and of all of them, None where there is no pair),
        and what differs, in words.

    Raises:
        TeacherError: a teacher is not the one that the store was made with.
        UsageError: the drive is another.
    """
    recipe = cache.manifest.recipe
    loaded = teachers_of(request, unreduced(recipe), ignoring=ORIGIN)
    drive = open_drive_once(request.drive)
    rows, problems = [], []
    for index in sorted({round(k) for k in np.linspace(0, len(cache) - 1, min(count, len(cache)))}):
        stored = cache[index]
        info = find_frame(drive, stored.key)
        sources = hash_sources(drive, [info], recipe.dataset.cameras)
        live = make_frame(drive, loaded, recipe.dataset.cameras, info, sources, Stopwatch(), skip=True)
        cosines, differing = compare_frame(stored, live)
        rows.append({"frame": str(stored.key), "cosine_min": min(cosines.values(), default=None), "cosines": cosines})
        problems += [f"{stored.key}: {text}" for text in differing]
    return rows, problems


def compare_frame(stored: Frame, live: FrameContent) -> tuple[dict[str, float], list[str]]:
    """Compare a stored frame with a freshly made one: sensors, pairs, pixels, ground, features, global tokens.

    Returns:
        "teacher/layer" -> smallest cosine, and what differs, in words.
    """
    if stored.absent.keys() != live.absent.keys():
        odd = sorted(stored.absent.keys() ^ live.absent.keys())[0]
        return {}, [f"{odd} was absent and is there now" if odd in stored.absent else f"{odd}: {live.absent[odd]}"]
    pairs = stored.pairs
    if not (np.array_equal(pairs.point, live.pairs.point) and np.array_equal(pairs.camera, live.pairs.camera)):
        return {}, ["its point-camera pairs are not those of the drive"]
    problems = _differing_geometry(stored, live)
    for teacher, vectors in live.global_tokens.items():
        seen = np.isfinite(vectors).all(axis=1)
        error = relative_error(stored.global_tokens(teacher)[seen], vectors[seen]).max(initial=0.0)
        if error > MAX_RELATIVE_ERROR:
            problems.append(f"{teacher}'s global token differs from the live teacher's by {error:.1%}")
    cosines = _cosines(stored, live) if len(pairs) else {}
    for name, cosine in cosines.items():
        if cosine < MIN_COSINE:
            problems.append(f"{name} differs from the live teacher: cosine {cosine:.4f}")
    return cosines, problems


def _differing_geometry(stored: Frame, live: FrameContent) -> list[str]:
    problems = []
    shift = float(np.abs(stored.pairs.uv_px - live.pairs.uv_px).max(initial=0.0))
    if shift > MAX_PIXEL_ERROR:
        problems.append(f"pixel positions differ by up to {shift:.3f} px")
    if not np.array_equal(stored.pairs.visible, live.pairs.visible):
        problems.append("other points are hidden from the cameras")
    try:
        points = stored.points
    except NotInCache:
        return problems  # stored without points
    if not (np.array_equal(points.xyz_m, live.xyz_m) and np.array_equal(points.ground, live.ground)):
        problems.append("its points or their ground are not those of the drive")
    return problems


def _cosines(stored: Frame, live: FrameContent) -> dict[str, float]:
    sizes_px = np.array([stored.camera_sizes_px[name] for name in stored.camera_names]).reshape(-1, 2)
    uv = normalise_uv(live.pairs.uv_px, sizes_px[live.pairs.camera])
    cosines = {}
    for (teacher, layer), grid in live.tokens.items():
        expected = sample_grid(grid, live.pairs.camera, uv)
        if (basis := stored.cache.basis(teacher, layer)) is not None:
            expected = reduce_channels(expected, basis)
        cosines[f"{teacher}/{layer}"] = smallest_cosine(stored.point_features(teacher, layer=layer), expected)
    return cosines


def smallest_cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Smallest row-wise cosine of (P, C) features, P >= 1, after taking the mean row of `b` from both."""
    centre = b.mean(axis=0, dtype=np.float64)
    centred_a, centred_b = a - centre, b - centre
    norms = np.linalg.norm(centred_a, axis=1) * np.linalg.norm(centred_b, axis=1)
    dots = np.einsum("ij,ij->i", centred_a, centred_b)
    # A row at the very mean has no direction of its own: what counts there is whether the two are one.
    alike = relative_error(a, b) <= MAX_RELATIVE_ERROR
    return float(np.where(norms > 0, dots / np.maximum(norms, 1e-30), alike).min())


def relative_error(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """(P,) distance of each row of `a` from that of `b`, over the length of `b`'s."""
    length = np.linalg.norm(b, axis=1).astype(np.float64)
    distance: NDArray[np.float64] = np.linalg.norm(a - b, axis=1) / np.maximum(length, 1e-30)
    return distance
