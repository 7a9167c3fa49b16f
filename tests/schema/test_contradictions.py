"""Files with right checksums that contradict each other or the format: what a careless writer or an attacker makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hilda_schema.errors import CacheCorrupt, CacheError, UsageError
from hilda_schema.layout import check_names
from hilda_schema.manifest import canonical_json, sha256_hex
from hilda_schema.reader import open_cache
from hilda_schema.testing import reseal, set_values, sign, tiny_cache, tiny_parts, tiny_recipe
from hilda_schema.testing.damage import Change
from hilda_schema.verify import verify
from hilda_schema.writer import start_store, write_part


def problems(store: Path) -> str:
    return "\n".join(map(str, verify(store).problems))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tiny_cache(tmp_path / "cache", scenes=1, frames=4, points=50)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("software"),
        lambda content: content["recipe"].pop("store_points"),
        lambda content: content["recipe"]["projection"].update(min_depth_m=1),
    ],
)
def test_a_manifest_has_one_form(store: Path, change: Change) -> None:
    """A field left to its default, or 1 for 1.0, would give one recipe two digests."""
    sign(store / "manifest.json", change)
    with pytest.raises(CacheCorrupt, match=r"manifest\.json leaves out a field") as caught:
        open_cache(store)
    assert caught.value.remedy
    assert "leaves out a field" in problems(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"planned_parts": 3}, "2 of 3 parts"),
        ({"frames": 5}, "do not have 5 frames"),
        ({"group_sha256": "0" * 64}, r"zarr\.json that it names"),
    ],
)
def test_a_complete_manifest_agrees_with_itself(store: Path, change: dict[str, Any], message: str) -> None:
    sign(store / "manifest.json", lambda content: content.update(change))
    with pytest.raises(CacheCorrupt, match=message):
        open_cache(store)


def test_verify_compares_the_manifest_with_the_seals(store: Path) -> None:
    def reverse(content: dict[str, Any]) -> None:
        content["parts"].reverse()
        rows = [[entry["part"], entry["seal_sha256"]] for entry in content["parts"]]
        content["root_sha256"] = sha256_hex(canonical_json(rows))

    sign(store / "manifest.json", reverse)
    assert "reading order" in problems(store)
    sign(store / "manifest.json", reverse)
    assert problems(store) == ""
    sign(store / "manifest.json", lambda content: content["encoding_error"]["vit/4"].update(cosine_min=1.0))
    assert problems(store) == "manifest.json: does not say the encoding error that the seals say"


def names_twice(content: dict[str, Any]) -> None:
    content["frames"][2]["key"] = content["frames"][0]["key"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (names_twice, "names a frame twice"),
        (lambda content: content["frames"][0].update(stamp_ns=2**62), "order of time"),
        (lambda content: content["frames"][0]["absent"].update(TOP="lost"), "'TOP' is absent"),
        (lambda content: content["encoding_error"].pop("cnn/stage1"), "exactly the recipe's layers"),
    ],
)
def test_a_seal_agrees_with_the_format(store: Path, change: Change, message: str) -> None:
    reseal(store, change)
    assert message in problems(store)
    with pytest.raises(CacheCorrupt, match=message):
        _ = open_cache(store)[0].points


def test_offsets_that_are_all_shifted_are_noticed_at_the_first_frame(store: Path) -> None:
    """Every difference is right, every frame would get rows of its neighbour."""
    set_values(store, "pairs/offset", lambda values: values.__iadd__(1))
    with pytest.raises(CacheCorrupt, match="pairs/offset"):
        _ = open_cache(store)[0].pairs


@pytest.mark.parametrize("name", ["points", "Pairs", "PRESENT", "seal.json", "zarr.json", "Zarr.json"])
def test_no_teacher_takes_a_name_of_ours(name: str) -> None:
    recipe = tiny_recipe()
    teacher = recipe.teachers[0].model_copy(update={"name": name})
    with pytest.raises(UsageError, match="folder or file of that name"):
        check_names(recipe.model_copy(update={"teachers": (teacher,)}))


def test_no_camera_takes_the_name_of_absent_sweeps() -> None:
    recipe = tiny_recipe()
    cameras = recipe.dataset.model_copy(update={"cameras": ("FRONT", "lidar")})
    with pytest.raises(UsageError, match="'lidar'"):
        check_names(recipe.model_copy(update={"dataset": cameras}))


def test_the_writer_refuses_a_frame_twice_and_an_absence_of_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    part = tiny_parts(recipe, scenes=1, frames=3, points=20)[0]
    first, middle, last = part.frames
    start_store(tmp_path / "cache", recipe, planned_parts=1)
    with pytest.raises(CacheError, match="names a frame twice"):
        write_part(tmp_path / "cache", recipe, replace(part, frames=(first, middle, replace(last, key=first.key))))
    stray = replace(first, absent={"TOP": "lost"})
    with pytest.raises(CacheError, match="'TOP' is absent"):
        write_part(tmp_path / "cache", recipe, replace(part, frames=(stray, middle, last)))
    assert list((tmp_path / "cache" / "parts").iterdir()) == []
