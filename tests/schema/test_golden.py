"""The format, byte by byte: what each version wrote must be written, and read, for ever.

`golden/schema-*.json` holds the sha256 of every file below `parts`, `golden/schema-*.zip` stores written when that
schema was fixed; 1.1 is written where a layer has lost channels, 1.0 elsewhere. A failing hash means that the format
changed: that needs a new schema version, a reader for the old one and new golden stores beside the old, made by

    python tests/schema/test_golden.py
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hilda_cache.reshape.derive import derive_part
from hilda_schema.content import FrameContent, Pairs, PartContent
from hilda_schema.keys import Key
from hilda_schema.manifest import SCHEMA_VERSIONS, Recipe, ReductionInfo
from hilda_schema.reader import open_cache
from hilda_schema.reduction import basis_sha256
from hilda_schema.storage import LocalStorage
from hilda_schema.testing import check_store, rules
from hilda_schema.writer import finish_store, start_store, write_part

GOLDEN = Path(__file__).parent / "golden"
KINDS = [(kind, dtype) for kind in ("grid", "point") for dtype in ("float16", "int8")]


def numbers(*shape: int, step: int = 37) -> np.ndarray:
    """Sixteenths without a random generator in them: the same in every version of every library."""
    count = int(np.prod(shape))
    return (((np.arange(count) * step) % 101 - 50) / 16).astype(np.float32).reshape(shape)


def golden_recipe(kind: str, dtype: str) -> Recipe:
    """Spelt out here, so that no change of the test kit moves the golden bytes."""
    teacher = {
        "name": "vit",
        "source": "somebody/vit-small",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "architecture": "ViT-S/14",
        "weights_sha256": "2" * 64,
        "licence": "Apache-2.0",
        "norm": "pre",
        "image_height_px": 224,
        "image_width_px": 448,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": "full decode, antialiased bicubic",
        "precision": "bfloat16",
        "precision_reason": "asked for",
        "layers": [{"name": "2", "channels": 3, "height": 2, "width": 3}],
        "global_width": 2,
    }
    content = {
        "dataset": {"name": "toy", "version": "v1", "options": {}, "cameras": ["FRONT", "LEFT", "BACK"]},
        "selection": {"scenes": ["scene 1"], "frames": "7:9"},
        "teachers": [teacher],
        "projection": {
            "min_depth_m": 1.0,
            "pixel_convention": "centres-at-integers",
            "ego_motion": True,
            "occlusion": "none",
            "ground": "none",
        },
        "encoding": {"kind": kind, "dtype": dtype},
        "part_frames": 2,
        "store_points": True,
    }
    return Recipe.model_validate(content)


def golden_part() -> PartContent:
    frames = []
    for k in range(2):
        absent = {"LEFT": "images/LEFT.jpg: no such file"} if k else {}
        tokens = numbers(3, 2, 3, 3, step=37 + k)
        vectors = numbers(3, 2, step=5 + k)
        if absent:
            tokens[1] = vectors[1] = np.nan
        point = np.array([0, 2, 1, 2], np.uint32)
        frames.append(
            FrameContent(
                key=Key("toy", "scene 1", f"{k}"),
                stamp_ns=1_600_000_000_000_000_000 + k,
                world_SE3_lidar=np.eye(4) * (1 + k / 4),
                world_SE3_ego=np.eye(4),
                xyz_m=numbers(4, 3, step=11 + k),
                intensity=numbers(4) ** 2,
                ground=np.array([True, False, False, k == 0]),
                pairs=Pairs(
                    point=point,
                    camera=np.array([0, 0, 2, 2], np.uint8),
                    uv_px=np.array([[0, 0], [159.25, 95.5 - 1 / 64], [10.5, 20.75], [-0.5, 44]]),
                    depth_m=numbers(4) ** 2 + np.float32(1.5),
                    visible=np.array([True, True, False, True]),
                ),
                tokens={("vit", "2"): tokens},
                global_tokens={"vit": vectors},
                points_dropped=k,
                position=7 + k,
                ring=np.array([0, 1, 30, 31], np.uint8),
                absent=absent,
            )
        )
    sizes_px = {"FRONT": (160, 96), "LEFT": (120, 96), "BACK": (160, 90)}
    return PartContent("golden", "scene 1", sizes_px, tuple(frames), {"lidar/0.bin": "0" * 64}, "1" * 64)


BASIS = np.array([[0.6, 0, 0.8], [0, 1, 0]], np.float32)  # not fitted: eigenvectors have other last bits elsewhere


def reduced(recipe: Recipe) -> Recipe:
    """Two of the three channels."""
    info = ReductionInfo(channels=3, basis_sha256=basis_sha256(BASIS), explained_variance=0.75, method="by hand")
    (teacher,) = recipe.teachers
    layer = teacher.layers[0].model_copy(update={"channels": 2, "reduction": info})
    return recipe.model_copy(update={"teachers": (teacher.model_copy(update={"layers": (layer,)}),)})


def write_golden(store: Path, version: str, kind: str, dtype: str) -> None:
    recipe = golden_recipe(kind, dtype)
    if version == "1.0":
        start_store(store, recipe, planned_parts=1)
        finish_store(store, recipe, [write_part(store, recipe, golden_part())])
        return
    with tempfile.TemporaryDirectory() as folder:
        write_golden(Path(folder), "1.0", kind, dtype)
        new = reduced(recipe)
        start_store(store, new, planned_parts=1)
        made = derive_part(LocalStorage(folder), "golden", recipe, store, new, bases={"vit/2": BASIS})
        finish_store(store, new, [made])


def hashes(store: Path) -> dict[str, str]:
    """The files that depend on nothing but this project; the table's bytes depend on pyarrow's version too."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((store / "parts").rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("version", SCHEMA_VERSIONS)
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_todays_writer_writes_the_bytes_of_the_schema(tmp_path: Path, version: str, kind: str, dtype: str) -> None:
    write_golden(tmp_path, version, kind, dtype)
    expected = json.loads((GOLDEN / f"schema-{version}.json").read_text())[f"{kind}-{dtype}"]
    assert hashes(tmp_path) == expected


@pytest.mark.parametrize("archive", sorted(GOLDEN.glob("*.zip")), ids=lambda path: path.stem)
@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_a_store_of_every_schema_opens_for_ever(tmp_path: Path, archive: Path, kind: str, dtype: str) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    store = tmp_path / f"{kind}-{dtype}"
    assert {violation.rule for violation in check_store(store)} == {rules.POSES}  # these are numbers, no rotations
    cache = open_cache(store)
    assert f"schema-{cache.manifest.schema_version}" == archive.stem
    basis = cache.basis("vit", 2)
    seen = np.eye(3, dtype=np.float32) if basis is None else basis.T @ basis  # what of the model's channels is there
    part = golden_part()
    assert cache.frames["scene"].to_pylist() == ["scene 1"] * 2
    for frame, written in zip(cache, part.frames, strict=True):
        assert frame.key == written.key
        assert frame.stamp_ns == written.stamp_ns
        assert np.array_equal(frame.world_SE3_lidar, written.world_SE3_lidar)
        for name in ("xyz_m", "intensity", "ground", "ring"):
            assert np.array_equal(getattr(frame.points, name), getattr(written, name))
        assert frame.points.label is None
        for name in ("point", "camera", "visible"):
            assert np.array_equal(getattr(frame.pairs, name), getattr(written.pairs, name))
        np.testing.assert_allclose(frame.pairs.uv_px, written.pairs.uv_px, atol=160 * 2.0**-17)
        np.testing.assert_allclose(frame.pairs.depth_m, written.pairs.depth_m, rtol=2.0**-11)
        # Sixteenths below 4 are exact in float16; int8 keeps them to half a level.
        atol = 0 if dtype == "float16" else 0.02
        lift = np.eye(3, dtype=np.float32) if basis is None else basis
        if kind == "grid":
            grid, expected = frame.token_grid("vit", 2) @ lift, written.tokens["vit", "2"] @ seen
            np.testing.assert_allclose(grid, expected, atol=atol if basis is None else 0.03)
        assert np.array_equal(frame.global_tokens("vit"), written.global_tokens["vit"], equal_nan=True)
        corner = frame.point_features("vit", 2)[0]  # beyond the outer token centres: the corner token itself
        np.testing.assert_allclose(corner @ lift, written.tokens["vit", "2"][0, 0, 0] @ seen, atol=0.03)
        assert frame.absent == written.absent


def main() -> None:
    """Write the golden files of the newest schema version."""
    GOLDEN.mkdir(exist_ok=True)
    expected, version = {}, SCHEMA_VERSIONS[-1]
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(GOLDEN / f"schema-{version}.zip", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for kind, dtype in KINDS:
            store = Path(folder) / f"{kind}-{dtype}"
            write_golden(store, version, kind, dtype)
            expected[store.name] = hashes(store)
            for path in sorted(store.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(folder))
    (GOLDEN / f"schema-{version}.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
