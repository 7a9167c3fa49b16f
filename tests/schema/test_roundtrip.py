"""What is written is what is read, in every encoding, by our reader and by zarr-python."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilda_schema.content import FrameContent, PartContent
from hilda_schema.encoding import decode_int8, dequantise_uv, normalise_uv
from hilda_schema.layout import POINT_COLUMNS
from hilda_schema.manifest import Recipe
from hilda_schema.reader import Cache, Frame, open_cache
from hilda_schema.sampling import sample_grid
from hilda_schema.testing import (
    IMAGE_SIZES_PX,
    part_contents,
    tiny_cache,
    tiny_parts,
    tiny_recipe,
    validate,
)
from hilda_schema.writer import finish_store, start_store, write_part

ENCODINGS = [("grid", "float16"), ("grid", "int8"), ("point", "float16"), ("point", "int8")]


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> None:
    """These tests never cut the power; forcing every file to disk would take most of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module", params=ENCODINGS, ids="-".join)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    kind, dtype = request.param
    path = tmp_path_factory.mktemp("stores") / "cache"
    return tiny_cache(path, kind=kind, dtype=dtype), tiny_recipe(kind, dtype)


def written_frames(parts: list[PartContent]) -> list[FrameContent]:
    return [frame for part in parts for frame in part.frames]


def assert_same_frame(frame: Frame, content: FrameContent, recipe: Recipe) -> None:
    assert str(frame.key) == str(content.key)
    assert frame.stamp_ns == content.stamp_ns
    assert np.array_equal(frame.world_SE3_lidar, content.world_SE3_lidar)
    assert np.array_equal(frame.world_SE3_ego, content.world_SE3_ego)
    assert frame.absent == content.absent
    for column in POINT_COLUMNS:
        values = getattr(content, column.name)
        found = getattr(frame.points, column.name)
        if values is not None and len(values):
            assert found.dtype == column.dtype
            assert np.array_equal(found, values)
        elif found is not None:
            assert len(found) == len(content.xyz_m)
    sizes_px = np.array([frame.camera_sizes_px[name] for name in frame.camera_names]).reshape(-1, 2)
    assert_same_pairs(frame, content, sizes_px)
    assert_features_within_stated_error(frame, content, sizes_px, recipe)


def assert_same_pairs(frame: Frame, content: FrameContent, sizes_px: np.ndarray) -> None:
    for name in ("point", "camera", "visible"):
        assert np.array_equal(getattr(frame.pairs, name), getattr(content.pairs, name))
    bound_px = sizes_px[content.pairs.camera] * 2.0**-17 + 1e-9
    assert (np.abs(frame.pairs.uv_px - content.pairs.uv_px) <= bound_px).all()
    assert (np.abs(frame.pairs.depth_m - content.pairs.depth_m) <= content.pairs.depth_m * 2.0**-11).all()


def token_sizes(grid: np.ndarray) -> np.ndarray:
    """What a token's error is relative to; for one without size, the error is stated as it is."""
    norm = np.linalg.norm(np.nan_to_num(grid).astype(np.float64), axis=-1)
    return np.where(norm > 1e-15, norm, 1)


def assert_features_within_stated_error(
    frame: Frame, content: FrameContent, sizes_px: np.ndarray, recipe: Recipe
) -> None:
    uv = normalise_uv(frame.pairs.uv_px, sizes_px[frame.pairs.camera])
    for (teacher, layer), grid in content.tokens.items():
        stated = frame.cache.manifest.encoding_error[f"{teacher}/{layer}"]
        exact = sample_grid(grid, content.pairs.camera, uv)
        found = frame.point_features(teacher, layer)
        assert found.dtype == np.float32
        # Sampling mixes up to four tokens, each off by at most the stated share of the largest.
        largest = token_sizes(grid).max(initial=0)
        error = np.linalg.norm(found.astype(np.float64) - exact, axis=1)
        assert (error <= stated.relative_l2_max * 1.01 * largest + 1e-4).all()
        if recipe.encoding.kind == "grid":
            tokens = frame.token_grid(teacher, layer)
            assert np.array_equal(np.isnan(tokens), np.isnan(grid))
            lost = np.linalg.norm(np.nan_to_num(tokens - grid), axis=-1)
            assert (lost <= stated.relative_l2_max * 1.01 * token_sizes(grid) + 1e-6).all()
            assert np.array_equal(found, sample_grid(tokens, frame.pairs.camera, uv))
    for teacher, vectors in content.global_tokens.items():
        assert np.array_equal(
            frame.global_tokens(teacher), vectors.astype(np.float16).astype(np.float32), equal_nan=True
        )


def test_every_value_comes_back(stored: tuple[Path, Recipe]) -> None:
    path, recipe = stored
    cache = open_cache(path)
    contents = written_frames(tiny_parts(recipe))
    assert len(cache) == len(contents) == len(list(cache))
    for frame, content in zip(cache, contents, strict=True):
        assert_same_frame(frame, content, recipe)


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized as a component of a Zarr hierarchy")
def test_zarr_python_reads_the_same_values(stored: tuple[Path, Recipe]) -> None:
    """An independent reader of the same bytes agrees on every array, frame by frame."""
    path, recipe = stored
    cache = open_cache(path)
    root = zarr.open_group(path, mode="r", zarr_format=3)
    assert root.attrs["hilda"]["encoding-type"] == "teacher-cache"
    seen = set()
    for index, frame in enumerate(cache):
        row = cache.frames.to_pylist()[index]
        part = root[f"parts/{row['part']}"]
        seen |= {f"{row['part']}/{name}" for name, item in part.members(max_depth=None) if isinstance(item, zarr.Array)}
        k = row["row"]
        start, stop = part["points/offset"][k : k + 2]
        for column in POINT_COLUMNS:
            assert np.array_equal(part[f"points/{column.name}"][start:stop], getattr(frame.points, column.name))
        start, stop = part["pairs/offset"][k : k + 2]
        for name in ("point", "camera", "visible"):
            assert np.array_equal(part[f"pairs/{name}"][start:stop], getattr(frame.pairs, name))
        sizes_px = np.array([IMAGE_SIZES_PX[name] for name in frame.camera_names])[frame.pairs.camera]
        uv_px = dequantise_uv(part["pairs/uv"][start:stop]) * sizes_px - 0.5
        assert np.array_equal(uv_px, frame.pairs.uv_px)
        assert np.array_equal(part["present"][k], frame.present)
        for teacher in recipe.teachers:
            for layer in teacher.layers:
                folder = part[f"{teacher.name}/layer_{layer.name}"]
                rows = slice(k, k + 1) if recipe.encoding.kind == "grid" else slice(start, stop)
                assert_same_stored(frame, teacher.name, layer.name, folder, rows, recipe)
    arrays = {f"{file.parent.parent.name}/{file.parent.name}" for file in path.glob("parts/*/*/*/c.*")}
    assert len(arrays) > 10
    assert {spec.rsplit("/", 1)[-1] for spec in seen} >= {name.split("/")[1] for name in arrays}


def assert_same_stored(frame: Frame, teacher: str, layer: str, folder: zarr.Group, rows: slice, recipe: Recipe) -> None:
    stored = frame.stored_tokens(teacher, layer)
    name = "tokens" if recipe.encoding.kind == "grid" else "features"
    values = folder[name][rows].reshape(stored.values.shape)
    assert values.dtype == stored.values.dtype
    assert np.array_equal(values.view(np.uint8), stored.values.view(np.uint8))
    if recipe.encoding.dtype == "int8":
        assert np.array_equal(folder["scale"][rows].reshape(stored.scale.shape), stored.scale, equal_nan=True)
        assert np.array_equal(folder["channel_mean"][:], stored.channel_mean)
        assert np.array_equal(folder["channel_scale"][:], stored.channel_scale)
        by_formula = (
            values.astype(np.float32) * stored.scale[..., None].astype(np.float32) * stored.channel_scale
            + stored.channel_mean
        )
        ours = (
            frame.token_grid(teacher, layer) if recipe.encoding.kind == "grid" else frame.point_features(teacher, layer)
        )
        np.testing.assert_allclose(ours, by_formula, rtol=1e-6, atol=1e-6)


def test_dimensions_and_units_are_named(stored: tuple[Path, Recipe]) -> None:
    path, recipe = stored
    part = next((path / "parts").glob("*/seal.json")).parent
    group = zarr.open_group(part, mode="r")
    assert group["points/xyz_m"].metadata.dimension_names == ("point", "xyz")
    assert group["pairs/depth_m"].attrs["unit"].startswith("m")
    name = "tokens" if recipe.encoding.kind == "grid" else "features"
    dims = ("frame", "camera", "row", "column", "channel") if name == "tokens" else ("pair", "channel")
    assert group[f"vit/layer_2/{name}"].metadata.dimension_names == dims
    assert group.attrs["hilda"]["recipe"]["dataset"]["name"] == "toy"


def test_encodings_differ_by_no_more_than_they_state(tmp_path: Path) -> None:
    caches = {
        (kind, dtype): open_cache(tiny_cache(tmp_path / f"{kind}-{dtype}", kind=kind, dtype=dtype))
        for kind, dtype in ENCODINGS
    }
    exact = written_frames(tiny_parts(tiny_recipe()))
    for index in range(len(exact)):
        frames = {encoding: cache[index] for encoding, cache in caches.items()}
        for teacher, layer in exact[index].tokens:
            reference = frames["grid", "float16"].point_features(teacher, layer)
            largest = np.linalg.norm(np.nan_to_num(exact[index].tokens[teacher, layer]), axis=-1).max()
            for encoding, frame in frames.items():
                name = f"{teacher}/{layer}"
                stated = sum(
                    caches[each].manifest.encoding_error[name].relative_l2_max
                    for each in (encoding, ("grid", "float16"))
                )
                difference = np.linalg.norm(frame.point_features(teacher, layer) - reference, axis=1)
                assert (difference <= stated * 1.01 * largest).all()


SMALL = tiny_recipe().model_copy(update={"teachers": (tiny_recipe().teachers[0],)})


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data(), st.sampled_from(ENCODINGS))
def test_any_content_comes_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kinds: tuple[str, str]
) -> None:
    layers = tuple(
        layer.model_copy(update={"channels": 2, "height": 2, "width": 3}) for layer in SMALL.teachers[0].layers[:1]
    )
    teacher = SMALL.teachers[0].model_copy(update={"layers": layers, "global_width": 2})
    encoding = SMALL.encoding.model_copy(update={"kind": kinds[0], "dtype": kinds[1]})
    recipe = SMALL.model_copy(update={"teachers": (teacher,), "encoding": encoding})
    content = data.draw(part_contents(recipe))
    path = tmp_path_factory.mktemp("any")
    start_store(path, recipe, planned_parts=1)
    finish_store(path, recipe, [write_part(path, recipe, content)])
    validate(path)
    for frame, written in zip(open_cache(path), content.frames, strict=True):
        assert_same_frame(frame, written, recipe)
    shutil.rmtree(path)


def test_visible_only_leaves_out_hidden_pairs_everywhere(stored: tuple[Path, Recipe]) -> None:
    path, _ = stored
    whole, visible = open_cache(path), open_cache(path, visible_only=True)
    hidden = 0
    for a, b in zip(whole, visible, strict=True):
        kept = a.pairs.visible
        hidden += int((~kept).sum())
        for name in ("point", "camera", "uv_px", "depth_m", "visible"):
            assert np.array_equal(getattr(b.pairs, name), getattr(a.pairs, name)[kept])
        assert np.array_equal(b.point_features("vit", 2), a.point_features("vit", 2)[kept])
    assert hidden > 100


def test_a_store_without_points_keeps_its_pairs(tmp_path: Path) -> None:
    from hilda_schema.errors import NotInCache

    cache = open_cache(tiny_cache(tmp_path / "bare", store_points=False))
    with_points = open_cache(tiny_cache(tmp_path / "whole"))
    assert not list((tmp_path / "bare").glob("parts/*/points"))
    with pytest.raises(NotInCache, match="without points"):
        _ = cache[0].points
    assert np.array_equal(cache[1].pairs.point, with_points[1].pairs.point)
    assert np.array_equal(cache[1].point_features("vit", 4), with_points[1].point_features("vit", 4))


def test_ragged_arrays_longer_than_a_chunk(tmp_path: Path) -> None:
    """Frames begin and end anywhere in a chunk, and span several."""
    path = tiny_cache(tmp_path / "cache", kind="point", points=45_000, frames=3, scenes=1)
    contents = written_frames(tiny_parts(tiny_recipe("point"), points=45_000, frames=3, scenes=1))
    cache = open_cache(path)
    assert isinstance(cache, Cache)
    assert next((path / "parts").glob("*/points/xyz_m/c.0.0")).stat().st_size > 2 * 32768 * 12
    for frame, content in zip(cache, contents, strict=True):
        assert np.array_equal(frame.points.xyz_m, content.xyz_m)
        assert np.array_equal(frame.points.label, content.label)
        assert np.array_equal(frame.pairs.point, content.pairs.point)
        assert len(frame.point_features("vit", 2)) == len(content.pairs)


def test_int8_formula_of_the_specification_is_the_readers(tmp_path: Path) -> None:
    from hilda_schema.encoding import ChannelStatistics

    frame = open_cache(tiny_cache(tmp_path / "cache", dtype="int8"))[0]
    stored = frame.stored_tokens("vit", 4)
    decoded = decode_int8(stored.values, stored.scale, ChannelStatistics(stored.channel_mean, stored.channel_scale))
    assert np.array_equal(frame.token_grid("vit", 4), decoded, equal_nan=True)
