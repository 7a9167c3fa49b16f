"""Untrusted JSON: nothing unknown, damaged, newer or huge gets past the gate."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_schema.errors import CacheCorrupt, CacheVersion, HildaError
from hilda_schema.manifest import Manifest, Recipe, canonical_json, parse_json, sha256_hex
from hilda_schema.testing import tiny_recipe

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def example() -> Manifest:
    return Manifest(writer="test", recipe=tiny_recipe(), state="partial", planned_parts=3)


def signed(content: dict[str, object]) -> bytes:
    """A manifest whose checksum is right, whatever it says: what an attacker would send."""
    content = {name: value for name, value in content.items() if name != "self_sha256"}
    return canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})


@given(JSON)
def test_canonical_json_is_read_back(value: object) -> None:
    assert parse_json(canonical_json(value), "here") == value


@given(JSON)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: object) -> None:
    def reversed_keys(each: object) -> object:
        if isinstance(each, dict):
            return {name: reversed_keys(each[name]) for name in reversed(list(each))}
        return [reversed_keys(one) for one in each] if isinstance(each, list) else each

    assert canonical_json(reversed_keys(value)) == canonical_json(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a":1,"a":2}',
        b'{"a": 1}',
        b'{"b":1,"a":2}',
        b"NaN",
        b"[Infinity]",
        b"[1.00]",
        b"1e5",
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"9" * 10_000,
        b'"\\u0061"',
        b'"\\ud800"',
        b"[1]\n",
    ],
)
def test_json_that_we_would_not_write_is_refused(data: bytes) -> None:
    with pytest.raises(CacheCorrupt, match="here"):
        parse_json(data, "here")


def test_a_manifest_comes_back_with_its_checksum() -> None:
    data = example().to_bytes()
    read = Manifest.from_bytes(data, "here")
    assert read.to_bytes() == data
    assert read.model_copy(update={"self_sha256": ""}) == example()


def test_history_is_not_written_where_there_is_none() -> None:
    assert not {"parents", "forgotten"} & json.loads(example().to_bytes()).keys()
    explicit = signed({**json.loads(example().to_bytes()), "parents": []})
    with pytest.raises(CacheCorrupt, match="leaves out a field"):
        Manifest.from_bytes(explicit, "here")


def ancestry(generations: int) -> bytes:
    """A manifest with so many generations of parents, written without recursion."""
    opened = '[{"detail":"","encoding_error":{},"operation":"subset","parents":' * generations
    parents = opened + "[]" + f',"root_sha256":"{"0" * 64}"}}]' * generations
    content = canonical_json({**example().model_dump(mode="json", exclude={"self_sha256"}), "parents": "here"})
    content = content.replace(b'"here"', parents.encode())
    return content.replace(b',"software"', f',"self_sha256":"{sha256_hex(content)}","software"'.encode(), 1)


@pytest.mark.parametrize("generations", [1, 32])
def test_some_generations_of_parents_are_read_back(generations: int) -> None:
    data = ancestry(generations)
    assert Manifest.from_bytes(data, "here").to_bytes() == data


@pytest.mark.parametrize("generations", [33, 100, 240, 300, 2000, 50_000])
def test_parents_nested_too_deep_are_refused(generations: int) -> None:
    with pytest.raises(CacheCorrupt, match="here"):
        Manifest.from_bytes(ancestry(generations), "here")


@given(st.data())
def test_any_flipped_bit_of_a_manifest_is_noticed(data: st.DataObject) -> None:
    content = bytearray(example().to_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(HildaError):
        Manifest.from_bytes(bytes(content), "here")


def test_a_newer_schema_is_named_with_ours_before_anything_else_is_judged() -> None:
    newer = signed({"schema_version": "2.3", "something": "new"})
    with pytest.raises(CacheVersion, match=r"schema 2\.3, this program reads 1\.0") as caught:
        Manifest.from_bytes(newer, "here")
    assert "update hilda-lidar" in caught.value.remedy


@pytest.mark.parametrize("version", [None, 1, "", "1", "one", "1.0.0", "9" * 100 + ".0", ["1.0"]])
def test_a_version_that_is_none_is_damage(version: object) -> None:
    with pytest.raises(CacheCorrupt, match="which schema"):
        Manifest.from_bytes(signed({"schema_version": version}), "here")


def deep(content: dict[str, object], path: str, value: object) -> dict[str, object]:
    """A copy with one nested field changed; "" as the last name adds a field."""
    changed = json.loads(json.dumps(content))
    *above, last = path.split(".")
    place = changed
    for name in above:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last or "unknown"] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", 1),
        ("recipe.", 1),
        ("recipe.teachers.0.", 1),
        ("recipe.teachers.0.name", ".."),
        ("recipe.teachers.0.name", "../../etc"),
        ("recipe.teachers.0.name", "a/b"),
        ("recipe.teachers.0.name", "/etc"),
        ("recipe.teachers.0.name", ""),
        ("recipe.teachers.0.name", "a\u0000b"),
        ("recipe.teachers.0.name", "a\n"),
        ("recipe.teachers.0.layers.0.name", "../x"),
        ("recipe.teachers.0.layers.0.channels", 2**62),
        ("recipe.teachers.0.layers.0.channels", 0),
        ("recipe.teachers.0.layers.0.height", -1),
        ("recipe.teachers.0.layers.0.height", 6.0),
        ("recipe.teachers.0.layers.0.height", "6"),
        ("recipe.teachers.0.layers.0.height", True),
        ("recipe.teachers.0.global_width", 10**30),
        ("recipe.encoding.kind", "pickle"),
        ("recipe.encoding.dtype", "object"),
        ("recipe.projection.pixel_convention", "corners"),
        ("planned_parts", -1),
        ("planned_parts", 10**40),
        ("state", "done"),
        ("parts", [{"part": "../x", "scene": "s", "frames": 1, "bytes": 1, "seal_sha256": "0" * 64}]),
        ("parts", [{"part": "x", "scene": "s", "frames": 1, "bytes": 1, "seal_sha256": "0" * 63}]),
        ("parts", [{"part": "x", "scene": "s", "frames": 10**20, "bytes": 1, "seal_sha256": "0" * 64}]),
        ("parts", "x"),
    ],
)
def test_a_hostile_manifest_is_refused_by_field(path: str, value: object) -> None:
    content = json.loads(example().to_bytes())
    with pytest.raises(CacheCorrupt, match=path.split(".")[-1] or "unknown"):
        Manifest.from_bytes(signed(deep(content, path, value)), "here")


def test_a_recipes_digest_leaves_out_the_selection_alone() -> None:
    recipe = tiny_recipe()
    digest = recipe.digest()
    other = recipe.selection.model_copy(update={"frames": "0:5"})
    assert recipe.model_copy(update={"selection": other}).digest() == digest
    changes = {
        "part_frames": 7,
        "store_points": False,
        "encoding": tiny_recipe("point").encoding,
        "teachers": recipe.teachers[:1],
        "dataset": recipe.dataset.model_copy(update={"version": "2"}),
        "projection": recipe.projection.model_copy(update={"min_depth_m": 2.0}),
    }
    assert set(changes) | {"selection"} == set(Recipe.model_fields)
    digests = {recipe.model_copy(update={name: value}).digest() for name, value in changes.items()}
    assert len(digests | {digest}) == len(changes) + 1
