"""The writer's check: silent about sound stores, and naming the sentence of the page that a wrong one breaks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hilda_schema.errors import CacheNotFound, UsageError
from hilda_schema.layout import check_names
from hilda_schema.manifest import sha256_hex
from hilda_schema.testing import (
    Rule,
    check_same_ids,
    check_store,
    part_contents,
    recipes,
    reseal,
    reseal_files,
    rules,
    set_values,
    sign,
    tiny_cache,
    tiny_parts,
    tiny_recipe,
    validate,
    write_store,
)
from hilda_schema.verify import verify

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cache-format.md"


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cache(tmp_path_factory.mktemp("stores") / "cache", dtype="int8", scenes=1, frames=4, points=40)


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "cache"))


def test_every_rule_is_a_sentence_of_the_page() -> None:
    sections = dict(re.findall(r"^## (\d+)\. .*?\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    known = [value for value in vars(rules).values() if isinstance(value, Rule)]
    assert len(known) > 30
    for rule in known:
        assert rule.text in " ".join(sections[str(rule.section)].split()), rule


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_our_writer_writes_conforms(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    recipe = data.draw(recipes())
    part = data.draw(part_contents(recipe))
    store = write_store(tmp_path_factory.mktemp("drawn") / "cache", recipe, [part])
    assert list(map(str, check_store(store))) == []
    shutil.rmtree(store)


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    """Change a file of the first part and seal it as it then is."""

    def change(store: Path) -> None:
        first = json.loads((store / "manifest.json").read_bytes())["parts"][0]["part"]
        file = store / "parts" / first / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        reseal_files(store, path)

    return change


def manifest(**changes: object) -> Callable[[Path], None]:
    return lambda store: sign(store / "manifest.json", lambda content: content.update(changes)) and None


def seal(change: Callable[[dict], object]) -> Callable[[Path], None]:
    return lambda store: reseal(store, change)


def values(array: str, change: Callable[[np.ndarray], object]) -> Callable[[Path], None]:
    return lambda store: set_values(store, array, change)


def rename_teacher(store: Path) -> None:
    sign(store / "manifest.json", lambda content: content["recipe"]["teachers"][0].update(source="/home/me/vit"))


def transposed(pose: list[float]) -> list[float]:
    return np.reshape(pose, (4, 4)).T.ravel().tolist()


SCALED = [2.0 if k % 5 == 0 and k < 15 else float(k == 15) for k in range(16)]
FIRST_KEY = sha256_hex(b"toy/scene-0000/000000")
META = "points/xyz_m/zarr.json"
MISTAKES: dict[str, tuple[Callable[[Path], None], Rule, str]] = {
    "dimension names": (edit(META, '["point","xyz"]', '["x","y"]'), rules.METADATA, "dimension_names[0]"),
    "no dimension names": (edit(META, '"dimension_names":["point","xyz"],', ""), rules.METADATA, "names is missing"),
    "fill value": (edit(META, '"fill_value":"NaN"', '"fill_value":0.0'), rules.METADATA, "fill_value is 0.0"),
    "separator": (edit(META, '"separator":"."', '"separator":"/"'), rules.METADATA, "configuration.separator"),
    "a codec more": (edit(META, '"index_location"', '"x":1,"index_location"'), rules.METADATA, "x must not"),
    "unit": (edit(META, "m, LiDAR frame", "mm"), rules.METADATA, 'attributes.unit is "mm"'),
    "spaces": (edit(META, '"shape":', '"shape": '), rules.CANONICAL, "canonical form"),
    "group": (edit("points/zarr.json", "{}", '{"by":"me"}'), rules.GROUPS, "attributes.by must not be there"),
    "recipe of the part": (edit("zarr.json", '"store_points":true', '"store_points":false'), rules.GROUPS, "store_p"),
    "state": (manifest(state="done"), rules.FIELDS, "state: "),
    "planned": (manifest(planned_parts=7), rules.PLANNED, "planned_parts is 7"),
    "forgotten": (manifest(forgotten=[{"reason": "asked", "frames": [FIRST_KEY]}]), rules.FORGOTTEN, "was removed"),
    "absolute source": (rename_teacher, rules.SOURCE, "teacher vit"),
    "part's name": (seal(lambda s: s.update(part="other")), rules.PART_ID, "part is other, the folder is"),
    "digest": (seal(lambda s: s.update(recipe_digest="0" * 64)), rules.DIGEST, "recipe_digest"),
    "drive": (seal(lambda s: s["frames"][0].update(key="lyft/scene-0000/000000")), rules.DRIVE, "not of drive 'toy'"),
    "scene": (seal(lambda s: s["frames"][0].update(key="toy/x/000000")), rules.KEYS, "not a frame of scene"),
    "unquoted key": (seal(lambda s: s["frames"][0].update(key="toy/scene-0000/é")), rules.KEYS, "not a frame"),
    "key twice": (seal(lambda s: s["frames"][1].update(key=s["frames"][0]["key"])), rules.TIME_ORDER, "twice"),
    "time": (seal(lambda s: s["frames"][0].update(stamp_ns=2**62)), rules.TIME_ORDER, "is earlier than"),
    "scaled pose": (seal(lambda s: s["frames"][0].update(world_SE3_lidar=SCALED)), rules.POSES, "lidar is no"),
    "column pose": (
        seal(lambda s: s["frames"][1].update(world_SE3_ego=transposed(s["frames"][1]["world_SE3_ego"]))),
        rules.POSES, "world_SE3_ego is no rotation",
    ),
    "sources": (seal(lambda s: s["sources"].update({"/data/x.bin": "0" * 64})), rules.SOURCES, "no relative name"),
    "no size": (seal(lambda s: s["cameras"][0].update(width_px=0)), rules.SIZES, "FRONT has no size"),
    "layer's error": (seal(lambda s: s["encoding_error"].pop("vit/4")), rules.LAYERS, "encoding_error lacks vit/4"),
    "camera unknown": (seal(lambda s: s["frames"][0]["absent"].update(TOP="lost")), rules.PRESENT, "'TOP' is absent"),
    "presence": (values("present", lambda v: v.__setitem__((0, 0), False)), rules.PRESENT, "absent cameras"),
    "order of pairs": (values("pairs/point", lambda v: v.__setitem__(slice(2), v[:2][::-1])), rules.PAIRS, "sorted"),
    "too near": (values("pairs/depth_m", lambda v: v.__setitem__(0, 0.5)), rules.DEPTH, "below min_depth_m, 1.0"),
    "offsets": (values("pairs/offset", lambda v: v.__iadd__(1)), rules.OFFSETS, "gives rows 1 to"),
    "scale 0": (values("vit/layer_2/channel_scale", lambda v: v.__setitem__(3, 0)), rules.INT8, "not above 0"),
    "scale infinite": (values("vit/layer_2/channel_mean", lambda v: v.__setitem__(3, np.inf)), rules.INT8, "finite"),
    "zeros for absent": (values("cnn/layer_stage1/tokens", lambda v: v[1, 1].fill(0)), rules.ABSENT, "exactly the"),
    "NaN point": (values("points/intensity", lambda v: v.__setitem__(0, np.nan)), rules.FINITE_POINTS, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_by_the_rule_it_breaks(store: Path, name: str) -> None:
    mistake, rule, words = MISTAKES[name]
    mistake(store)
    found = check_store(store)
    assert [each for each in found if each.rule == rule and words in each.what], "\n".join(map(str, found))
    with pytest.raises(AssertionError, match=re.escape(words)):
        validate(store)


def test_padding_is_the_fill_value(tmp_path: Path) -> None:
    """A shard's last chunk; `verify` is content with any sealed bytes there."""
    recipe = tiny_recipe().model_copy(update={"teachers": ()})
    store = write_store(tmp_path / "cache", recipe, tiny_parts(recipe, scenes=1, frames=3, points=20_000))
    assert check_store(store) == []
    set_values(store, "points/intensity", lambda values: values.__setitem__(-1, 0.0))
    assert [violation.rule for violation in check_store(store) if violation.file.endswith("intensity")] == [
        rules.PADDING
    ]
    assert not [problem for problem in verify(store).problems if "intensity" in problem.file]


def test_an_array_that_does_not_belong_is_named(store: Path) -> None:
    first = store / "parts" / json.loads((store / "manifest.json").read_bytes())["parts"][0]["part"]
    shutil.copytree(first / "points" / "ring", first / "points" / "colour")
    reseal_files(store, "points/colour/zarr.json", "points/colour/c.0")
    found = check_store(store)
    assert {violation.file.partition("/points/")[2] for violation in found if violation.rule == rules.ARRAYS} == {
        "colour/zarr.json",
        "colour/c.0",
    }


def test_all_of_a_files_mistakes_are_listed(store: Path) -> None:
    sign(store / "manifest.json", lambda content: content.update(state="done", colour="red", frames="4"))
    assert {violation.what.partition(":")[0] for violation in check_store(store)} == {"state", "colour", "frames"}


def test_one_id_means_the_same_bytes(whole: Path, store: Path, tmp_path: Path) -> None:
    assert check_same_ids(whole, store) == []
    reseal(store, lambda content: content.update(calibration_sha256="0" * 64))
    (violation,) = check_same_ids(whole, store)
    assert violation.rule == rules.PART_ID
    assert check_same_ids(whole, tiny_cache(tmp_path / "other", kind="point", scenes=1, frames=4, points=40)) == []


def test_partial_stores_conform_but_are_not_valid(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache", scenes=1, frames=4, points=20, finish=False)
    assert check_store(store) == []
    with pytest.raises(AssertionError, match="not complete"):
        validate(store)


def test_nothing_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFound):
        check_store(tmp_path)


@given(recipes())
def test_drawn_recipes_have_names_that_can_be_folders(recipe) -> None:
    try:
        check_names(recipe)
    except UsageError as error:
        pytest.fail(str(error))


def test_as_a_program_it_prints_violations_and_exits_with_3(store: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hilda_schema.testing", str(store)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, done.stdout) == (0, "")
    sign(store / "manifest.json", lambda content: content.update(planned_parts=7))
    done = run()
    assert done.returncode == 3
    assert "manifest.json: planned_parts is 7, parts has 2 (section 3: " in done.stdout
