"""Training from a cache that lies elsewhere, or is exchanged: the same bits, or an end with both hashes."""

from __future__ import annotations

import json
import pickle
import shutil

import fsspec
import pytest
import torch

from hilda_schema.errors import CacheConflict, HildaError, UsageError
from hilda_schema.storage import pinned
from hilda_schema.testing import tiny_cache
from hilda_schema.writer import read_manifest
from hilda_train.commands import configure
from hilda_train.prepare import prepare


@pytest.fixture
def url(toy_cache):
    """The toy cache behind a URL."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(toy_cache), "/train/cache", recursive=True)
    yield "memory://train/cache"
    filesystem.rm("/train", recursive=True)


def test_a_url_trains_as_a_folder_does_and_the_run_says_which_content(fit, toy_cache, url, tmp_path, curve):
    root = read_manifest(toy_cache).root_sha256
    fit(tmp_path / "folder", "train.max_steps=2")
    fit(tmp_path / "url", "train.max_steps=2", cache=pinned(url, root[:12]))
    assert curve(tmp_path / "folder") == curve(tmp_path / "url")
    for run in ("folder", "url"):
        assert json.loads((tmp_path / run / "run.json").read_text())["caches"] == [
            {"dataset": "toy", "root_sha256": root}
        ]


def test_another_content_than_the_pinned_one_is_refused_before_anything_is_written(fit, toy_cache, tmp_path):
    with pytest.raises(
        CacheConflict, match=rf"is sha256:{read_manifest(toy_cache).root_sha256}, and sha256:{'0' * 64}"
    ):
        fit(tmp_path / "run", cache=pinned(str(toy_cache), "0" * 64))
    assert not (tmp_path / "run").exists()


def test_a_worker_refuses_a_store_that_was_exchanged_after_the_run_was_prepared(toy_cache, toy_recipe, tmp_path):
    """Scenario 64: a loader's worker opens the store after it has changed."""
    here = shutil.copytree(toy_cache, tmp_path / "cache")
    dataset = prepare(*configure(str(toy_recipe), [], [str(here)]), torch.device("cpu")).dataset
    sent = pickle.dumps(dataset)
    assert not isinstance(pickle.loads(sent)[(0, 0, 0)], HildaError)
    shutil.rmtree(here)
    tiny_cache(tmp_path / "cache", points=200, seed=1)
    error = pickle.loads(sent)[(0, 0, 0)]
    assert isinstance(error, CacheConflict)
    assert "was asked for" in str(error)


def test_a_recipe_with_a_password_is_refused_without_repeating_it(toy_recipe, tmp_path):
    for url in ("https://me:canary@host/store", "s3://b/k?X-Amz-Signature=canary"):
        with pytest.raises(UsageError, match="password or a signature") as caught:
            configure(str(toy_recipe), [f"data.caches=[{url!r}]"], [])
        assert "canary" not in str(caught.value)
    config, urls = configure(str(toy_recipe), ["data.caches=['s3://b/k@sha256:0123456789ab']"], [])
    assert urls == config.data.caches
