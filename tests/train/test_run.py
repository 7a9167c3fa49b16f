"""A run's folder: begun once, described by what decides the result, gone on with by the same run only."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hilda_schema.durable import write_atomically
from hilda_schema.errors import HildaError, TrainError
from hilda_schema.reader import open_cache
from hilda_train.config import apply_set, dump_effective
from hilda_train.recipes import load_recipe
from hilda_train.run import check_same_run, describe_caches, held, read_config, read_run, start_run


@pytest.fixture(scope="module")
def config():
    return load_recipe("hilda")


@pytest.fixture(scope="module")
def caches(toy_cache):
    return [open_cache(toy_cache)]


@pytest.fixture
def run(tmp_path, config, caches):
    start_run(tmp_path / "run", config, caches)
    return tmp_path / "run"


def test_a_run_is_described_by_its_config_caches_and_environment(run, config, caches, toy_cache):
    assert {path.name for path in run.iterdir()} == {"config.yaml", "run.json"}
    assert read_config(run) == config
    described = read_run(run)
    assert described["caches"] == [{"dataset": "toy", "root_sha256": caches[0].manifest.root_sha256}]
    environment = described["environment"]
    assert environment["packages"]["torch"]
    text = (run / "run.json").read_text()
    for private in (str(toy_cache), str(run), os.uname().nodename, f"{Path.home()}/"):
        assert private not in text


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt", ".hidden"])
def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path, config, caches, name):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(TrainError, match="is not empty") as error:
        start_run(folder, config, caches)
    assert ("--resume" in error.value.remedy) is (name == "config.yaml")
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]


@pytest.mark.parametrize("left", [["run.json"], ["run.json.partial"], ["run.json", "config.yaml.partial"], []])
def test_a_start_that_was_cut_short_can_be_made_again(tmp_path, config, caches, left):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text('{"half": ')
    start_run(folder, config, caches)
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "run.json"}
    check_same_run(folder, config, caches)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, config, caches):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(TrainError, match=r"no run can be started in .*: (File exists|Not a directory)"):
            start_run(folder, config, caches)


def test_what_may_differ_and_what_may_not(run, config, caches):
    free = ["data.workers=7", "train.keep=9", "train.log_every=1", "train.checkpoint_every=3", "about=other"]
    check_same_run(run, apply_set(config, free), caches)
    with pytest.raises(TrainError) as error:
        check_same_run(run, apply_set(config, ["optim.lr=0.5", "student.depth=18", "train.keep=9"]), caches)
    assert "student.depth: 34 -> 18; optim.lr: 0.002 -> 0.5" in error.value.message
    assert "keep" not in error.value.message


def test_a_variant_that_changed_is_named(run, config, caches):
    with pytest.raises(TrainError, match=r'optim.kind: "adamw" -> "sgd"'):
        check_same_run(run, apply_set(config, ["optim={kind: sgd}"]), caches)


def manifest_of(name, sha256):
    """As much of a cache as decides whether it is the same."""
    recipe = SimpleNamespace(dataset=SimpleNamespace(name=name))
    return SimpleNamespace(manifest=SimpleNamespace(recipe=recipe, root_sha256=sha256))


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ([("a", "1" * 64)], "2 caches then, 1 now"),
        ([("a", "1" * 64), ("b", "3" * 64)], '"root_sha256": "222.* then, .*"root_sha256": "333'),
        ([("b", "2" * 64), ("a", "1" * 64)], '"dataset": "a".* then, {"dataset": "b"'),
    ],
)
def test_other_caches_are_refused_with_the_difference(tmp_path, config, now, words):
    start_run(tmp_path / "run", config, [manifest_of("a", "1" * 64), manifest_of("b", "2" * 64)])
    with pytest.raises(TrainError, match=words) as error:
        check_same_run(tmp_path / "run", config, [manifest_of(*each) for each in now])
    assert "the same caches in the same order" in error.value.remedy


def test_a_cache_is_the_same_wherever_it_lies_and_another_when_it_changed(toy_cache, tmp_path):
    from hilda_schema.testing import tiny_cache

    moved = shutil.copytree(toy_cache, tmp_path / "moved")
    assert describe_caches([open_cache(moved)]) == describe_caches([open_cache(toy_cache)])
    other = tiny_cache(tmp_path / "other", points=200, seed=3)
    assert describe_caches([open_cache(other)]) != describe_caches([open_cache(toy_cache)])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"environment": {}}', '{"caches": 3}', "\x00"])
def test_a_damaged_description_is_an_error(run, config, caches, text):
    (run / "run.json").write_text(text)
    with pytest.raises(TrainError, match=r"run\.json"):
        check_same_run(run, config, caches)


def test_a_description_of_other_words_is_another_cache(run, config, caches):
    (run / "run.json").write_text(json.dumps({"caches": [{"path": 3}]}))
    with pytest.raises(TrainError, match=r'{"path": 3} then'):
        check_same_run(run, config, caches)


def test_a_folder_without_a_run_and_a_damaged_config_are_errors(tmp_path, run):
    with pytest.raises(TrainError, match="holds no run"):
        read_config(tmp_path)
    (run / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HildaError, match=r"config\.yaml"):
        read_config(run)


def test_only_one_process_trains_in_a_folder(run):
    with held(run), pytest.raises(TrainError, match="another process trains in"), held(run):
        pass
    with held(run):
        pass


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_the_config_reads_back_as_itself(run, config):
    assert (run / "config.yaml").read_text() == dump_effective(config)
    assert load_recipe(run / "config.yaml") == config
