"""A production object store on this machine: Ceph's S3 gateway, which signs, checks hashes and clocks."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest

from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import push
from hilda_schema.errors import CacheConflict, CacheError
from hilda_schema.reader import open_cache
from hilda_schema.remote import RemoteStorage
from hilda_schema.storage import open_storage
from hilda_schema.verify import verify
from hilda_schema.writer import read_manifest

KEY, SECRET = "AKIAEXAMPLEEXAMPLE00", "canary-of-a-secret-key"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _ceph() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ceph_gateway", Path(__file__).with_name("ceph.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    ceph = _ceph()
    if name := ceph.missing():
        pytest.skip(f"{name} is not installed: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw")
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, ceph.gateway(Path(folder), KEY, SECRET) as found:
        yield found


@pytest.fixture
def url(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (("AWS_ENDPOINT_URL", address), ("AWS_DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address, "key": KEY, "secret": SECRET})
    files = fsspec.filesystem("s3")
    if not files.exists("teams"):
        files.mkdir("teams")
    return "s3://teams/caches/store"


def remote(url: str) -> RemoteStorage:
    storage = open_storage(url)
    assert isinstance(storage, RemoteStorage)
    return storage


def command(*words: object) -> str:
    """`hilda-cache` as a process of its own."""
    code = "from hilda_cache.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_store_goes_there_and_comes_back(
    store: Path, one_scene: Path, url: str, tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    """Scenario 65: pushed by one process, grown by another, read in place and pulled by others."""
    command("push", one_scene, url)
    command("push", store, url)  # over the manifest that is there
    assert "0 parts sent" in command("push", store, url)
    root = read_manifest(store).root_sha256
    assert "all as sealed" in command("verify", url)
    command("pull", f"{url}@sha256:{root}", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(store)
    assert len(open_cache(url)[1].points) == len(open_cache(store)[1].points)


def test_the_later_of_two_pushes_is_refused(
    store: Path, one_scene: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url += "-twice"
    write, done = RemoteStorage.write_over, []

    def meanwhile(self: RemoteStorage, path: str, data: bytes, version: Any) -> None:
        if path == "manifest.json" and not done:
            done.append(path)
            push(one_scene, remote(url), jobs=1)
        write(self, path, data, version)

    monkeypatch.setattr(RemoteStorage, "write_over", meanwhile)
    with pytest.raises(CacheConflict, match="another push"):
        push(store, remote(url), jobs=1)
    assert open_cache(url).manifest == read_manifest(one_scene)
    assert verify(url).sound


def test_wrong_keys_are_one_line(store: Path, url: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"endpoint_url": address, "key": KEY, "secret": "wrong"}
    monkeypatch.setitem(fsspec.config.conf, "s3", wrong)
    with pytest.raises(CacheError, match="access is refused") as caught:
        pull(plan_pull(url), store.parent / "never", jobs=1)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
