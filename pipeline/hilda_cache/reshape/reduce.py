"""Which channels stay: the principal axes of a layer's features, or those of a store that lost channels before.

Legend: C channels of the model, K that stay, T tokens (or pairs).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hilda_cache.extract import differences
from hilda_cache.reshape.derive import unreduced
from hilda_schema.errors import UsageError
from hilda_schema.manifest import LayerInfo, Recipe, ReductionInfo, TeacherInfo
from hilda_schema.reader import Cache
from hilda_schema.reduction import basis_sha256

FIT_FRAMES = 64
"""Frames, spread over the store, that axes are fitted to: some 100,000 tokens, for at most some thousand channels."""

Bases = dict[str, NDArray[np.float32]]  # "teacher/layer" -> (K, C)


def fitted(cache: Cache, dims: Mapping[str, int]) -> tuple[Recipe, Bases]:
    """Fit every layer's own axes.

    Args:
        cache: the store that has all channels.
        dims: teacher -> K; layers that have no more channels than that keep them.

    Returns:
        The store's recipe with fewer channels, and the axes (K, C) of the layers that lose some.

    Raises:
        UsageError: a layer has lost channels already, or none would lose any.
        CacheError: the store cannot be read.
    """
    bases: Bases = {}

    def reduced(teacher: TeacherInfo, layer: LayerInfo) -> LayerInfo:
        wanted = dims.get(teacher.name, layer.channels)
        if wanted >= layer.channels:
            return layer
        if layer.reduction:
            raise UsageError(
                f"{cache.url}: {teacher.name}/{layer.name} has lost channels already",
                "start from the store that has all of them",
            )
        basis, info = fit(cache, teacher.name, layer, wanted)
        bases[f"{teacher.name}/{layer.name}"] = basis
        return layer.model_copy(update={"channels": wanted, "reduction": info})

    recipe = cache.manifest.recipe
    teachers = [
        each.model_copy(update={"layers": tuple(reduced(each, layer) for layer in each.layers)})
        for each in recipe.teachers
    ]
    if not bases:
        widths = sorted({layer.channels for each in recipe.teachers for layer in each.layers})
        raise UsageError(f"no layer of {cache.url} would lose channels", f"they have {', '.join(map(str, widths))}")
    return recipe.model_copy(update={"teachers": tuple(teachers)}), bases


def fit(cache: Cache, teacher: str, layer: LayerInfo, dims: int) -> tuple[NDArray[np.float32], ReductionInfo]:
    """The axes along which a layer's features are largest (eigenvectors of their second moments).

    Nothing is subtracted first, so that the features' mean direction is kept like any other: see
    `hilda_schema.reduction`.

    Returns:
        (dims, C) orthonormal rows, of the largest first, and what the recipe says of them.
    """
    C, count = layer.channels, 0
    moment, total = np.zeros((C, C)), np.zeros(C)
    rows = sorted({round(k) for k in np.linspace(0, len(cache) - 1, min(FIT_FRAMES, len(cache)))})
    for tokens in _tokens(cache, rows, teacher, layer.name):
        moment += tokens.T @ tokens
        total += tokens.sum(axis=0)
        count += len(tokens)
    axes = np.linalg.eigh(moment)[1].T[: -dims - 1 : -1]  # of the largest first
    # An axis has no sign of its own: its largest component is made positive.
    signs = np.sign(axes[np.arange(dims), np.abs(axes).argmax(axis=1)])
    basis = (axes * signs[:, None]).astype(np.float32)
    mean = total / max(1, count)
    covariance = moment / max(1, count) - np.outer(mean, mean)
    whole = float(np.trace(covariance))
    share = float(np.trace(basis @ covariance @ basis.T)) / whole if whole > 0 else 1.0
    what = "tokens" if cache.manifest.recipe.encoding.kind == "grid" else "pairs"
    return basis, ReductionInfo(
        channels=C,
        basis_sha256=basis_sha256(basis),
        explained_variance=round(share, 6),
        method=f"principal axes of {count} {what} in {len(rows)} frames of sha256:{cache.manifest.root_sha256}",
    )


def _tokens(cache: Cache, rows: list[int], teacher: str, layer: str) -> Iterator[NDArray[np.float64]]:
    """(T, C) features of each frame; those of cameras that are there."""
    grids = cache.manifest.recipe.encoding.kind == "grid"
    for row in rows:
        frame = cache[row]
        values = frame.token_grid(teacher, layer) if grids else frame.point_features(teacher, layer)
        tokens = values.reshape(-1, values.shape[-1]).astype(np.float64)
        yield tokens[~np.isnan(tokens[:, 0])]


def taken_from(cache: Cache, other: Cache) -> tuple[Recipe, Bases]:
    """The encoding and the axes of another store, for stores that are to be merged.

    Returns:
        The store's recipe, encoded as the other's, and the axes (K, C) of the layers that lose channels.

    Raises:
        UsageError: the other store has other teachers or layers.
        CacheError: a store cannot be read.
    """
    ours, theirs = cache.manifest.recipe, other.manifest.recipe
    a, b = (unreduced(each).model_dump(mode="json")["teachers"] for each in (ours, theirs))
    if rows := differences({"teachers": a}, {"teachers": b}):
        raise UsageError(f"{other.url} has other teachers than {cache.url}: they differ in {rows[0][0]}")
    bases: Bases = {}
    for teacher in theirs.teachers:
        known = {layer.name: layer for layer in next(t for t in ours.teachers if t.name == teacher.name).layers}
        for layer in teacher.layers:
            if layer.reduction == known[layer.name].reduction:
                continue
            basis = other.basis(teacher.name, layer.name)
            if basis is None or known[layer.name].reduction:
                raise UsageError(
                    f"{cache.url}: {teacher.name}/{layer.name} has lost channels already, in another way",
                    "start from the store that has all of them",
                )
            bases[f"{teacher.name}/{layer.name}"] = basis
    return ours.model_copy(update={"teachers": theirs.teachers, "encoding": theirs.encoding}), bases
