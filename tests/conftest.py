"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent


# How long an example takes is the machine's business; what a test may take is bounded by pytest's own limit.
settings.register_profile("no deadlines", deadline=None)
settings.load_profile("no deadlines")

# A test sees the store that it reads, not what another one read before; those of the local copies choose a folder.
os.environ["HILDA_CACHE_BYTES"] = "0"


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """Folder with real recorded drives (`data/`) and weights (`weights/`); skips where it is absent."""
    folder = Path(os.environ.get("HILDA_SAMPLE_DATA", REPO.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real sample data at {folder}: set HILDA_SAMPLE_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic nuScenes tree of two scenes with three keyframes, six small images each. Do not change it."""
    from hilda_cache.drives.synthetic import make_drive

    out = tmp_path_factory.mktemp("drives") / "tiny"
    make_drive(out, scenes=2, frames=3, seed=0, image_size=(176, 99))
    return out


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of four blocks with random weights, as a transformers folder."""
    from hilda_cache.teachers.random_vit import save_random_dinov2

    return save_random_dinov2(tmp_path_factory.mktemp("teachers") / "vit", seed=0)


@pytest.fixture(scope="session")
def dask_client() -> Iterator[Any]:
    """A local cluster of two workers, the same as the command line starts, shared by all tests."""
    from hilda_cache.cluster import connect

    with connect(2, None) as client:
        yield client


def _die_at(step: int, *, before: bool) -> None:
    """End this process, as a power cut would, around its `step`-th change to the file system."""
    count = 0

    def dying(function: Callable[..., object], changes: Callable[..., bool]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal count
            if not changes(*args, **kwargs):
                return function(*args, **kwargs)
            count += 1
            if count == step and before:
                os._exit(9)
            result = function(*args, **kwargs)
            if count == step:
                os._exit(9)
            return result

        return wrapper

    for name in ("link", "mkdir", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, dying(getattr(os, name), lambda *_, **__: True))
    io.open = dying(io.open, lambda file, mode="r", *_, **__: set(mode) & set("wxa+") != set())


@pytest.fixture(scope="session")
def killed_at() -> Callable[[int, bool, Callable[[], object]], bool]:
    """killed_at(step, before, work): do the work in a process that ends before (or after) its `step`-th change to the
    file system; whether it came to that."""

    def run(step: int, before: bool, work: Callable[[], object]) -> bool:
        def child() -> None:
            _die_at(step, before=before)
            work()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        return process.exitcode == 9

    return run


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless browser (`tests/browser.py`); skips where Chromium is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium to open pages in: apt-get install chromium")
    spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["browser"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    browser = module.Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def opens_well(chromium: Any) -> Any:
    """opens_well(path): a page does what every page of ours must at 1440 and 390 pixels of width."""

    def check(path: Path) -> None:
        for width in (1440, 390):
            seen = chromium.open(path, width)
            assert seen.requests == [path.resolve().as_uri()]
            assert seen.complaints == []
            assert seen.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            images = seen.evaluate(
                "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt.length > 0])"
            )
            assert images
            assert all(drawn and told for drawn, told in images)
            tables = "[...document.querySelectorAll('table')].map(t => t.querySelectorAll('th[scope=col]').length)"
            assert all(columns > 1 for columns in seen.evaluate(tables))
            assert seen.evaluate("document.querySelectorAll('script, link, iframe, object, embed').length") == 0

    return check
