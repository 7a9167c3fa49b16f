"""Layers and image sizes: what was asked for is what is used, or the error says what could be."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_cache.teachers.layers import check_image_size, select_layers
from hilda_schema.errors import TeacherError


@given(depth=st.integers(1, 40), data=st.data())
def test_numbers_and_negative_indices_are_pythons_own(depth, data):
    names = [str(number) for number in range(1, depth + 1)]
    positions = data.draw(st.sets(st.integers(0, depth - 1), min_size=1))
    asked = [data.draw(st.sampled_from([i + 1, i - depth, str(i + 1), str(i - depth)])) for i in positions]
    shuffled = data.draw(st.permutations(asked))
    assert select_layers(shuffled, names, "t") == tuple(sorted(positions))


@given(depth=st.integers(1, 40), number=st.integers(-100, 100))
def test_numbers_out_of_range_are_refused(depth, number):
    names = [f"stage{i}" for i in range(1, depth + 1)]
    if number != 0 and -depth <= number <= depth:
        assert len(select_layers([number], names, "t")) == 1
    else:
        with pytest.raises(TeacherError, match=re.escape(f"no layer '{number}'")):
            select_layers([number], names, "t")


def test_a_name_wins_over_a_number():
    assert select_layers(["2"], ["2", "1"], "t") == (0,)


@pytest.mark.parametrize("asked", [("stage2", "-1"), ("1", "1"), (1, "stage1")])
def test_the_same_layer_twice_is_refused(asked):
    with pytest.raises(TeacherError, match="are the same"):
        select_layers(asked, ["stage1", "stage2"], "t")


@given(height=st.integers(1, 2000), width=st.integers(1, 2000), steps=st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_sizes_that_are_advised_are_themselves_right(height, width, steps):
    if height % steps[0] == 0 and width % steps[1] == 0:
        check_image_size((height, width), steps, "t")
        return
    with pytest.raises(TeacherError) as caught:
        check_image_size((height, width), steps, "t")
    advised = [tuple(map(int, pair)) for pair in re.findall(r"(\d+)x(\d+)", caught.value.remedy)]
    assert advised
    for size in advised:
        check_image_size(size, steps, "t")
        assert abs(size[0] - height) < steps[0]
        assert abs(size[1] - width) < steps[1]
