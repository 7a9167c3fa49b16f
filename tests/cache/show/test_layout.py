"""Pages by their rules: panels lie on the page and apart, cameras as they sit on the vehicle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_cache.show.layout import COLUMN, GAP, PAGE, WIDE_ASPECT, Box, Page, arrange, paginate, paginate_sweeps

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
    for block in page.blocks:
        assert set(block.cameras) == {name for name, size in sizes_px.items() if min(size) > 0}
        assert (block.sweep is not None) == has_points
    assert_apart(page)


@given(st.integers(1, 7), st.booleans())
def test_sweeps_alone_lie_on_the_page_and_apart(blocks: int, in_perspective: bool) -> None:
    page = paginate_sweeps(blocks, in_perspective=in_perspective)
    assert len(page.blocks) == blocks
    assert page.width == (COLUMN if blocks == 1 and not in_perspective else PAGE)
    for block in page.blocks:
        assert block.sweep is not None
        assert block.sweep.height / block.sweep.width == pytest.approx(WIDE_ASPECT if in_perspective else 1)
    assert_apart(page)


def assert_apart(page: Page) -> None:
    boxes: list[Box] = []
    for block in page.blocks:
        boxes += [block.heading, *block.cameras.values(), *([block.sweep] if block.sweep else [])]
    for box in boxes:
        assert min(box.left, box.top, box.width, box.height) > 0
        assert box.left + box.width <= page.width - GAP + 1e-6
        assert box.top + box.height <= page.height
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            beside = one.left + one.width <= other.left + 1e-6 or other.left + other.width <= one.left + 1e-6
            over = one.top + one.height <= other.top + 1e-6 or other.top + other.height <= one.top + 1e-6
            assert beside or over


def test_a_camera_panel_has_the_shape_of_its_image() -> None:
    for box in paginate({"front": (1600, 900), "back": (1600, 900)}, 1, True).blocks[0].cameras.values():
        assert box.height / box.width == pytest.approx(900 / 1600)
