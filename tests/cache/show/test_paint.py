"""Colours by their meaning, against counts and cosines made the slow way."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from hilda_cache.show.choose import chosen_pair
from hilda_cache.show.paint import (
    COVERAGE,
    HIDDEN,
    VISIBLE,
    Bar,
    Swatches,
    cameras_per_point,
    coverage_paint,
    feature_paints,
    mapped,
    mean_over_cameras,
    occlusion_paint,
    similarities,
    similarity_paints,
)
from hilda_schema import open_cache
from hilda_schema.colours import pca_colours
from hilda_schema.errors import UsageError
from hilda_schema.reader import Frame
from hilda_schema.testing import tiny_cache


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    return open_cache(tiny_cache(tmp_path_factory.mktemp("store") / "cache"))[0]


@pytest.fixture(scope="module")
def pointless(tmp_path_factory: pytest.TempPathFactory) -> Frame:
    return open_cache(tiny_cache(tmp_path_factory.mktemp("store") / "cache", store_points=False))[0]


def rgb(colour: str) -> np.ndarray:
    return np.array(matplotlib.colors.to_rgb(colour))


def naive_coverage(frame: Frame) -> list[int]:
    seen: list[set[int]] = [set() for _ in range(len(frame.points))]
    for point, camera, visible in zip(frame.pairs.point, frame.pairs.camera, frame.pairs.visible, strict=True):
        if visible:
            seen[point].add(int(camera))
    return [len(cameras) for cameras in seen]


def test_coverage_is_a_naive_count(frame: Frame) -> None:
    expected = naive_coverage(frame)
    assert max(expected) >= 1
    assert 0 in expected
    assert cameras_per_point(frame).tolist() == expected
    paint = coverage_paint(frame)
    for count, colour in zip(expected, paint.point_rgb, strict=True):
        if count:
            np.testing.assert_allclose(colour, rgb(COVERAGE[min(count, 3)][1]))
        else:
            assert np.isnan(colour).all()
    assert len(paint.pairs) == sum(expected)  # every visible pair is drawn, and no other
    for point, colour in zip(paint.pairs.point, paint.pair_rgb, strict=True):
        np.testing.assert_allclose(colour, rgb(COVERAGE[min(expected[point], 3)][1]))
    assert isinstance(paint.legend, Swatches)
    share = sum(count == 1 for count in expected) / len(expected)
    assert (COVERAGE[1][1], f"1 camera {share:.1%}") in paint.legend.colours


def test_occlusion_tells_hidden_from_visible(frame: Frame) -> None:
    paint = occlusion_paint(frame)
    assert len(paint.pairs) == len(frame.pairs)
    for visible, colour in zip(frame.pairs.visible, paint.pair_rgb, strict=True):
        np.testing.assert_allclose(colour, rgb(VISIBLE if visible else HIDDEN))
    count = naive_coverage(frame)
    within = set(frame.pairs.point.tolist())
    for point, colour in enumerate(paint.point_rgb):
        if point not in within:
            assert np.isnan(colour).all()
        else:
            np.testing.assert_allclose(colour, rgb(VISIBLE if count[point] else HIDDEN))
    assert paint.note == f"{(~frame.pairs.visible).sum():,} of {len(frame.pairs):,} pairs are hidden"


def test_features_have_the_colours_of_their_components(frame: Frame) -> None:
    one, other = feature_paints(frame, "cnn", ["stage1", "stage2"])
    visible = frame.pairs.visible
    for paint, layer in ((one, "stage1"), (other, "stage2")):
        np.testing.assert_array_equal(paint.pair_rgb, pca_colours(frame.point_features("cnn", layer)[visible]))
        assert paint.pairs.point.tolist() == frame.pairs.point[visible].tolist()
    assert (one.heading, other.heading) == ("layer stage1", "layer stage2")


def test_a_point_seen_twice_has_the_mean() -> None:
    values = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    mean = mean_over_cameras(values, np.array([2, 2, 0], np.uint32), 4)
    np.testing.assert_array_equal(mean, [[0.5, 0.5], [np.nan] * 2, [0.5, 0.5], [np.nan] * 2])


def test_similarity_is_the_cosine_and_one_at_the_chosen_point(frame: Frame) -> None:
    chosen = chosen_pair(frame, None, None)
    (paint,) = similarity_paints(frame, "vit", ["4"], chosen)
    visible = np.flatnonzero(frame.pairs.visible)
    features = frame.point_features("vit", 4).astype(np.float64)
    features -= features[visible].mean(axis=0)
    expected = [
        float(
            np.dot(features[row], features[chosen])
            / np.sqrt((features[row] ** 2).sum() * (features[chosen] ** 2).sum())
        )
        for row in visible
    ]
    found = similarities(frame.point_features("vit", 4)[visible], int(np.searchsorted(visible, chosen)))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.min() < 0.5 < np.percentile(found, 90)  # one large channel does not make all alike
    assert paint.mark is not None
    (row,) = paint.mark.pairs
    assert found[row] == pytest.approx(1.0, abs=1e-12)
    assert found.max() <= 1
    assert paint.mark.point == frame.pairs.point[chosen]

    bar = paint.legend
    assert isinstance(bar, Bar)
    assert bar.high == 1.0
    assert bar.low == pytest.approx(np.percentile(expected, 1))
    np.testing.assert_array_equal(paint.pair_rgb[row], mapped(bar, np.array([1.0]))[0])
    np.testing.assert_array_equal(paint.point_rgb[paint.mark.point], mapped(bar, np.array([1.0]))[0])
    for point in set(frame.pairs.point[visible].tolist()):
        best = max(cosine for cosine, at in zip(expected, frame.pairs.point[visible], strict=True) if at == point)
        np.testing.assert_allclose(paint.point_rgb[point], mapped(bar, np.array([best]))[0], atol=0.01)


def test_a_feature_that_is_the_mean_is_like_nothing_but_itself() -> None:
    features = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    np.testing.assert_allclose(similarities(features, 0), [1, 0, -1])
    np.testing.assert_allclose(similarities(features, 1), [0, 1, 0])


def test_the_ends_of_a_colour_bar_are_never_minus_zero() -> None:
    assert Bar("cosine", "plasma", -0.001, 1.0).ends == ("0.00", "1.00")


def test_without_points_paints_are_made_from_the_pairs(pointless: Frame) -> None:
    count = cameras_per_point(pointless)
    assert count.sum() == pointless.pairs.visible.sum()
    assert len(coverage_paint(pointless).point_rgb) == pointless.pairs.point.max() + 1


# --- which point ----------------------------------------------------------------------------------------------------


def test_a_point_is_chosen_by_its_row(frame: Frame) -> None:
    point = int(frame.pairs.point[frame.pairs.visible][7])
    row = chosen_pair(frame, point, None)
    assert frame.pairs.point[row] == point
    assert frame.pairs.visible[row]


def test_a_point_is_chosen_by_the_nearest_pixel(frame: Frame) -> None:
    camera = frame.camera_names.index("LEFT")
    mine = np.flatnonzero((frame.pairs.camera == camera) & frame.pairs.visible)
    wanted = mine[len(mine) // 2]
    u, v = frame.pairs.uv_px[wanted]
    assert chosen_pair(frame, None, f"LEFT:{u:.4f},{v:.4f}") == wanted
    far = chosen_pair(frame, None, "LEFT:-40,3")
    distances = [np.hypot(*(frame.pairs.uv_px[row] - (-40, 3))) for row in mine]
    assert far == mine[int(np.argmin(distances))]


def test_by_default_it_is_the_nearest_thing_ahead(frame: Frame, pointless: Frame) -> None:
    row = chosen_pair(frame, None, None)
    pairs = frame.pairs
    width = frame.camera_sizes_px[frame.camera_names[pairs.camera[row]]][0]
    rivals = [
        float(pairs.depth_m[k])
        for k in range(len(pairs))
        if pairs.visible[k]
        and pairs.camera[k] == pairs.camera[row]
        and not frame.points.ground[pairs.point[k]]
        and abs(pairs.uv_px[k, 0] - (width - 1) / 2) < width / 4
    ]
    assert float(pairs.depth_m[row]) == min(rivals)
    assert pointless.pairs.visible[chosen_pair(pointless, None, None)]


def test_what_cannot_be_chosen_is_said(frame: Frame) -> None:
    hidden = sorted(set(range(len(frame.points))) - set(frame.pairs.point[frame.pairs.visible].tolist()))[0]
    for point, at, words in (
        (1, "LEFT:1,2", "--point and --at both"),
        (hidden, None, f"no camera sees a point {hidden}"),
        (10**6, None, "no camera sees a point 1000000"),
        (None, "LEFT", "'LEFT' is not a pixel"),
        (None, "LEFT:one,2", "is not a pixel"),
        (None, "REAR:1,2", "no camera 'REAR'"),
    ):
        with pytest.raises(UsageError, match=words):
            chosen_pair(frame, point, at)
