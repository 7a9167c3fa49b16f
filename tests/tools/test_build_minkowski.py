"""The MinkowskiEngine build: what it fetches, what it refuses, what its proof finds, and (slow) the build itself."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import threading
import venv
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from packaging.utils import parse_wheel_filename

from hilda_train.students.sparse import Geometry, SparseTensor, SubmanifoldConv

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SCRIPT = TOOLS / "build_minkowski.py"
sys.path.insert(0, str(TOOLS))  # where Python itself looks when it runs the script

import build_minkowski as tool  # noqa: E402

# The archive


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a line for every request."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind a package index on loopback, which pip is set up for."""
    folder = tmp_path / "index"
    (folder / "simple" / "minkowskiengine").mkdir(parents=True)
    (folder / "files").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        server.shutdown()
        thread.join()


def publish(index: Path, archive: bytes) -> None:
    """An index page as mirrors write them: relative links, fragments, other versions, escaped attributes."""
    (index / "files" / tool.SDIST).write_bytes(archive)
    links = [
        '<a href="../../files/MinkowskiEngine-0.5.3.tar.gz#sha256=00" data-requires-python="&gt;=3.6">older</a>',
        f'<a href="../../files/{tool.SDIST}?a=1&amp;b=2#sha256=00" data-requires-python="&gt;=3.6">this</a>',
    ]
    (index / "simple" / "minkowskiengine" / "index.html").write_text("<html>" + "<br/>".join(links))


def test_the_archive_comes_from_the_index_that_pip_uses(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(index, b"the archive")
    monkeypatch.setattr(tool, "SDIST_SHA256", hashlib.sha256(b"the archive").hexdigest())
    assert tool.fetch_sdist(None, tmp_path).read_bytes() == b"the archive"


def test_an_archive_with_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    publish(index, b"another archive")
    for given in (None, index / "files" / tool.SDIST):
        with pytest.raises(tool.Failure, match=r"has the sha256 \w{64}, not b1879c00") as failure:
            tool.fetch_sdist(given, tmp_path)
        assert hashlib.sha256(b"another archive").hexdigest() in str(failure.value)


def test_an_index_without_the_archive_is_named_as_such(index: Path, tmp_path: Path) -> None:
    page = index / "simple" / "minkowskiengine" / "index.html"
    page.write_text('<a href="MinkowskiEngine-0.5.3.tar.gz">older</a>')
    with pytest.raises(tool.Failure, match=r"has no MinkowskiEngine-0\.5\.4\.tar\.gz\n  .*--sdist FILE"):
        tool.fetch_sdist(None, tmp_path)
    page.write_text(f'<a href="{tool.SDIST}">dead link</a>')
    with pytest.raises(tool.Failure, match=r"does not give .*: HTTPError\n  .*--sdist FILE"):
        tool.fetch_sdist(None, tmp_path)


def test_an_index_out_of_reach_is_reported_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("http://user:secret@127.0.0.1:1/simple", "nonsense"):
        monkeypatch.setenv("PIP_INDEX_URL", url)
        with pytest.raises(tool.Failure, match="--sdist FILE") as failure:
            tool.fetch_sdist(None, tmp_path)
        assert "secret" not in str(failure.value)


# The program


def run(
    *arguments: str, python: tuple[str, ...] = (sys.executable,), **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [*python, str(SCRIPT), *arguments]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)


def assert_refused(done: subprocess.CompletedProcess[str], what: str, remedy: str) -> None:
    """Exit status 2, and two lines: what is wrong, and what helps."""
    assert done.returncode == 2, done
    said = done.stderr.splitlines()
    assert len(said) == 2, done.stderr
    assert said[0].startswith("error: "), said
    assert re.search(what, said[0]), said
    assert remedy in said[1], said


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    out = ("--wheel-dir", str(tmp_path / "wheels"))
    without_packages = run(*out, python=(sys.executable, "-S"))
    assert_refused(without_packages, "torch is not installed", "-m pip install torch")
    assert_refused(run(*out, CXX="no-such-compiler"), r"no C\+\+ compiler", "apt-get install g++")
    no_headers = run(*out, CXX="c++ -nostdinc")
    assert_refused(no_headers, "OpenBLAS's headers or library are missing .*cblas.h", "libopenblas-openmp-dev")
    assert not (tmp_path / "wheels").exists()


def test_files_and_folders_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    with pytest.raises(tool.Failure, match=r"none\.tar\.gz is not there"):
        tool.fetch_sdist(tmp_path / "none.tar.gz", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(tool.Failure, match=r"file/wheels cannot be made: Not a directory\n.*--wheel-dir"):
        tool.build(tmp_path / "file" / "wheels", "1_0", "cpu", argparse.Namespace())


def test_cuda_needs_a_cuda_torch_and_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(tool.Failure, match="built without CUDA"):
        tool.check_cuda(None)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(tool.Failure, match="no nvcc"):
        tool.check_cuda("12.8")
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    nvcc.chmod(0o755)
    tool.check_cuda("12.8")
    with pytest.raises(tool.Failure, match=r"nvcc is 12\.4 and torch was built with CUDA 13\.0"):
        tool.check_cuda("13.0")


def test_a_failed_compilation_names_the_first_error_and_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = ["c++ -Werror errors.cpp\n", "a.cpp:3:1: error: no type named 'x'\n", "b.cpp:9: error: more\n"]
    what, remedy = tool.compile_failure(said)
    assert what == "the build failed: a.cpp:3:1: error: no type named 'x'"
    assert Path(remedy.removeprefix("read ")).read_text() == "".join(said)
    what, remedy = tool.compile_failure(["c++: fatal error: Killed signal terminated program cc1plus\n"])
    assert "memory" in what
    assert "--jobs 1" in remedy


def test_a_wheel_built_before_is_used_again_and_one_for_another_torch_is_not(tmp_path: Path) -> None:
    ours, other = (tool.build_tag("cpu", "", version) for version in (metadata.version("torch"), "1.7.0"))
    on_gpus = (tool.build_tag("cuda", architectures, "1.7.0") for architectures in ("[(8, 0)]", "[(9, 0)]"))
    assert len({ours, other, *on_gpus}) == 4
    wheel, wrong = (tmp_path / f"minkowskiengine-0.5.4-{tag}-cp311-cp311-linux_x86_64.whl" for tag in (ours, other))
    name, version, build, _ = parse_wheel_filename(wheel.name)
    assert (name, str(version), build) == ("minkowskiengine", "0.5.4", (1, ours[1:]))
    wrong.touch()
    assert_refused(run("--wheel-dir", str(tmp_path), CXX="no-such-compiler"), r"no C\+\+ compiler", "g++")
    wheel.touch()
    done = run("--wheel-dir", str(tmp_path), CXX="no-such-compiler")
    assert (done.returncode, done.stdout) == (0, f"built before: {wheel}\n"), done.stderr


# The proof


class Engine(ModuleType):
    """Our own sparse convolution behind MinkowskiEngine's names; `flawed` changes what it computes."""

    def __init__(self, flawed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__("MinkowskiEngine")
        self.flawed = flawed

    def SparseTensor(self, feats, coordinates):
        return SparseTensor(feats, Geometry(coordinates, batch_size=2))

    def MinkowskiConvolution(self, *channels, kernel_size, dimension):
        conv = SubmanifoldConv(*channels, kernel_size)

        def forward(x):
            flawed = copy(conv)
            flawed._parameters = {"kernel": self.flawed(conv.kernel)}
            out = flawed.forward(x)
            return SimpleNamespace(F=out.feats, C=out.coords)

        layer = SimpleNamespace(kernel=conv.kernel, to=lambda device: forward)
        forward.kernel = layer.kernel
        return layer


@pytest.mark.parametrize(
    ("flaw", "found"),
    [
        (lambda kernel: kernel, False),
        (lambda kernel: kernel.reshape(3, 3, 3, 4, 6).transpose(0, 2).reshape(27, 4, 6), True),
        (lambda kernel: kernel * 1.001, True),
        (lambda kernel: kernel.detach() * 2 - kernel, True),
    ],
    ids=["none", "z counts fastest", "a thousandth too large", "right output, wrong gradient"],
)
def test_the_proof_finds_an_engine_that_is_wrong(flaw, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", Engine(flaw))
    if found:
        with pytest.raises(AssertionError, match="sparse and dense convolution differ"):
            tool.smoke("cpu")
    else:
        assert tool.smoke("cpu") == 0


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(3600)
def test_the_build_works_and_is_made_once(tmp_path: Path) -> None:
    """In an environment of its own that sees this one's torch: the pinned archive, every fix, both smoke tests."""
    venv.create(tmp_path / "env", with_pip=True)
    python = (str(tmp_path / "env" / "bin" / "python"),)
    (site,) = (tmp_path / "env" / "lib").glob("python3*/site-packages")
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    wheels = tmp_path / "wheels"
    first = run("--wheel-dir", str(wheels), "--jobs", "1", python=python)
    assert first.returncode == 0, first.stderr
    assert "agree with conv3d" in first.stdout
    (wheel,) = wheels.iterdir()  # and nothing beside it
    home = tmp_path / "home"
    cache = home / tool.CACHE.relative_to("~")
    cache.mkdir(parents=True)
    wheel.rename(cache / wheel.name)
    second = run(python=python, HOME=str(home), CXX="no-such-compiler")
    assert second.returncode == 0, second.stderr
    assert "built before" in second.stdout
    assert "agree with conv3d" in second.stdout
    assert list(site.glob("minkowskiengine-0.5.4.dist-info"))
