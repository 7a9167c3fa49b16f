"""Another encoding: the values are what a reader of the old one gets, and the loss that is stated is the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hilda_cache.reshape.reencode import reencode
from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_schema.manifest import EncodingInfo
from hilda_schema.testing import validate

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
