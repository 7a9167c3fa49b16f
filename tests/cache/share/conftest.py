"""A real S3 server, a proxy before it that does what networks do, and a store with small and large files."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import itertools
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hilda_schema.remote import RemoteStorage
from hilda_schema.storage import open_storage
from hilda_schema.testing import tiny_cache

KEY, SECRET = "AKIAEXAMPLEEXAMPLE00", "canary-of-a-secret-key"
CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    503: "SlowDown",
}
HOP = {"connection", "transfer-encoding", "content-length", "expect"}


@dataclass(slots=True)
class Request:
    """What a client asked, and how much it was given."""

    method: str
    path: str  # bucket and key
    query: str
    range: str
    nth: int  # of this method and path, from 0
    sent: int = 0  # bytes of the client's body
    given: int = 0  # bytes of the answer's body

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "DELETE") or (self.method == "POST" and "delete" not in self.query)


Rule = Callable[[Request], "str | int | None"]


@dataclass(eq=False)
class FaultProxy:
    """Forwards HTTP to a server on this machine, except where `rule` says otherwise.

    A rule returns None, an HTTP status, or: reset, stall, lost (done, but not answered), flip (one bit of the answer's
    body), flip-up (of the request's body), cut (half of the answer's body, and then the end), slow (a piece at a time).
    """

    upstream: int
    rule: Rule = lambda request: None
    before: Callable[[Request], None] = lambda request: None  # called before a request is forwarded
    after: Callable[[Request], None] = lambda request: None  # and when it was done, before it is answered
    log: list[Request] = field(default_factory=list)
    slow_s: float = 4.0  # what a slow answer takes

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one

            def log_message(self, *_: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a client that was cut off

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget what was seen, and let everything through."""
        self.log.clear()
        for name in ("rule", "before", "after"):
            setattr(self, name, lambda request: None)

    def bytes_given(self) -> int:
        """Of all answers to GET."""
        return sum(request.given for request in self.log if request.method == "GET")

    def bytes_sent(self) -> int:
        """Of all requests that write."""
        return sum(request.sent for request in self.log if request.writes)

    def handle(self, http_: http.server.BaseHTTPRequestHandler) -> None:
        """One request."""
        path, _, query = http_.path.lstrip("/").partition("?")
        length = int(http_.headers.get("Content-Length") or 0)
        body = http_.rfile.read(length)
        if len(body) < length:
            return _hang_up(http_)  # of a client that died: no server takes half a file
        with self._lock:
            nth = sum(each.method == http_.command and each.path == path for each in self.log)
            request = Request(http_.command, path, query, http_.headers.get("Range", ""), nth, len(body))
            self.log.append(request)
        self.before(request)
        fault = self.rule(request)
        if isinstance(fault, int):
            return _refuse(http_, fault)
        if fault == "stall":
            time.sleep(30)
        if fault in ("reset", "stall"):
            return _hang_up(http_)
        answer, data = self._forward(http_, _flipped(body) if fault == "flip-up" else body)
        self.after(request)
        if fault == "lost":
            return _hang_up(http_)
        return self._answer(http_, request, answer, _flipped(data) if fault == "flip" else data, fault)

    def _answer(
        self,
        http_: http.server.BaseHTTPRequestHandler,
        request: Request,
        answer: http.client.HTTPResponse,
        data: bytes,
        fault: str | int | None,
    ) -> None:
        http_.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in HOP:
                http_.send_header(name, value)
        length = answer.getheader("Content-Length") or "0" if http_.command == "HEAD" else str(len(data))
        http_.send_header("Content-Length", length)
        http_.end_headers()
        if fault == "cut":
            data = data[: len(data) // 2]
        request.given = len(data)
        if http_.command != "HEAD":
            for piece in _tenths(data) if fault == "slow" else [data]:
                http_.wfile.write(piece)
                time.sleep(self.slow_s / 10 if fault == "slow" else 0)
        if fault == "cut":
            http_.wfile.flush()
            _hang_up(http_)

    def _forward(
        self, http_: http.server.BaseHTTPRequestHandler, body: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        headers = {name: value for name, value in http_.headers.items() if name.lower() not in HOP}
        connection.request(http_.command, http_.path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data


def _refuse(http_: http.server.BaseHTTPRequestHandler, status: int) -> None:
    data = f"<Error><Code>{CODES[status]}</Code><Message>injected</Message></Error>".encode()
    http_.send_response_only(status)
    http_.send_header("Content-Type", "application/xml")
    http_.send_header("Content-Length", str(len(data)))
    http_.end_headers()
    if http_.command != "HEAD":
        http_.wfile.write(data)


def _tenths(data: bytes) -> list[bytes]:
    step = -(-len(data) // 10) or 1
    return [data[start : start + step] for start in range(0, len(data), step)]


def _hang_up(http_: http.server.BaseHTTPRequestHandler) -> None:
    http_.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    http_.close_connection = True
    http_.connection.close()


def _flipped(data: bytes) -> bytes:
    """One bit of the middle changed; at the ends is a request's own framing."""
    changed = bytearray(data)
    if changed:
        changed[len(changed) // 2] ^= 4
    return bytes(changed)


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """A server of S3's protocol."""
    server_module = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(scope="session")
def _proxy(s3_port: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_port)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """What the network does."""
    _proxy.reset()
    yield _proxy
    _proxy.reset()


class S3:
    """How a test reaches the server: directly, or as the network lets it."""

    def __init__(self, port: int, proxy: FaultProxy, patch: pytest.MonkeyPatch, bucket: str) -> None:
        self._urls = {"direct": f"http://127.0.0.1:{port}", "network": proxy.url}
        self._patch, self.bucket, self.url = patch, bucket, f"s3://{bucket}/teams/store"
        self.use("direct")
        self.files = fsspec.filesystem("s3")
        self.files.mkdir(bucket)

    def use(self, way: str) -> None:
        """What is connected from now on goes this way."""
        options = {"endpoint_url": self._urls[way], "key": KEY, "secret": SECRET}
        options["config_kwargs"] = {"retries": {"max_attempts": 3}, "read_timeout": 20}
        self._patch.setitem(fsspec.config.conf, "s3", options)

    def network(self, path: str = "") -> RemoteStorage:
        """The store's URL, over the network."""
        self.use("network")
        storage = open_storage(path or self.url)
        assert isinstance(storage, RemoteStorage)
        storage._filesystem()
        self.use("direct")
        return storage

    def environment(self, way: str = "network") -> dict[str, str]:
        """For another process."""
        endpoint = {"AWS_ENDPOINT_URL": self._urls[way], "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "2"}
        return {**os.environ, **endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    def tree(self, url: str = "") -> dict[str, str]:
        """Every file below a URL and its hash."""
        root = (url or self.url).removeprefix("s3://")
        self.files.invalidate_cache()
        found = self.files.find(root)
        return {path[len(root) + 1 :]: hashlib.sha256(self.files.cat_file(path)).hexdigest() for path in found}


_buckets = itertools.count()


@pytest.fixture
def s3(s3_port: int, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3:
    """A bucket of its own."""
    return S3(s3_port, proxy, monkeypatch, f"bucket-{os.getpid()}-{next(_buckets)}")


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of a part each, whose points are large enough to be moved in pieces; do not change it."""
    from hilda_cache.reshape.subset import Cut, subset

    folder = tmp_path_factory.mktemp("share")
    whole = tiny_cache(folder / "whole", scenes=2, frames=2, points=24_000)
    cut = Cut(cameras=("FRONT", "LEFT"), teachers=("vit",), layers={"vit": ("2", "4")})
    subset(str(whole), folder / "cut", cut, "")
    return folder / "cut"


@pytest.fixture(scope="session")
def one_scene(store: Path) -> Path:
    """The first scene of `store`, as a store of the same recipe."""
    from hilda_cache.reshape.subset import Cut, subset

    subset(str(store), store.parent / "one", Cut(scenes=("scene-0000",)), "")
    return store.parent / "one"


def _tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, str]]:
    """tree(folder): every file below it and its hash."""
    return _tree


@pytest.fixture
def command(s3: S3) -> Callable[..., subprocess.Popen[str]]:
    """command("push", ...): `hilda-cache` as a process of its own, over the network."""

    def start(*words: object, way: str = "network", **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from hilda_cache.cli import main; main()", *map(str, words)],
            env={**s3.environment(way), **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start


def kill(process: subprocess.Popen[Any]) -> None:
    """As if the power were cut."""
    process.send_signal(signal.SIGKILL)


def part_of(path: str) -> str:
    """The part that a key of the server belongs to; empty where it belongs to none."""
    found = re.search(r"/parts/([^/]+)/", path)
    return found[1] if found else ""
