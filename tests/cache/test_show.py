"""Pictures: layout by its rules, and drawn pixels where they should be."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hilda_cache.show import show_frame
from hilda_cache.show.layout import GAP, PAGE, Box, arrange, paginate
from hilda_cache.show.picture import DPI, PANEL, REACH_M, UNSEEN, Picture, dim, draw, forward_quarter, turn_about
from hilda_schema import open_cache
from hilda_schema.colours import pca_colours
from hilda_schema.content import Pairs
from hilda_schema.errors import NotInCache, UsageError
from hilda_schema.testing import CAMERAS, tiny_cache

RED, GREEN, BLUE = np.eye(3)


def rgb(colour: str | np.ndarray) -> list[int]:
    values = np.array(matplotlib.colors.to_rgb(colour)) * 255
    return np.rint(values).astype(int).tolist()


# --- layout ---------------------------------------------------------------------------------------------------------

RIGS: dict[str, tuple[list[str], list[list[str | None]]]] = {
    "nuscenes": (
        ["CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT"],
        [["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"], ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"]],
    ),
    "pandaset": (
        ["front_camera", "front_left_camera", "front_right_camera", "left_camera", "right_camera", "back_camera"],
        [
            ["front_left_camera", "front_camera", "front_right_camera"],
            ["left_camera", "back_camera", "right_camera"],
        ],
    ),
    "waymo": (
        ["FRONT", "FRONT_LEFT", "FRONT_RIGHT", "SIDE_LEFT", "SIDE_RIGHT"],
        [["FRONT_LEFT", "FRONT", "FRONT_RIGHT"], ["SIDE_LEFT", None, "SIDE_RIGHT"]],
    ),
    "argoverse2": (
        [
            *("ring_front_center", "ring_front_left", "ring_front_right", "ring_rear_left"),
            *("ring_rear_right", "ring_side_left", "ring_side_right"),
        ],
        [
            ["ring_front_left", "ring_front_center", "ring_front_right"],
            ["ring_side_left", None, "ring_side_right"],
            ["ring_rear_left", None, "ring_rear_right"],
        ],
    ),
    "no back row": (["front", "left"], [[None, "front"], ["left", None]]),
    "one": (["image_02"], [["image_02"]]),
    "back only": (["back"], [["back"]]),
    "nameless": (["a", "b", "c", "d"], [["a", "b", "c"], ["d"]]),
    "one nameless": (["front", "cam1"], [["front", "cam1"]]),
    "same place twice": (["front", "front_tele", "back"], [["front", "front_tele", "back"]]),
}


@pytest.mark.parametrize("rig", RIGS)
def test_cameras_lie_as_they_sit_on_the_vehicle(rig: str) -> None:
    names, rows = RIGS[rig]
    expected = {name: (r, c) for r, row in enumerate(rows) for c, name in enumerate(row) if name}
    assert arrange(names) == expected


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000)), max_size=9), st.integers(1, 7), st.booleans())
def test_panels_lie_on_the_page_and_apart(sizes: list[tuple[int, int]], blocks: int, has_points: bool) -> None:
    sizes_px = {f"cam{number}": size for number, size in enumerate(sizes)}
    page = paginate(sizes_px, blocks, has_points)
    assert len(page.blocks) == blocks
    boxes: list[Box] = []
    for block in page.blocks:
        assert set(block.cameras) == {name for name, size in sizes_px.items() if min(size) > 0}
        assert (block.above is not None) == has_points
        boxes += [*block.cameras.values(), *([block.above] if block.above else [])]
    for box in boxes:
        assert min(box.left, box.top, box.width, box.height) > 0
        assert box.left + box.width <= PAGE - GAP + 1e-6
        assert box.top + box.height <= page.height
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            beside = one.left + one.width <= other.left + 1e-6 or other.left + other.width <= one.left + 1e-6
            over = one.top + one.height <= other.top + 1e-6 or other.top + other.height <= one.top + 1e-6
            assert beside or over


def test_a_camera_panel_has_the_shape_of_its_image() -> None:
    for box in paginate({"front": (1600, 900), "back": (1600, 900)}, 1, True).blocks[0].cameras.values():
        assert box.height / box.width == pytest.approx(900 / 1600)


# --- drawing --------------------------------------------------------------------------------------------------------


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
) -> Picture:
    values = np.array(colours, np.float64).reshape(-1, 3)
    return Picture("title", "caption", sizes_px or {"front": (160, 90)}, pairs, {"": values}, images or {}, xyz_m)


def pixels(drawn: Picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw(drawn))).convert("RGB")).astype(int)


def at(drawn: Picture, u: float, v: float, camera: str = "front") -> tuple[int, int]:
    """Row and column of the page where a pixel of a camera is drawn."""
    box = paginate(drawn.camera_sizes_px, len(drawn.colours), drawn.xyz_m is not None).blocks[0].cameras[camera]
    width, height = drawn.camera_sizes_px[camera]
    x, y = box.left + (u + 0.5) / width * box.width, box.top + (v + 0.5) / height * box.height
    return int(y * DPI), int(x * DPI)


def mark(page: np.ndarray, row: float, column: float) -> list[int]:
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
    assert (page == rgb(RED)).all(-1).sum() == pytest.approx((page == rgb(GREEN)).all(-1).sum(), rel=0.1)


def test_each_camera_has_its_own_points() -> None:
    drawn = picture(
        pairs_of([(40, 30), (40, 30)], [5, 5], camera=[0, 1]),
        [RED, GREEN],
        sizes_px={"back": (160, 90), "front": (160, 90)},
    )
    page = pixels(drawn)
    assert page[at(drawn, 40, 30, "back")].tolist() == rgb(RED)
    assert page[at(drawn, 40, 30, "front")].tolist() == rgb(GREEN)


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
        page = pixels(picture(pairs_of([(80, 45)], [depth_m]), [RED]))
        areas.append((page[..., 0] > 128).sum() - (page[..., 1] > 128).sum())
    assert all(one > other > 0 for one, other in pairwise(areas))


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
    drawn = picture(pairs_of([(40, 30)], [5], camera=[1]), [RED], sizes_px={"back": (0, 0), "front": (160, 90)})
    assert pixels(drawn)[at(drawn, 40, 30)].tolist() == rgb(RED)


@pytest.mark.parametrize("forwards", [(1, 0), (0, 1), (-1, 0), (0, -1)])
def test_from_above_forwards_is_up_whatever_the_axes_of_the_lidar(forwards: tuple[int, int]) -> None:
    ahead, left = np.array(forwards), np.array([-forwards[1], forwards[0]])
    places = [10 * ahead, 8 * ahead + 4 * left, -12 * ahead]
    xyz_m = np.array([[*place, 0.0] for place in places], np.float32)
    drawn = picture(pairs_of([(80, 45), (40, 45)], [10, 8]), [RED, GREEN], xyz_m=xyz_m)
    page = pixels(drawn)
    box = paginate(drawn.camera_sizes_px, 1, True).blocks[0].above
    assert box is not None
    centre_x, centre_y = (box.left + box.width / 2) * DPI, (box.top + box.height / 2) * DPI
    metre = box.width / 2 * DPI / REACH_M[0]

    def colour(up_m: float, left_m: float) -> list[int]:
        return mark(page, centre_y - up_m * metre, centre_x - left_m * metre)

    assert colour(10, 0) == rgb(RED)
    assert colour(8, 4) == rgb(GREEN)
    assert colour(8, -4) == rgb(PANEL)
    assert colour(-12, 0) != rgb(PANEL)
    assert np.ptp(colour(-12, 0)) <= np.ptp(rgb(UNSEEN))  # grey


def test_from_above_a_point_seen_twice_has_the_mean_colour() -> None:
    pairs = pairs_of([(80, 45), (10, 45)], [10, 10], camera=[0, 1], point=[0, 0])
    sizes = {"front": (160, 90), "front_left": (160, 90)}
    drawn = picture(pairs, [RED, BLUE], sizes, xyz_m=np.array([[10, 0, 0]], np.float32))
    box = paginate(sizes, 1, True).blocks[0].above
    assert box is not None
    up = (10 / REACH_M[0]) * box.height / 2
    where = (box.top + box.height / 2 - up) * DPI, (box.left + box.width / 2) * DPI
    assert mark(pixels(drawn), *where) == rgb(np.array([0.5, 0, 0.5]))


def test_forwards_is_where_the_front_camera_looks() -> None:
    xyz_m = np.array([[0, 9, 0], [1, 9, 0], [-9, 0, 0]], np.float32)
    pairs = pairs_of([(0, 0)] * 3, [9] * 3, camera=[1, 1, 0])
    assert forward_quarter(["front_left", "front"], pairs, xyz_m) == 1
    assert abs(forward_quarter(["front", "back"], pairs, xyz_m)) == 2
    assert forward_quarter([], pairs_of([], []), xyz_m) == 0
    np.testing.assert_array_equal(turn_about(xyz_m, -1)[:2], [[9, 0], [9, -1]])


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
    show_frame(cache, 0, "vit", ["4"], out)
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
    show_frame(cache, 0, "vit", [4], tmp_path / "hidden.png", hidden=True)
    assert (drawn_pixels(tmp_path / "hidden.png") != page).any()


def test_defaults_are_the_first_teacher_and_its_last_layer(store: Path, tmp_path: Path) -> None:
    cache = open_cache(store)
    show_frame(cache, 2, None, None, tmp_path / "default.png")
    show_frame(cache, 2, "vit", ["4"], tmp_path / "named.png")
    assert (tmp_path / "default.png").read_bytes() == (tmp_path / "named.png").read_bytes()


def test_layers_lie_side_by_side(store: Path, tmp_path: Path) -> None:
    show_frame(open_cache(store), 0, "cnn", ["stage1", "stage2"], tmp_path / "two.png")
    page = drawn_pixels(tmp_path / "two.png").astype(int)
    one, other = paginate(dict.fromkeys(CAMERAS, (160, 96)), 2, True).blocks
    assert one.heading.top == other.heading.top
    halves = page[:, : page.shape[1] // 2], page[:, page.shape[1] // 2 :]
    assert all((np.ptp(half, axis=-1) > 60).sum() > 500 for half in halves)


@pytest.mark.parametrize("index", [1, 5, 9])
def test_frames_that_lack_a_camera_pairs_or_points_are_drawn(store: Path, tmp_path: Path, index: int) -> None:
    cache = open_cache(store)
    frame = cache[index]
    assert frame.absent or not len(frame.pairs) or not len(frame.points)
    show_frame(cache, index, "vit", None, tmp_path / "frame.png")
    assert drawn_pixels(tmp_path / "frame.png").shape[1] == PAGE * DPI


def test_a_store_without_points_has_no_view_from_above(tmp_path: Path) -> None:
    cache = open_cache(tiny_cache(tmp_path / "cache", store_points=False))
    show_frame(cache, 0, "vit", None, tmp_path / "frame.png")
    page = paginate(cache[0].camera_sizes_px, 1, False)
    assert drawn_pixels(tmp_path / "frame.png").shape[0] == pytest.approx(page.height * DPI, abs=1)


def test_what_cannot_be_drawn_is_said(store: Path, tmp_path: Path) -> None:
    cache, out = open_cache(store), tmp_path / "frame.png"
    for index in (-1, 10):
        with pytest.raises(UsageError, match=f"10 frames, there is no frame {index}"):
            show_frame(cache, index, "vit", None, out)
    with pytest.raises(NotInCache, match="no teacher 'vitt'"):
        show_frame(cache, 0, "vitt", None, out)
    with pytest.raises(NotInCache, match="no layer 3 of vit"):
        show_frame(cache, 0, "vit", [2, 3], out)
    with pytest.raises(UsageError, match=r"cannot write .*No such file"):
        show_frame(cache, 0, "vit", None, tmp_path / "nowhere" / "frame.png")
    assert not out.exists()
