"""Drawn pixels where they should be, in the colours that they should have."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from hilda_cache.show import Wanted, show_frame
from hilda_cache.show.choose import chosen_pair
from hilda_cache.show.layout import COLUMN, PAGE, Box, paginate, paginate_sweeps
from hilda_cache.show.paint import Bar, Mark, Paint, Swatches, mean_over_cameras
from hilda_cache.show.panels import dim
from hilda_cache.show.picture import DPI, Picture, Scene, draw
from hilda_cache.show.viewpoint import ground_height_m, in_perspective
from hilda_schema import open_cache
from hilda_schema.colours import pca_colours
from hilda_schema.content import Pairs
from hilda_schema.errors import NotInCache, UsageError
from hilda_schema.style import PANEL, REACH_M, UNSEEN
from hilda_schema.testing import CAMERAS, tiny_cache

RED, GREEN, BLUE = np.eye(3)


def rgb(colour: str | np.ndarray) -> list[int]:
    values = np.array(matplotlib.colors.to_rgb(colour)) * 255
    return np.rint(values).astype(int).tolist()


def pairs_of(
    uv_px: list[tuple[float, float]],
    depth_m: list[float],
    camera: list[int] | None = None,
    point: list[int] | None = None,
) -> Pairs:
    count = len(uv_px)
    return Pairs(
        np.array(range(count) if point is None else point, np.uint32),
        np.array([0] * count if camera is None else camera, np.uint8),
        np.array(uv_px, np.float64).reshape(-1, 2),
        np.array(depth_m, np.float32),
        np.ones(count, np.bool_),
    )


def picture(
    pairs: Pairs,
    colours: np.ndarray | list[np.ndarray],
    sizes_px: Mapping[str, tuple[int, int]] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
    xyz_m: np.ndarray | None = None,
    mark: Mark | None = None,
    legend: Bar | Swatches | None = None,
    **more: bool,
) -> Picture:
    values = np.array(colours, np.float64).reshape(-1, 3)
    count = len(xyz_m) if xyz_m is not None else int(pairs.point.max(initial=0)) + 1
    over = mean_over_cameras(values, pairs.point, count)
    ground = None if xyz_m is None else np.zeros(len(xyz_m), np.bool_)
    scene = Scene("key", sizes_px or {"front": (160, 90)}, pairs, images or {}, xyz_m, ground)
    paint = Paint("features", "heading", pairs, values, over, legend or Swatches((("#ff0000", "red"),)), "note", mark)
    return Picture("title", scene, (paint,), **more)


def pixels(drawn: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw(drawn))).convert("RGB")).astype(int)


def at(drawn: Picture, u: float, v: float, camera: str = "front") -> tuple[int, int]:
    """Row and column of the page where a pixel of a camera is drawn."""
    box = drawn.page.blocks[0].cameras[camera]
    width, height = drawn.scene.camera_sizes_px[camera]
    x, y = box.left + (u + 0.5) / width * box.width, box.top + (v + 0.5) / height * box.height
    return int(y * DPI), int(x * DPI)


def sweep_box(drawn: Picture) -> Box:
    box = drawn.page.blocks[0].sweep
    assert box is not None
    return box


def mark_at(page: np.ndarray, row: float, column: float) -> list[int]:
    """The colour within two pixels that differs most from an empty panel: small points have soft edges."""
    around = page[int(row) - 2 : int(row) + 3, int(column) - 2 : int(column) + 3].reshape(-1, 3)
    return around[np.abs(around - rgb(PANEL)).sum(1).argmax()].tolist()


def test_points_are_drawn_at_their_pixels_in_their_colours() -> None:
    places = [(40.0, 30.0), (120.0, 60.0), (0.0, 89.0)]
    drawn = picture(pairs_of(places, [5.0, 5.0, 5.0]), [RED, GREEN, BLUE])
    page = pixels(drawn)
    for place, colour in zip(places, (RED, GREEN, BLUE), strict=True):
        assert page[at(drawn, *place)].tolist() == rgb(colour)
    assert page[at(drawn, 80, 45)].tolist() == rgb(PANEL)


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_a_camera_shows_as_many_points_as_it_sees(count: int) -> None:
    """Points far apart do not touch: connected blobs of their colour are the points of that camera."""
    from scipy import ndimage

    grid = [(16.0 * (k % 9) + 12, 16.0 * (k // 9) + 12) for k in range(count)]
    places = [*grid, (80.0, 45.0)]
    sizes = {"front": (160, 90), "back": (160, 90)}
    drawn = picture(pairs_of(places, [8.0] * len(places), camera=[0] * count + [1]), [RED] * count + [GREEN], sizes)
    page = pixels(drawn)
    for camera, colour, expected in (("front", 0, count), ("back", 1, 1)):
        (top, left), (bottom, right) = at(drawn, -0.5, -0.5, camera), at(drawn, 159, 89, camera)
        panel = page[top:bottom, left:right]
        assert ndimage.label(panel[..., colour] - panel[..., 2] > 100)[1] == expected


def test_each_camera_has_its_own_points() -> None:
    pairs = pairs_of([(40, 60), (40, 60)], [5, 5], camera=[0, 1])
    drawn = picture(pairs, [RED, GREEN], sizes_px={"back": (160, 90), "front": (160, 90)})
    page = pixels(drawn)
    assert page[at(drawn, 40, 60, "back")].tolist() == rgb(RED)
    assert page[at(drawn, 40, 60, "front")].tolist() == rgb(GREEN)


@pytest.mark.parametrize("nearer_first", [True, False])
def test_nearer_points_are_larger_and_cover_farther_ones(nearer_first: bool) -> None:
    depths, colours = [4.0, 30.0], [RED, GREEN]
    if not nearer_first:
        depths, colours = depths[::-1], colours[::-1]
    drawn = picture(pairs_of([(80, 45), (80, 45)], depths), colours)
    page = pixels(drawn)
    assert page[at(drawn, 80, 45)].tolist() == rgb(RED)
    assert not (page == rgb(GREEN)).all(-1).any()
    areas = []
    for depth_m in (4.0, 10.0, 40.0):
        drawn = picture(pairs_of([(80, 45)], [depth_m]), [GREEN])
        areas.append((pixels(drawn) == rgb(GREEN)).all(-1).sum())
    assert all(one > other > 0 for one, other in pairwise(areas))


def test_a_hidden_point_is_drawn_over_what_hides_it() -> None:
    pairs = pairs_of([(80, 45), (80, 45)], [4.0, 30.0])
    pairs.visible[1] = False
    drawn = picture(pairs, [RED, GREEN])
    assert pixels(drawn)[at(drawn, 80, 45)].tolist() == rgb(GREEN)


def test_the_image_lies_dimmed_behind_the_points() -> None:
    image = np.full((90, 160, 3), (200, 100, 50), np.uint8)
    image[:, 80:] = (0, 0, 255)
    drawn = picture(pairs_of([(40, 30)], [5]), [GREEN], images={"front": image})
    page = pixels(drawn)
    assert page[at(drawn, 40, 30)].tolist() == rgb(GREEN)
    assert page[at(drawn, 20, 60)].tolist() == dim(image)[60, 20].tolist()
    assert page[at(drawn, 140, 60)].tolist() == dim(image)[60, 140].tolist()
    # the border between the halves lies between pixels 79 and 80, at half a pixel before the centre of the latter
    row, _ = at(drawn, 0, 60)
    left, right = at(drawn, 79, 60)[1], at(drawn, 80, 60)[1]
    step = np.abs(np.diff(page[row, left : right + 1, 2])).argmax() + left + 0.5
    assert step == pytest.approx((left + right) / 2, abs=2)


def test_dimming_darkens_and_takes_out_colour() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    dimmed = dim(image).astype(int)
    assert (dimmed.max(-1) <= image.max(-1) * 0.6 + 1).all()
    assert (np.ptp(dimmed, axis=-1) <= np.ptp(image.astype(int), axis=-1) * 0.22 + 1).all()


def test_a_camera_without_image_size_has_no_panel() -> None:
    drawn = picture(pairs_of([(40, 60)], [5], camera=[1]), [RED], sizes_px={"back": (0, 0), "front": (160, 90)})
    assert pixels(drawn)[at(drawn, 40, 60)].tolist() == rgb(RED)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("forwards", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_from_above_forwards_is_up_whatever_the_axes_of_the_lidar(forwards: tuple[int, int], alone: bool) -> None:
    ahead, left = np.array(forwards), np.array([-forwards[1], forwards[0]])
    places = [10 * ahead, 8 * ahead + 4 * left, -12 * ahead]
    xyz_m = np.array([[*place, 0.0] for place in places], np.float32)
    drawn = picture(pairs_of([(80, 45), (40, 45)], [10, 8]), [RED, GREEN], xyz_m=xyz_m, sweep_alone=alone)
    page, box = pixels(drawn), sweep_box(drawn)
    centre_x, centre_y = (box.left + box.width / 2) * DPI, (box.top + box.height / 2) * DPI
    metre = box.width / 2 * DPI / REACH_M[0]

    def colour(up_m: float, left_m: float) -> list[int]:
        return mark_at(page, centre_y - up_m * metre, centre_x - left_m * metre)

    assert colour(8, 4) == rgb(GREEN)
    assert colour(8, -4) == rgb(PANEL)
    assert np.argmax(colour(10, 0)) == 0  # on a ring of distance
    assert colour(-12, 0) != rgb(PANEL)
    assert np.ptp(colour(-12, 0)) <= np.ptp(rgb(UNSEEN))  # grey


def test_from_above_a_higher_point_covers_a_lower_one() -> None:
    xyz_m = np.array([[5, 3, 2], [5, 3, -1]], np.float32)
    drawn = picture(pairs_of([(80, 45), (10, 45)], [5, 5]), [RED, GREEN], xyz_m=xyz_m, sweep_alone=True)
    assert not (pixels(drawn) == rgb(GREEN)).all(-1).any()


# --- in perspective -------------------------------------------------------------------------------------------------


def test_in_perspective_ahead_is_up_left_is_left_and_far_is_small() -> None:
    places = np.array([[5, 0, 0], [30, 0, 0], [10, 4, 0], [10, -4, 0], [10, 0, 3], [40, 4, 0], [-99, 0, 0]], float)
    place, depth_m = in_perspective(places)
    near, far, left, right, high, far_left, behind = range(len(places))
    assert place[near, 0] == place[far, 0] == 0
    assert place[near, 1] < place[far, 1]
    assert place[left, 0] == pytest.approx(-place[right, 0])
    assert place[left, 0] < 0
    assert place[high, 1] > place[left, 1]
    assert abs(place[far_left, 0]) < abs(place[left, 0])
    assert depth_m[near] < depth_m[far]
    assert depth_m[behind] < 0
    middle, depth = in_perspective(np.array([[15.0, 0, 0]]))
    np.testing.assert_allclose(middle, 0, atol=1e-12)  # what is looked at
    assert depth[0] == pytest.approx(np.hypot(35, 12))


def test_in_perspective_a_point_has_its_colour_and_lies_over_what_is_behind() -> None:
    xyz_m = np.array([[12, 3, 0.5], [12, -3, 0.5], [12, 0, 0], [13, 0, 0]], np.float32)
    drawn = picture(
        pairs_of([(80, 45), (40, 45)], [12, 12]), [RED, GREEN], xyz_m=xyz_m, sweep_alone=True, in_perspective=True
    )
    page, box = pixels(drawn), sweep_box(drawn)
    ground_m = ground_height_m(xyz_m, np.zeros(4, np.bool_))
    place, _ = in_perspective(xyz_m - [0, 0, ground_m])
    for row, colour in ((0, RED), (1, GREEN)):
        x = box.left + box.width * (1 + place[row, 0]) / 2
        y = box.top + box.height / 2 - box.width * place[row, 1] / 2
        assert mark_at(page, y * DPI, x * DPI) == rgb(colour)


def test_the_ground_is_the_road_near_the_vehicle() -> None:
    xyz_m = np.array([[5, 0, -1.8], [6, 0, -1.7], [7, 0, -1.6], [80, 0, -9], [4, 0, 1]], np.float32)
    assert ground_height_m(xyz_m, np.array([1, 1, 1, 1, 0], np.bool_)) == pytest.approx(-1.7)
    assert ground_height_m(xyz_m, np.zeros(5, np.bool_)) < -1.7
    assert ground_height_m(np.zeros((0, 3), np.float32), np.zeros(0, np.bool_)) == 0.0


# --- legends and marks ----------------------------------------------------------------------------------------------


def test_a_legend_shows_its_colours() -> None:
    drawn = picture(pairs_of([(80, 45)], [5]), [RED], legend=Swatches((("#12ab34", "one"), ("#ab12cd", "$two$"))))
    heading = drawn.page.blocks[0].heading
    strip = pixels(drawn)[int(heading.top * DPI) : int((heading.top + heading.height) * DPI)]
    green, purple = (np.argwhere((strip == rgb(colour)).all(-1))[:, 1] for colour in ("#12ab34", "#ab12cd"))
    assert len(green) > 100
    assert len(purple) > 100
    assert green.max() < purple.min()


def test_a_colour_bar_runs_from_low_to_high() -> None:
    drawn = picture(pairs_of([(80, 45)], [5]), [RED], legend=Bar("cosine", "plasma", 0.25, 1.0))
    heading = drawn.page.blocks[0].heading
    row = pixels(drawn)[int((heading.top + heading.height / 2) * DPI)]
    ends = [rgb(matplotlib.colormaps["plasma"](end)[:3]) for end in (0.0, 1.0)]
    found = [np.flatnonzero((np.abs(row - end) <= 4).all(-1)) for end in ends]
    assert found[0].max() < found[1].min()
    assert found[1].min() - found[0].max() > 200


def test_the_chosen_point_is_marked_in_its_camera_and_on_the_sweep() -> None:
    pairs = pairs_of([(80, 60), (30, 60)], [5, 5])
    xyz_m = np.array([[6, 2, 0], [6, -2, 0]], np.float32)
    plain, marked = (pixels(picture(pairs, [RED, GREEN], xyz_m=xyz_m, mark=mark)) for mark in (None, Mark(0, (0,))))
    changed = (plain != marked).any(-1)
    drawn = picture(pairs, [RED, GREEN], xyz_m=xyz_m)
    box, (row, column) = sweep_box(drawn), at(drawn, 80, 60)
    assert changed[row - 20 : row + 20, column - 20 : column + 20].any()
    metre = box.width / 2 * DPI / REACH_M[0]
    x, y = (box.left + box.width / 2) * DPI - 2 * metre, (box.top + box.height / 2) * DPI - 6 * metre
    assert changed[int(y) - 20 : int(y) + 20, int(x) - 20 : int(x) + 20].any()
    row, column = at(drawn, 30, 60)
    assert not changed[row - 20 : row + 20, column - 20 : column + 20].any()


def test_the_same_picture_has_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    drawn = picture(
        pairs_of([tuple(place) for place in rng.uniform(0, 80, (50, 2))], rng.uniform(2, 40, 50).tolist()),
        rng.random((50, 3)),
        images={"front": rng.integers(0, 256, (90, 160, 3), np.uint8)},
        xyz_m=rng.uniform(-20, 20, (50, 3)).astype(np.float32),
    )
    first = draw(drawn)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "savefig.dpi": 40, "lines.linewidth": 9, "figure.facecolor": "red"}):
        assert draw(drawn) == first
    assert dict(matplotlib.rcParams) == before
    assert set(Image.open(io.BytesIO(first)).info) <= {"dpi"}  # no date, no program
    assert Image.open(io.BytesIO(first)).width == PAGE * DPI


# --- from a cache ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cache(tmp_path_factory.mktemp("store") / "cache")


def drawn_pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def test_a_frame_is_drawn_with_its_visible_pairs(store: Path, tmp_path: Path) -> None:
    cache, out = open_cache(store), tmp_path / "frame.png"
    show_frame(cache, Wanted(0, "vit", ("4",)), out)
    page = drawn_pixels(out)
    frame = cache[0]
    visible = frame.pairs.visible
    expected = pca_colours(frame.point_features("vit", 4)[visible])
    layout = paginate(frame.camera_sizes_px, 1, True).blocks[0]
    shown = 0
    for number, camera in enumerate(frame.camera_names):
        mine = frame.pairs.camera[visible] == number
        uv_px, depth_m = frame.pairs.uv_px[visible][mine], frame.pairs.depth_m[visible][mine]
        box, (width, height) = layout.cameras[camera], frame.camera_sizes_px[camera]
        nearest = depth_m.argmin()  # nothing can lie over it
        x = box.left + (uv_px[nearest, 0] + 0.5) / width * box.width
        # a camera of another shape is centred in its cell
        y = box.top + box.height / 2 + (uv_px[nearest, 1] + 0.5 - height / 2) / width * box.width
        if height / width <= box.height / box.width + 1e-9:
            found = page[int(y * DPI), int(x * DPI)].astype(int)
            np.testing.assert_allclose(found, 255 * expected[mine][nearest], atol=2)
            shown += 1
    assert shown >= 2


def test_defaults_are_the_first_teacher_and_its_last_layer(store: Path, tmp_path: Path) -> None:
    cache = open_cache(store)
    show_frame(cache, Wanted(2), tmp_path / "default.png")
    show_frame(cache, Wanted(2, "vit", ("4",), "cameras"), tmp_path / "named.png")
    assert (tmp_path / "default.png").read_bytes() == (tmp_path / "named.png").read_bytes()


def test_layers_lie_side_by_side(store: Path, tmp_path: Path) -> None:
    show_frame(open_cache(store), Wanted(0, "cnn", ("stage1", "stage2")), tmp_path / "two.png")
    page = drawn_pixels(tmp_path / "two.png").astype(int)
    one, other = paginate(dict.fromkeys(CAMERAS, (160, 96)), 2, True).blocks
    assert one.heading.top == other.heading.top
    halves = page[:, : page.shape[1] // 2], page[:, page.shape[1] // 2 :]
    assert all((np.ptp(half, axis=-1) > 60).sum() > 500 for half in halves)


def test_every_view_is_a_picture_of_its_own(store: Path, tmp_path: Path) -> None:
    cache, seen = open_cache(store), {}
    for view in ("cameras", "bev", "perspective", "coverage", "occlusion", "similarity"):
        show_frame(cache, Wanted(0, view=view), tmp_path / "view.png")
        seen[view] = drawn_pixels(tmp_path / "view.png")
    assert seen["bev"].shape[1] == COLUMN * DPI
    assert seen["perspective"].shape[0] == pytest.approx(paginate_sweeps(1, in_perspective=True).height * DPI, abs=1)
    same = [seen[view] for view in ("cameras", "coverage", "occlusion", "similarity")]
    assert len({each.shape for each in same}) == 1
    assert all((one != other).any() for one, other in pairwise(same))


def test_the_chosen_point_decides_the_similarity(store: Path, tmp_path: Path) -> None:
    cache = open_cache(store)
    frame = cache[0]
    row = chosen_pair(frame, None, None)
    point, (u, v) = int(frame.pairs.point[row]), frame.pairs.uv_px[row]
    camera = frame.camera_names[frame.pairs.camera[row]]
    for name, wanted in (
        ("default", Wanted(0, view="similarity")),
        ("point", Wanted(0, view="similarity", point=point)),
        ("at", Wanted(0, view="similarity", at=f"{camera}:{u:.3f},{v:.3f}")),
        ("other", Wanted(0, view="similarity", at="BACK:80,60")),
    ):
        show_frame(cache, wanted, tmp_path / f"{name}.png")
    default, by_point, by_pixel, other = (
        (tmp_path / f"{name}.png").read_bytes() for name in ("default", "point", "at", "other")
    )
    assert default == by_point == by_pixel != other


@pytest.mark.parametrize("index", [1, 5, 9])
def test_frames_that_lack_a_camera_pairs_or_points_are_drawn(store: Path, tmp_path: Path, index: int) -> None:
    cache = open_cache(store)
    frame = cache[index]
    assert frame.absent or not len(frame.pairs) or not len(frame.points)
    for view in ("cameras", "perspective", "coverage", "occlusion"):
        show_frame(cache, Wanted(index, "vit", view=view), tmp_path / "frame.png")
        assert drawn_pixels(tmp_path / "frame.png").shape[1] == PAGE * DPI


def test_a_store_without_points_has_no_view_from_above(tmp_path: Path) -> None:
    cache = open_cache(tiny_cache(tmp_path / "cache", store_points=False))
    show_frame(cache, Wanted(0, "vit"), tmp_path / "frame.png")
    page = paginate(cache[0].camera_sizes_px, 1, False)
    assert drawn_pixels(tmp_path / "frame.png").shape[0] == pytest.approx(page.height * DPI, abs=1)
    for view in ("bev", "perspective"):
        with pytest.raises(NotInCache, match="made without points"):
            show_frame(cache, Wanted(0, view=view), tmp_path / "frame.png")


def test_what_cannot_be_drawn_is_said(store: Path, tmp_path: Path) -> None:
    cache, out = open_cache(store), tmp_path / "frame.png"
    for index in (-1, 10):
        with pytest.raises(UsageError, match=f"10 frames, there is no frame {index}"):
            show_frame(cache, Wanted(index), out)
    with pytest.raises(NotInCache, match="no teacher 'vitt'"):
        show_frame(cache, Wanted(0, "vitt"), out)
    with pytest.raises(NotInCache, match="no layer 3 of vit"):
        show_frame(cache, Wanted(0, "vit", ("2", "3")), out)
    with pytest.raises(UsageError, match="no view 'above'"):
        show_frame(cache, Wanted(0, view="above"), out)
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        show_frame(cache, Wanted(0), tmp_path / "nowhere" / "frame.png")
    assert list(tmp_path.iterdir()) == []
