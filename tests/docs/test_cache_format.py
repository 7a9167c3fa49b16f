"""docs/cache-format.md says what the code does: every table, every example, every number."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types as at
import numpy as np
import pyarrow as pa
import pytest
import zarr
from pydantic import BaseModel, TypeAdapter, ValidationError

from hilda_cache.drives.frame import CameraView, FrameInfo
from hilda_cache.parts import Sources, calibration_sha256, part_id
from hilda_cache.reshape.derive import derived_id, narrow_recipe
from hilda_schema import layout, manifest, part, root
from hilda_schema.encoding import ChannelStatistics, decode_int8, dequantise_uv, encode_int8, quantise_uv
from hilda_schema.keys import Key
from hilda_schema.layout import FILL, ArraySpec, PartSizes, part_arrays, ragged_rows
from hilda_schema.sampling import sample_grid
from hilda_schema.table import SCHEMA
from hilda_schema.testing import tiny_cache, tiny_recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cache-format.md").read_text()
ENCODINGS = [(kind, dtype) for kind in ("grid", "point") for dtype in ("float16", "int8")]
NAMED = {
    name: getattr(manifest, attribute)
    for name, attribute in {
        "name": "SafeName",
        "sha256": "Sha256",
        "count": "Count",
        "extent": "Extent",
        "int64": "Int64",
        "crc32c": "Crc32c",
    }.items()
}
PLAIN = {str: "string", bool: "boolean", float: "number"}


def table(*header: str) -> list[list[str]]:
    """Rows of all tables with this header."""
    pattern = re.escape(f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n") + r"((?:\|.*\n)+)"
    found = "".join(re.findall(pattern, PAGE))
    rows = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in found.splitlines()]
    assert rows
    assert {len(row) for row in rows} == {len(header)}
    return rows


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's examples define, after they ran."""
    tiny_cache(tmp_path / "cache", scenes=1, frames=3)
    monkeypatch.chdir(tmp_path)
    return run_examples()


def run_examples() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        above = PAGE[: PAGE.index(block)].count("\n")  # a traceback shows the page's own lines
        exec(compile("\n" * above + block, "docs/cache-format.md", "exec"), names)
    return names


@pytest.mark.parametrize(("kind", "dtype"), ENCODINGS)
def test_every_example_runs_on_every_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str
) -> None:
    tiny_cache(tmp_path / "cache", kind=kind, dtype=dtype)
    monkeypatch.chdir(tmp_path)
    run_examples()


def test_the_examples_notice_damage(tmp_path: Path, names: dict[str, Any]) -> None:
    shard = names["part"] / "vit/layer_2/tokens/c.0.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(AssertionError, match="chunk 0 is damaged"):
        names["read_chunk"](names["part"], "vit/layer_2/tokens", 0)
    path = tmp_path / "cache/manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"planned_parts":1', b'"planned_parts":2'))
    with pytest.raises(AssertionError, match="is damaged"):
        names["load"](path)


def type_in_words(hint: Any, metadata: list[Any]) -> str:
    """A field's type as the page writes it."""
    for word, kind in NAMED.items():
        if hint is kind:
            return word
    if hint in PLAIN:
        return PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint.__name__
    if hint is int:
        return integer_in_words(metadata)
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if each is type(None) else type_in_words(each, metadata) for each in arguments)
    if get_origin(hint) is Literal:
        return " or ".join(f'`"{each}"`' for each in arguments)
    if get_origin(hint) is dict:
        assert arguments[0] is str
        return f"object of {type_in_words(arguments[1], [])}"
    assert get_origin(hint) is tuple, hint
    inner = type_in_words(arguments[0], [])
    least = next((each.min_length for each in metadata if isinstance(each, at.MinLen)), 0)
    if least > 1 or arguments[-1] is not Ellipsis:
        assert least in (0, next((each.max_length for each in metadata if isinstance(each, at.MaxLen)), 0))
        return f"{least or len(arguments)} {inner}s"
    return f"list of {inner}" + (", not empty" if least else "")


def integer_in_words(metadata: list[Any]) -> str:
    bounds = {type(each): each for each in metadata}
    least = bounds[at.Ge].ge if at.Ge in bounds else bounds[at.Gt].gt + 1
    if at.Le not in bounds:
        return f"integer from {least}"
    power = bounds[at.Le].le.bit_length() - 1
    assert bounds[at.Le].le == 2**power
    return f"integer {least} to 2^{power}"


def test_every_field_of_every_object_is_documented() -> None:
    written: dict[str, dict[str, str]] = {}
    current = ""
    for name, field, kind, _ in table("object", "field", "type", "meaning"):
        current = name or current
        assert written.setdefault(current, {}).setdefault(field.strip("`"), kind) == kind
    expected = {}
    for model in vars(manifest).values():
        if not isinstance(model, type) or not issubclass(model, manifest.Strict) or not model.model_fields:
            continue
        if model is manifest.SelfChecked:
            continue
        hints = get_type_hints(model, include_extras=True)
        expected[model.__name__] = {
            name: type_in_words(hints[name], field.metadata) for name, field in model.model_fields.items()
        }
    assert written == expected


def integer(text: str) -> int:
    """A number as the page writes it: -2^63, 2^63 - 1."""
    match = re.fullmatch(r"(-?)(\d+)(?:\^(\d+))?( - 1)?", text)
    assert match
    sign, base, power, minus = match.groups()
    return int(f"{sign}1") * int(base) ** int(power or 1) - bool(minus)


def test_the_named_types_have_the_documented_bounds() -> None:
    rows = {name.strip("`"): (kind, bound.strip("`")) for name, kind, bound in table("type", "JSON", "bound")}
    assert rows.keys() == NAMED.keys() | set(PLAIN.values())
    for word, annotation in NAMED.items():
        kind, bound = rows[word]
        check = TypeAdapter(annotation).validate_python
        if kind == "string":
            assert annotation.__metadata__[0].metadata[0].pattern == bound
            continue
        least, most = map(integer, bound.split(" to "))
        assert (check(least, strict=True), check(most, strict=True)) == (least, most)
        for value in (least - 1, most + 1, float(least), str(least), True):
            with pytest.raises(ValidationError):
                check(value, strict=True)


def test_the_columns_of_the_table_are_documented_in_order() -> None:
    kinds = {"int64": pa.int64(), "string": pa.string(), "list of double": SCHEMA.field("world_SE3_ego").type}
    fields = []
    for name, kind, _ in table("column", "type", "meaning"):
        plain = kind.removesuffix(" or null")
        fields.append(pa.field(name.strip("`"), kinds[plain], nullable=plain != kind))
    assert pa.schema(fields).equals(SCHEMA)


def documented_arrays(recipe: manifest.Recipe, sizes: PartSizes) -> dict[str, tuple[object, ...]]:
    """The page's table, filled in for a recipe."""
    F, V, N, P = sizes.frames, len(recipe.dataset.cameras), sizes.points, sizes.pairs
    holds = {
        "always": True,
        "points": recipe.store_points,
        "cameras": V > 0,
        "grid": recipe.encoding.kind == "grid",
        "point": recipe.encoding.kind == "point",
        "int8": recipe.encoding.dtype == "int8",
    }
    fills = {name: fill for kinds, fill in table("type", "fill value") for name in kinds.split(", ")}
    found = {}
    for path, dtype, dims, shape, chunk, unit, where in table(
        "path", "type", "dimensions", "shape", "chunk", "unit", "where"
    ):
        name = path.strip("`")
        kind = recipe.encoding.dtype if dtype == "dtype" else dtype
        for teacher in recipe.teachers if name.startswith("T/") else (None,):
            for layer in teacher.layers if teacher and "layer_L" in name else (None,):
                known = {"F": F, "F + 1": F + 1, "V": V, "N": N, "P": P, "3": 3, "2": 2}
                known |= {"H": layer.height, "W": layer.width, "C": layer.channels} if layer else {}
                known |= {"M": layer.reduction.channels} if layer and layer.reduction else {}
                known |= {"D": teacher.global_width} if teacher else {}
                conditions = {"optional": name.rsplit("/")[-1] in sizes.point_columns, "D > 0": known.get("D", 0) > 0}
                conditions["reduced"] = "M" in known
                if not all((holds | conditions)[each] for each in where.split(", ")):
                    continue
                extents = tuple(known[each] for each in shape.split(", "))
                row_bytes = int(np.prod(extents[1:])) * np.dtype(kind).itemsize
                rows = {"frame": 1, "whole": extents[0], "ragged": documented_rows(extents[0], row_bytes)}[chunk]
                filled = name.replace("T/", f"{teacher.name}/" if teacher else "")
                filled = filled.replace("layer_L", f"layer_{layer.name}" if layer else "")
                assert filled not in found
                found[filled] = (kind, tuple(dims.split(", ")), extents, rows, unit, json.loads(fills[kind].strip("`")))
    return found


def reduced(recipe: manifest.Recipe) -> manifest.Recipe:
    """One layer of it with fewer channels than the model's."""
    vit, *others = recipe.teachers
    first, *more = vit.layers
    info = manifest.ReductionInfo(
        channels=first.channels + 3, basis_sha256="0" * 64, explained_variance=0.5, method="by hand"
    )
    layers = (first.model_copy(update={"reduction": info}), *more)
    return recipe.model_copy(update={"teachers": (vit.model_copy(update={"layers": layers}), *others)})


def documented_rows(rows: int, row_bytes: int) -> int:
    rule = re.search(
        r"power of two that is at most 2\^(\d+) / \(bytes of a\s+row\).*at most 2\^(\d+);", PAGE, re.DOTALL
    )
    assert rule
    power = 1
    while power * 2 * row_bytes <= 2 ** int(rule[1]):
        power *= 2
    return max(1, min(power, 2 ** int(rule[2]), rows))


@pytest.mark.parametrize(("kind", "dtype"), ENCODINGS)
@pytest.mark.parametrize("columns", [set(), {"ring"}, {"ring", "label", "time_offset_ns"}])
@pytest.mark.parametrize("bare", [False, True])
def test_a_part_has_exactly_the_documented_arrays(kind: str, dtype: str, columns: set[str], bare: bool) -> None:
    recipe = reduced(tiny_recipe(kind, dtype, store_points=not bare))
    if bare:
        recipe = recipe.model_copy(
            update={"teachers": (), "dataset": recipe.dataset.model_copy(update={"cameras": ()})}
        )
    for counts in ((7, 0, 0), (1, 100, 50), (3, 10**6, 70_000)):
        sizes = PartSizes(*counts, frozenset(columns))
        expected = {
            path: (spec.dtype, spec.dims, spec.shape, spec.chunk_rows, spec.unit, FILL[spec.dtype])
            for path, spec in part_arrays(recipe, sizes).items()
        }
        assert documented_arrays(recipe, sizes) == expected


def test_ragged_chunks_follow_the_documented_rule() -> None:
    for row_bytes in (1, 2, 3, 12, 96, 1536, 4097, 2**19, 2**19 + 1, 2**21):
        for rows in (0, 1, 2, 1000, 2**15 - 1, 2**15, 2**20):
            assert ragged_rows(rows, row_bytes) == documented_rows(rows, row_bytes)


def test_the_metadata_example_is_what_is_written() -> None:
    (example,) = map(json.loads, blocks("json"))
    dims, shape = tuple(example["dimension_names"]), tuple(example["shape"])
    assert example == json.loads(ArraySpec("tokens", "float16", dims, shape, chunk_rows=1).metadata())


def test_limits_and_reserved_names_are_the_codes() -> None:
    found = re.search(
        r"manifest.json at most 2\^(\d+) bytes, frames.parquet 2\^(\d+), seal.json 2\^(\d+),\s+a zarr.json 2\^(\d+)",
        PAGE,
    )
    assert found is not None
    limits = (root.MANIFEST_LIMIT, root.FRAMES_LIMIT, part.SEAL_LIMIT, part.METADATA_LIMIT)
    assert tuple(2 ** int(power) for power in found.groups()) == limits
    (sentence,) = (row[3] for row in table("object", "field", "type", "meaning") if "its folder in a part" in row[3])
    assert set(re.findall(r"`([^`]+)`", sentence)) == layout.RESERVED
    assert f"format {manifest.SCHEMA_VERSION}\n" in PAGE
    assert tuple(number for number, _ in table("number", "adds")) == manifest.SCHEMA_VERSIONS


def test_the_example_functions_are_the_codes(names: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(5, 9, 4)).astype(np.float32)
    positions = np.concatenate([rng.random((300, 2)), [[0, 0], [0.5, 0.5], [1 - 2**-17, 2**-17]]])
    for mode in ("bilinear", "nearest"):
        expected = sample_grid(grid[None], np.zeros(len(positions), np.uint8), positions, mode)
        found = np.stack([names["sample"](grid, x, y, mode) for x, y in positions])
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)
    for x in (*positions[:, 0], -0.1, 1.0, np.nextafter(1, 0)):
        assert names["quantise"](x) == quantise_uv(np.array([x]))[0]
        assert names["position"](names["quantise"](x)) == dequantise_uv(quantise_uv(np.array([x])))[0]
    tokens = (rng.normal(size=(50, 6)) * [300, 1, 1, 1e-3, 1, 1]).astype(np.float32)
    tokens[7] = tokens.mean(axis=0)
    statistics = ChannelStatistics.of([tokens], 6)
    levels, scales = encode_int8(tokens, statistics)
    decoded = decode_int8(levels, scales, statistics)
    for k, token in enumerate(tokens):
        level, scale = names["encode"](token, statistics.mean, statistics.scale)
        assert (level.tolist(), scale) == (levels[k].tolist(), scales[k])
        assert np.array_equal(names["decode"](level, scale, statistics.mean, statistics.scale), decoded[k])


def test_the_example_reads_chunks_as_zarr_does(names: dict[str, Any]) -> None:
    for path in ("points/xyz_m", "pairs/uv", "vit/layer_4/tokens"):
        values = zarr.open_array(names["part"] / path, mode="r")[:]
        chunk = names["read_chunk"](names["part"], path, 0)
        assert np.array_equal(chunk, values[: len(chunk)], equal_nan=values.dtype.kind == "f")


def test_the_documented_part_id_is_the_pipelines(names: dict[str, Any]) -> None:
    recipe = tiny_recipe()
    rng = np.random.default_rng(1)
    view = CameraView("LEFT", Path("/x/1.jpg"), 5, rng.normal(size=(3, 3)), np.eye(4), -np.eye(4), 160, 90, (0.1, -0.2))
    info = FrameInfo(Key("toy", "a b", "é/1"), 7, (), rng.normal(size=(4, 4)), np.eye(4), (view,))

    def digits(matrix: object) -> list[str]:
        return [float(value).hex() for value in np.ravel(matrix)]

    camera = ["LEFT", 5, 160, 90, *map(digits, (view.intrinsics, np.eye(4), -np.eye(4), [0.1, -0.2]))]
    rows = [[7, digits(info.ego_SE3_lidar), digits(np.eye(4)), camera]]
    calibration = names["sha256"](names["canonical"](rows))
    assert calibration == calibration_sha256([info], ["LEFT"])
    sources = Sources({"1.jpg": "0" * 64}, ("2.jpg", "3.jpg"))
    found = names["part_id"](
        recipe.model_dump(mode="json"), ["toy/a b/%C3%A9%2F1"], 4, sources.sha256, ["2.jpg", "3.jpg"], calibration
    )
    assert found == part_id(recipe, [info], 4, sources, calibration)


@pytest.mark.parametrize("fewer", [False, True])
def test_the_documented_id_of_a_derived_part_is_the_pipelines(names: dict[str, Any], fewer: bool) -> None:
    recipe = tiny_recipe()
    new = narrow_recipe(reduced(recipe) if fewer else recipe, cameras=["BACK"])
    assert new.schema_version == names["schema_of"](new.model_dump(mode="json")) == ("1.1" if fewer else "1.0")
    plain = [each.model_dump(mode="json") for each in (recipe, new)]
    keys = ["toy/a/1", "toy/a/3"]
    assert names["derived_id"]("abc", *plain, keys) == derived_id("abc", recipe, new, keys)
