"""The key: one string form, one order, no gaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_schema.errors import UsageError
from hilda_schema.keys import Key

field = st.text(min_size=1, max_size=20).filter(lambda text: text not in {".", ".."})
keys = st.lists(field, min_size=1, max_size=6).map(lambda fields: Key(*fields))


@given(keys)
def test_string_form_reads_back(key: Key) -> None:
    assert Key.parse(str(key)) == key


@given(keys)
def test_string_form_has_one_separator_per_field(key: Key) -> None:
    fields = [key.drive, key.scene, key.frame, key.camera, key.teacher, key.layer]
    assert str(key).count("/") == sum(map(bool, fields)) - 1


@given(st.lists(st.tuples(field, field), min_size=2, max_size=6, unique=True))
def test_order_is_field_by_field(pairs: list[tuple[str, str]]) -> None:
    assert sorted(Key(*pair) for pair in pairs) == [Key(*pair) for pair in sorted(pairs)]


def test_gaps_and_path_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="gap"):
        Key("kitti", "", "5")
    with pytest.raises(UsageError, match="gap"):
        Key("")
    with pytest.raises(UsageError, match="path step"):
        Key("kitti", "..")
    with pytest.raises(UsageError, match="not a key"):
        Key.parse("a/b/c/d/e/f/g")
    with pytest.raises(UsageError, match="not a key"):
        Key.parse("a//c")
