"""README.md of a store: valid front matter, the numbers of the store, no markup from strangers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hilda_cache.card import totals
from hilda_cache.reshape.dataset_card import MARK, card_markdown, write_card
from hilda_cache.reshape.reencode import reencode
from hilda_schema import open_cache
from hilda_schema.errors import CacheConflict
from hilda_schema.manifest import EncodingInfo, Recipe
from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe, validate
from hilda_schema.writer import finish_store, start_store, write_part


def front_matter(text: str) -> dict[str, object]:
    _, matter, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(matter)
    return found


def test_the_card_says_what_a_stranger_asks(grids: Path) -> None:
    cache = open_cache(grids)
    text, sums, manifest = card_markdown(cache), totals(cache), cache.manifest
    assert text == card_markdown(open_cache(grids))
    matter = front_matter(text)
    assert matter["license"] == "other"
    assert matter["size_categories"] == ["n<1K"]
    assert "lidar" in matter["tags"]
    for needed in (
        f"sha256:{manifest.root_sha256}",
        f"{sums['frames']} in 3 scenes",
        f"{sums['points_seen'] / sums['points']:.1%} of points seen",
        "Apache-2.0",
        "hilda-cache verify FOLDER",
        "point_features('vit', layer='4')",
        "hilda-cache extract ROOT --dataset toy",
    ):
        assert needed in text, needed
    for name, error in manifest.encoding_error.items():
        assert f"{error.cosine_min:.6f}" in text, name
    assert str(grids.parent) not in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    exec(code[1].replace('"FOLDER"', repr(str(grids))))


def test_lineage_and_the_error_of_the_parent_are_told(grids: Path, tmp_path: Path) -> None:
    manifest = reencode(str(grids), tmp_path / "out", EncodingInfo(dtype="int8"))
    text = card_markdown(open_cache(tmp_path / "out"))
    assert f"reencode `--to grid-int8` of `sha256:{manifest.parents[0].root_sha256}`" in text
    assert "errors above are measured against it" in text
    assert "hilda-cache extract" not in text  # it was not


def hostile() -> Recipe:
    recipe = tiny_recipe()
    name = "x\n---\nlicense: mit\n# <script>alert(1)</script> [a](http://b) `c`"
    dataset = recipe.dataset.model_copy(update={"name": name, "version": '"; |'})
    teacher = recipe.teachers[0].model_copy(update={"licence": "MIT\n\n# free", "source": "a`b\n"})
    return recipe.model_copy(update={"dataset": dataset, "teachers": (teacher, recipe.teachers[1])})


def test_names_from_strangers_are_text(tmp_path: Path) -> None:
    recipe = hostile()
    parts = tiny_parts(tiny_recipe(), scenes=1, frames=1, points=20)
    start_store(tmp_path / "store", recipe, planned_parts=1)
    finish_store(tmp_path / "store", recipe, [write_part(tmp_path / "store", recipe, part) for part in parts])
    text = card_markdown(open_cache(tmp_path / "store"))
    matter = front_matter(text)
    assert matter["license"] == "other"
    assert recipe.dataset.name in str(matter["pretty_name"])
    body = re.sub(r"```.*?```", "", text.split("---\n", 2)[2], flags=re.DOTALL)
    assert not re.search(r"^#+ (?!Teacher|Licence|How|What|Lineage)", body, re.MULTILINE)
    assert not re.search(r"(?<!\\)<(?!!--)", re.sub(r"`[^`]*`", "", body))


def test_it_is_written_and_written_again_but_never_over_somebody_elses(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "store", scenes=1, points=40)
    write_card(store)
    validate(store)
    first = (store / "README.md").read_text()
    assert MARK in first
    write_card(store)
    assert (store / "README.md").read_text() == first
    (store / "README.md").write_text("ours")
    with pytest.raises(CacheConflict, match="not written by this program"):
        write_card(store)
    (store / "README.md").unlink()
    (store / "README.md").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheConflict):
        write_card(store)
    assert not (tmp_path / "elsewhere").exists()
