"""Another encoding: the values are what a reader of the old one gets, and the loss that is stated is the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hilda_cache.reshape.merge import merge
from hilda_cache.reshape.reencode import reencode
from hilda_cache.reshape.subset import Cut, subset
from hilda_schema import open_cache
from hilda_schema.errors import CacheConflict, CacheCorrupt, UsageError
from hilda_schema.manifest import EncodingInfo
from hilda_schema.testing import validate
from hilda_schema.testing.damage import set_values
from hilda_schema.verify import verify

LAYERS = [("vit", "2"), ("vit", "4"), ("cnn", "stage1"), ("cnn", "stage2")]


def made(stores: dict[str, Path], source: str, kind: str, dtype: str, out: Path) -> Path:
    reencode(str(stores[source]), out, EncodingInfo.model_validate({"kind": kind, "dtype": dtype}))
    validate(out)
    return out


def test_point_features_are_the_samples_that_a_reader_gives(stores: dict[str, Path], tmp_path: Path) -> None:
    out = made(stores, "grid-float16", "point", "float16", tmp_path / "out")
    for before, after in zip(open_cache(stores["grid-float16"]), open_cache(out), strict=True):
        assert before.key == after.key
        for teacher, layer in LAYERS:
            expected = before.point_features(teacher, layer).astype(np.float16)
            np.testing.assert_array_equal(after.point_features(teacher, layer), expected)
        np.testing.assert_array_equal(after.global_tokens("vit"), before.global_tokens("vit"))
        np.testing.assert_array_equal(after.points.xyz_m, before.points.xyz_m)
        np.testing.assert_array_equal(after.pairs.uv_px, before.pairs.uv_px)


@pytest.mark.parametrize(
    ("source", "kind", "dtype"),
    [("grid-float16", "grid", "int8"), ("point-float16", "point", "int8"), ("grid-int8", "point", "int8")],
)
def test_the_stated_error_is_the_error(
    stores: dict[str, Path], source: str, kind: str, dtype: str, tmp_path: Path
) -> None:
    out = made(stores, source, kind, dtype, tmp_path / "out")
    before, after = open_cache(stores[source]), open_cache(out)
    (parent,) = after.manifest.parents
    assert (parent.operation, parent.root_sha256) == ("reencode", before.manifest.root_sha256)
    assert parent.encoding_error == before.manifest.encoding_error
    for teacher, layer in LAYERS:
        pairs = []
        for old, new in zip(before, after, strict=True):
            if kind == "grid":
                grids = [frame.token_grid(teacher, layer) for frame in (old, new)]
                pairs.append([grid.reshape(-1, grid.shape[-1])[~np.isnan(grid[..., 0]).ravel()] for grid in grids])
            else:
                pairs.append([frame.point_features(teacher, layer) for frame in (old, new)])
        x, y = (np.concatenate([pair[k] for pair in pairs]).astype(np.float64) for k in (0, 1))
        relative = np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)
        stated = after.manifest.encoding_error[f"{teacher}/{layer}"]
        assert stated.tokens == len(x)
        assert stated.relative_l2_max == pytest.approx(relative.max(), rel=0.01)
        assert stated.relative_l2_mean == pytest.approx(relative.mean(), rel=0.01)
        assert 0.95 < stated.cosine_min <= stated.cosine_mean <= 1


def test_twice_is_once(stores: dict[str, Path], tmp_path: Path, tree: Callable[[Path], dict[str, str]]) -> None:
    once = made(stores, "grid-float16", "grid", "int8", tmp_path / "once")
    made(stores, "grid-float16", "grid", "int8", tmp_path / "beside")
    assert tree(once) == tree(tmp_path / "beside")
    made(stores, "grid-float16", "grid", "int8", once)  # over itself
    assert tree(once) == tree(tmp_path / "beside")
    made({"once": once}, "once", "grid", "int8", tmp_path / "twice")
    assert open_cache(tmp_path / "twice").manifest.root_sha256 == open_cache(once).manifest.root_sha256


def test_grids_cannot_be_made_from_points(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="what lies between the points was never stored"):
        made(stores, "point-int8", "grid", "int8", tmp_path / "out")
    assert not (tmp_path / "out").exists()


DIMS = {"vit": 4, "cnn": 5}


def rows_of(store: Path, teacher: str, layer: str) -> np.ndarray:
    """Every feature that a reader gets, one a row, lifted to the model's channels."""
    cache = open_cache(store)
    grids = cache.manifest.recipe.encoding.kind == "grid"
    frames = [f.token_grid(teacher, layer) if grids else f.point_features(teacher, layer) for f in cache]
    rows = np.concatenate([each.reshape(-1, each.shape[-1]) for each in frames]).astype(np.float64)
    basis = cache.basis(teacher, layer)
    return rows[~np.isnan(rows[:, 0])] @ (np.eye(rows.shape[1]) if basis is None else basis)


@pytest.mark.parametrize(("source", "dtype"), [("grid-float16", "float16"), ("point-float16", "int8")])
def test_fewer_channels_are_the_best_plane_and_their_loss_is_the_stated_one(
    stores: dict[str, Path], tmp_path: Path, source: str, dtype: str
) -> None:
    """The reference is a singular value decomposition of all features at once."""
    out, kind = tmp_path / "out", source.split("-")[0]
    reencode(str(stores[source]), out, EncodingInfo.model_validate({"kind": kind, "dtype": dtype}), DIMS)
    validate(out)
    after = open_cache(out)
    assert after.manifest.schema_version == "1.1"
    assert after.manifest.parents[0].detail == f"--to {kind}{'-int8' * (dtype == 'int8')} --dims vit=4,cnn=5"
    assert [after.layer_info(*name).channels for name in LAYERS] == [4, 4, 4, 5]
    assert after.basis("cnn", "stage1") is None  # has four channels: keeps them
    for teacher, layer in LAYERS:
        x, y = rows_of(stores[source], teacher, layer), rows_of(out, teacher, layer)
        stated = after.manifest.encoding_error[f"{teacher}/{layer}"]
        if (layer, dtype) == ("stage1", "float16"):
            assert np.array_equal(x, y)  # taken over as it is, with what it had lost before
            continue
        relative = np.linalg.norm(y - x, axis=1) / np.linalg.norm(x, axis=1)
        assert stated.relative_l2_max == pytest.approx(relative.max(), rel=0.02)
        assert stated.relative_l2_mean == pytest.approx(relative.mean(), rel=0.02)
        basis, reduction = after.basis(teacher, layer), after.layer_info(teacher, layer).reduction
        if basis is None or reduction is None:
            continue
        best = np.linalg.svd(x, full_matrices=False)[2][: len(basis)]
        np.testing.assert_allclose(basis.T @ basis, best.T @ best, atol=1e-4)
        centred = x - x.mean(axis=0)
        lost = (centred - centred @ basis.T @ basis).var(axis=0).sum() / centred.var(axis=0).sum()
        assert reduction.explained_variance == pytest.approx(1 - lost, abs=1e-4)
        a, b = centred, y - x.mean(axis=0)
        cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert stated.cosine_mean == pytest.approx(cosines.mean(), abs=0.02)  # there: of each part about its own mean


def test_stores_with_one_basis_merge_and_others_do_not(stores: dict[str, Path], tmp_path: Path) -> None:
    """A second half that takes the axes of the first is what the whole would have been."""
    source, halves = str(stores["grid-float16"]), [tmp_path / "0", tmp_path / "1"]
    for number, half in enumerate(halves):
        subset(source, half, Cut(scenes=(f"scene-{number:04d}",)), "half")
    reencode(str(halves[0]), tmp_path / "a", dims=DIMS)
    reencode(str(halves[1]), tmp_path / "own", dims=DIMS)
    with pytest.raises(CacheConflict, match="basis_sha256"):
        merge([str(tmp_path / "a"), str(tmp_path / "own")], tmp_path / "refused")
    reencode(str(halves[1]), tmp_path / "b", like=str(tmp_path / "a"))
    merge([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "united")
    validate(tmp_path / "united")
    reencode(source, tmp_path / "whole", like=str(tmp_path / "a"))
    roots = [open_cache(tmp_path / each).manifest.root_sha256 for each in ("united", "whole")]
    assert roots[0] == roots[1]


def test_what_was_reduced_keeps_its_axes_in_every_cut(
    stores: dict[str, Path], tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    out = tmp_path / "out"
    reencode(str(stores["grid-float16"]), out, dims={"vit": 4})
    again = tree(out)
    reencode(str(stores["grid-float16"]), out, dims={"vit": 4})
    assert tree(out) == again
    subset(str(out), tmp_path / "cut", Cut(teachers=("vit",), frames="1:3"), "cut")
    reencode(str(tmp_path / "cut"), tmp_path / "int8", EncodingInfo(dtype="int8"))
    validate(tmp_path / "int8")
    np.testing.assert_array_equal(open_cache(tmp_path / "int8").basis("vit", 4), open_cache(out).basis("vit", 4))
    with pytest.raises(UsageError, match="has lost channels already"):
        reencode(str(out), tmp_path / "twice", dims={"vit": 2})
    with pytest.raises(UsageError, match=r"no layer of .* would lose channels"):
        reencode(str(out), tmp_path / "wider", dims={"vit": 8})
    with pytest.raises(UsageError, match="has lost channels already, in another way"):
        reencode(str(out), tmp_path / "back", like=str(stores["grid-float16"]))
    with pytest.raises(UsageError, match="has other teachers than"):
        reencode(str(tmp_path / "cut"), tmp_path / "strange", like=str(stores["grid-float16"]))


def test_a_basis_that_is_not_the_recipes_is_damage(stores: dict[str, Path], tmp_path: Path) -> None:
    """Whoever reseals a part with another basis is noticed by whoever lifts, and by verify."""
    out = tmp_path / "out"
    reencode(str(stores["grid-float16"]), out, dims={"vit": 4})
    set_values(out, "vit/layer_4/basis", lambda values: np.negative(values, out=values))
    assert "basis: is not the one that the recipe names" in " ".join(map(str, verify(out).problems))
    with pytest.raises(CacheCorrupt, match="is not the one that the manifest names"):
        open_cache(out).basis("vit", 4)
