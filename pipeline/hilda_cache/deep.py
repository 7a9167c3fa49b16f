"""Deep verification: extract some frames again from the drive and a live teacher, and compare with what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hilda_cache.options import specs_of_store
from hilda_cache.parts import hash_sources
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.work import Stopwatch, make_frame, teachers_of
from hilda_schema.encoding import normalise_uv
from hilda_schema.errors import UsageError
from hilda_schema.reader import Cache, Frame
from hilda_schema.sampling import sample_grid

MIN_COSINE = 0.999  # below the loss of every encoding, above any other image, layer or revision
MAX_PIXEL_ERROR = 0.05


def compare_frames(cache: Cache, count: int, root: Path, teachers: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Extract `count` frames spread over the store again.

    Returns:
        One row a frame (its key and the smallest cosine over layers), and what differs, in words.
    """
    recipe = cache.manifest.recipe
    spec = DriveSpec(recipe.dataset.name, str(root.resolve()), tuple(sorted(recipe.dataset.options.items())))
    request = ExtractRequest(spec, specs_of_store(recipe.teachers, teachers))
    loaded = teachers_of(request, recipe)
    drive = spec.open()
    rows, problems = [], []
    for index in sorted({round(k) for k in np.linspace(0, len(cache) - 1, min(count, len(cache)))}):
        stored = cache[index]
        info = next((each for each in drive.frames(stored.key.scene) if each.key == stored.key), None)
        if info is None:
            raise UsageError(f"frame {stored.key} is not in {root}", "give the drive that the cache was made from")
        sources = hash_sources(drive, [info], recipe.dataset.cameras)
        live = make_frame(drive, loaded, recipe.dataset.cameras, info, sources, Stopwatch(), skip=True)
        cosines, differing = compare_frame(stored, live)
        rows.append({"frame": str(stored.key), "cosine_min": min(cosines.values(), default=1.0), "cosines": cosines})
        problems += [f"{stored.key}: {text}" for text in differing]
    return rows, problems


def compare_frame(stored: Frame, live: Any) -> tuple[dict[str, float], list[str]]:
    """Compare a stored frame with a freshly made one: pairs, pixels, features."""
    if len(stored.pairs.point) != len(live.pairs) or not np.array_equal(stored.pairs.point, live.pairs.point):
        return {}, ["its point-camera pairs are not those of the drive"]
    problems = []
    shift = float(np.abs(stored.pairs.uv_px - live.pairs.uv_px).max(initial=0.0))
    if shift > MAX_PIXEL_ERROR:
        problems.append(f"pixel positions differ by up to {shift:.3f} px")
    cosines = {}
    for (teacher, layer), grid in live.tokens.items():
        sizes_px = np.array([stored.camera_sizes_px[name] for name in stored.camera_names]).reshape(-1, 2)
        uv = normalise_uv(live.pairs.uv_px, sizes_px[live.pairs.camera])
        expected = sample_grid(grid, live.pairs.camera, uv)
        cosine = smallest_cosine(stored.point_features(teacher, layer=layer), expected)
        cosines[f"{teacher}/{layer}"] = cosine
        if cosine < MIN_COSINE:
            problems.append(f"{teacher} layer {layer} differs from the live teacher: cosine {cosine:.4f}")
    return cosines, problems


def smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest row-wise cosine after taking the mean row of `b` from both; 1 where there are no rows."""
    if not len(a):
        return 1.0
    centre = b.mean(axis=0, dtype=np.float64)
    a, b = a - centre, b - centre
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = np.einsum("ij,ij->i", a, b)
    return float(np.where(norms > 0, dots / np.maximum(norms, 1e-30), 1.0).min())
