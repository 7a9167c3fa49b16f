"""Command-line options become a request, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_cache.options import drive_spec, specs_of_store, teacher_specs
from hilda_cache.request import Selection, name_teacher, parse_image_size, split_per_teacher
from hilda_schema.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("facebook/dinov2-small", "dinov2-small", "facebook/dinov2-small"),
        ("facebook/dinov2-small@abc", "dinov2-small", "facebook/dinov2-small@abc"),
        ("dino=facebook/dinov2-small", "dino", "facebook/dinov2-small"),
        ("/models/My ViT/", "my-vit", "/models/My ViT/"),
        ("evit=../efficientvit_b0.py:teacher", "evit", "../efficientvit_b0.py:teacher"),
        ("../efficientvit_b0.py:teacher", "efficientvit_b0", "../efficientvit_b0.py:teacher"),
        ("my_package.models:make", "my_package-models", "my_package.models:make"),
    ],
)
def test_teachers_are_named(text: str, name: str, source: str) -> None:
    assert name_teacher(text) == (name, source)


@pytest.mark.parametrize("text", ["../x=y", "A B=y", "=y", "x" * 80 + "=y"])
def test_names_that_cannot_be_folders_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not usable"):
        name_teacher(text)


def test_image_size_is_height_by_width() -> None:
    assert parse_image_size("224x448") == (224, 448)
    for text in ("224", "224x", "x448", "224*448", "-1x3"):
        with pytest.raises(UsageError, match="HEIGHTxWIDTH"):
            parse_image_size(text)


@given(st.integers(-50, 50) | st.none(), st.integers(-50, 50) | st.none())
def test_frame_ranges_are_python_slices(start: int | None, stop: int | None) -> None:
    text = f"{'' if start is None else start}:{'' if stop is None else stop}"
    assert Selection(frames=text).frame_slice() == slice(start, stop)


@pytest.mark.parametrize("text", ["", "5", "1:2:3", "a:b", "1-5"])
def test_other_frame_ranges_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a range"):
        Selection(frames=text).frame_slice()


def test_options_for_one_teacher_win_over_those_for_all() -> None:
    assert split_per_teacher("--layers", ["-1", "b=-3,-1"], ["a", "b"]) == {"a": "-1", "b": "-3,-1"}
    assert split_per_teacher("--layers", ["b=-3"], ["a", "b"]) == {"b": "-3"}
    with pytest.raises(UsageError, match="names teacher 'c'"):
        split_per_teacher("--layers", ["c=-1"], ["a", "b"])
    with pytest.raises(UsageError, match="twice"):
        split_per_teacher("--layers", ["-1", "-2"], ["a", "b"])
    with pytest.raises(UsageError, match="twice for teacher 'a'"):
        split_per_teacher("--layers", ["a=-1", "a=-2"], ["a", "b"])


def test_teachers_get_their_own_layers_sizes_and_norms() -> None:
    specs = teacher_specs(
        ["a=org/one", "b=org/two"], ["-1", "b=stage3,stage4"], ["a=112x224"], ["b=post"], False, False
    )
    assert [(spec.name, spec.layers, spec.image_size, spec.norm) for spec in specs] == [
        ("a", ("-1",), (112, 224), "pre"),
        ("b", ("stage3", "stage4"), (224, 448), "post"),
    ]
    with pytest.raises(UsageError, match="two teachers are named 'a'"):
        teacher_specs(["a=x", "a=y"], [], [], [], False, False)


def test_reader_options_are_key_value() -> None:
    assert drive_spec(Path("/d"), "nuscenes", ["version=v1.0-mini", "a=b=c"]).options == (
        ("a", "b=c"),
        ("version", "v1.0-mini"),
    )
    with pytest.raises(UsageError, match="not KEY=VALUE"):
        drive_spec(Path("/d"), "nuscenes", ["version"])


def test_a_store_of_one_teacher_needs_no_name_to_be_checked_again(tmp_path: Path) -> None:
    from hilda_schema.manifest import LayerInfo, TeacherInfo

    info = TeacherInfo(
        name="dino", source="org/dino", architecture="ViT", weights_sha256="0" * 64, norm="pre", image_height_px=28,
        image_width_px=56, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), resize="r", precision="float32",
        precision_reason="asked for", layers=(LayerInfo(name="3", channels=8, height=2, width=4),), global_width=8,
    )  # fmt: skip
    (spec,) = specs_of_store((info,), [str(tmp_path)])
    assert (spec.name, spec.source, spec.layers, spec.image_size) == ("dino", str(tmp_path), ("3",), (28, 56))
    with pytest.raises(UsageError, match="the store's teachers are dino"):
        specs_of_store((info,), ["a=x", "b=y"])
