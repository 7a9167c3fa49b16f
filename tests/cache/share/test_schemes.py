"""Other schemes than S3: the library that is missing, URLs of the Hugging Face Hub, and Google's protocol."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from hilda_cache.reshape.subset import Cut, subset
from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import push
from hilda_schema.errors import CacheError
from hilda_schema.reader import open_cache
from hilda_schema.remote import RemoteStorage
from hilda_schema.storage import open_storage
from hilda_schema.verify import verify


@pytest.mark.parametrize(
    ("scheme", "library", "extra"),
    [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs"), ("gcs", "gcsfs", "gs"), ("hf", "huggingface_hub", "hf")],
)
def test_a_missing_library_is_named_with_its_extra(scheme: str, library: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from hilda_cache.cli import main\n"
        f"sys.argv = ['hilda-cache', 'info', '{scheme}://bucket/store']\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install 'hilda-lidar[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The revision of a URL (`@main`) is none of its secrets, and not its pin."""
    pytest.importorskip("huggingface_hub")
    url = "hf://datasets/org/caches@main/nuscenes"
    storage = open_storage(f"{url}@sha256:{'0' * 12}")
    assert isinstance(storage, RemoteStorage)
    assert (storage.name, storage.pin) == (url, "0" * 12)
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    code = f"import sys; from hilda_cache.cli import main; sys.argv = ['hilda-cache', 'info', {url!r}]; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "hf://" in done.stderr


def test_an_unknown_scheme_is_one_line() -> None:
    with pytest.raises(CacheError, match=r"nobody://bucket/store cannot be opened"):
        open_cache("nobody://bucket/store")


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of Google's JSON protocol, in memory."""
    # Else gcsfs, which looks at it once, asks over gRPC what kind of bucket it is, and waits for a minute each time.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs", reason="pip install gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="pip install gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    options = {"token": "anon", "endpoint_url": f"http://127.0.0.1:{port}", "project": "test"}
    for scheme in ("gs", "gcs"):
        monkeypatch.setitem(fsspec.config.conf, scheme, options)
    fsspec.filesystem("gs").mkdir("bucket")
    yield "gs://bucket/caches/store"
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_store_goes_to_googles_protocol_and_comes_back(
    store: Path, google: str, tmp_path: Path, tree: Callable[[Path], dict[str, str]]
) -> None:
    subset(str(store), tmp_path / "small", Cut(frames="0:1", layers={"vit": ("2",)}), "")
    remote = open_storage(google)
    assert isinstance(remote, RemoteStorage)
    push(tmp_path / "small", remote, jobs=2)
    _, again = push(tmp_path / "small", remote, jobs=2)
    assert again.moved.files == 0
    pull(plan_pull(google), tmp_path / "back", jobs=2)
    assert tree(tmp_path / "back") == tree(tmp_path / "small")
    assert verify(google).sound
    assert len(open_cache(google)[0].points) == len(open_cache(store)[0].points)
