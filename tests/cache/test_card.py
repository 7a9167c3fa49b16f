"""A store's card: the same numbers as its frames, for people and for scripts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hilda_cache.card import card_json, card_text, totals
from hilda_cache.reshape.forget import forget
from hilda_cache.reshape.subset import Cut, subset
from hilda_schema import open_cache
from hilda_schema.testing import tiny_cache


def test_totals_are_those_of_the_frames_read_one_by_one(tmp_path: Path) -> None:
    cache = open_cache(tiny_cache(tmp_path / "cache"))
    sums = totals(cache)
    frames = list(cache)
    assert sums["frames"] == len(frames)
    assert sums["scenes"] == len({frame.key.scene for frame in frames})
    assert sums["points"] == sum(len(frame.points.xyz_m) for frame in frames)
    assert sums["pairs"] == sum(len(frame.pairs.point) for frame in frames)
    assert sums["points_seen"] == sum(len(set(frame.pairs.point.tolist())) for frame in frames)
    assert sums["absences"] == sum(len(frame.absent) for frame in frames) > 0
    assert sums["frames_with_absences"] == sum(bool(frame.absent) for frame in frames)
    assert sums["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "cache" / "parts").glob("*/**/*") if path.is_file()
    )


def test_the_json_card_is_the_manifest_and_totals(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache")
    card = json.loads(json.dumps(card_json(open_cache(store))))
    assert card.keys() == {"totals", "manifest"}
    assert card["totals"] == totals(open_cache(store))
    assert card["manifest"] == json.loads((store / "manifest.json").read_text())


def test_the_text_names_what_a_stranger_asks_for(tmp_path: Path) -> None:
    cache = open_cache(tiny_cache(tmp_path / "cache"))
    text, manifest = card_text(cache), cache.manifest
    assert str(manifest.root_sha256) in text
    for teacher in manifest.recipe.teachers:
        assert f"{teacher.name}: {teacher.source}" in text
        assert f"licence {teacher.licence}" in text
        assert teacher.weights_sha256 in text
        assert f"{teacher.precision} ({teacher.precision_reason})" in text
        for layer in teacher.layers:
            assert f"{layer.name} ({layer.height}x{layer.width}x{layer.channels})" in text
    assert f"{totals(cache)['pairs']:,} point-camera pairs" in text
    assert str(tmp_path) not in text  # a card is shown around


@pytest.mark.parametrize("gone", [0, 1])
def test_an_unfinished_store_counts_what_is_there(tmp_path: Path, gone: int) -> None:
    store = tiny_cache(tmp_path / "cache", finish=False)
    parts = sorted((store / "parts").glob("*/seal.json"))
    for seal in parts[:gone]:
        seal.unlink()
    cache = open_cache(store, allow_partial=True)
    sums = totals(cache)
    kept = [seal.parent for seal in parts[gone:]]
    assert sums["parts"] == len(kept)
    assert sums["frames"] == len(list(cache))
    assert sums["bytes"] == sum(path.stat().st_size for part in kept for path in part.rglob("*") if path.is_file())
    assert f"not complete yet: {len(kept)} of {len(parts)} parts" in card_text(cache)


def test_the_text_tells_what_a_store_was_made_from(tmp_path: Path) -> None:
    source = tiny_cache(tmp_path / "cache", points=40)
    subset(str(source), tmp_path / "cut", Cut(cameras=("BACK",)), "--cameras BACK")
    forget(tmp_path / "cut", ["scene-0000"], [], "ticket 7")
    text = card_text(open_cache(tmp_path / "cut"))
    assert "  made by   forget of sha256:" in text
    assert "  removed   5 frames: ticket 7" in text
