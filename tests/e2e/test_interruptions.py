"""A real `hilda-cache extract`, killed, interrupted, locked out or starved of disk, ends in the same bytes anyway.

The command runs in a process group of its own, as under a terminal; moments are chosen by a seeded generator, mostly
by how much has been written rather than by a clock, so that they spread over the work however busy the machine is.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilda_cache.extract import extract
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema import open_cache
from hilda_schema.verify import verify

PATIENCE_S = 240.0  # for something that is bound to happen
COMMAND = [sys.executable, "-c", "from hilda_cache.cli import main; main()", "extract"]
OPTIONS = ["--image-size", "56x112", "--part-frames", "1", "--precision", "float32", "--workers", "1"]
TOY = """
import time
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(0.1, 1, 24).reshape(8, 3, 1, 1))

    def forward(self, x):
        time.sleep({seconds})
        return {{"grid": torch.nn.functional.conv2d(x[:, :, ::14, ::14], self.w)}}

def make():
    return Net()
"""


class Extraction:
    """A running `hilda-cache extract`, the leader of a process group."""

    def __init__(self, drive: Path, teacher: str, store: Path, *options: str, log: Path) -> None:
        asked = [str(drive), "--dataset", "nuscenes", "--teacher", teacher, "--out", str(store), *OPTIONS, *options]
        self.store, self.log = store, log
        with log.open("wb") as file:
            self.process = subprocess.Popen([*COMMAND, *asked], stdout=file, stderr=file, start_new_session=True)

    def wait_for(self, what: Callable[[], bool]) -> bool:
        """Whether it came to that while the extraction ran."""
        give_up = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < give_up:
            if what():
                return True
            time.sleep(0.002)
        return False

    def kill_all(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.wait_until_alone()

    def wait_until_alone(self) -> None:
        """Wait until no process of the group is left."""
        give_up = time.monotonic() + PATIENCE_S
        while living := members(self.process.pid):
            assert time.monotonic() < give_up, f"processes {living} outlive the command"
            time.sleep(0.05)

    def finish(self) -> tuple[int, str]:
        code = self.process.wait(PATIENCE_S)
        self.wait_until_alone()
        return code, self.log.read_text()


def members(group: int) -> list[int]:
    """Processes of a group that have not ended (a zombie has)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(entry.name))
    return found


def count_files(store: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(store))


def tree(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_nothing_is_torn(store: Path) -> None:
    """Whatever has its final name is complete."""
    if (store / "manifest.json").exists():
        assert verify(store).problems == []
    for part in (store / "parts").glob("[!.]*/"):
        assert (part / "seal.json").exists()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher that needs no transformers, hence starts fast."""
    code = tmp_path_factory.mktemp("teacher") / "toy.py"
    code.write_text(TOY.format(seconds=0))
    return f"toy={code}:make"


@pytest.fixture(scope="module")
def slow_toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same features, so slowly that the extraction is still at work when somebody comes to interrupt it."""
    code = tmp_path_factory.mktemp("slow_teacher") / "toy.py"
    code.write_text(TOY.format(seconds=2.0))
    return f"toy={code}:make"


def undisturbed(drive: Path, teacher: TeacherSpec, client: Any, store: Path) -> dict[str, str]:
    asked = ExtractRequest(DriveSpec("nuscenes", str(drive)), (teacher,), precision="float32", part_frames=1)
    assert extract(asked, store, client, lambda recipe, report: None, lambda report: None).complete
    return tree(store)


@pytest.fixture(scope="module")
def expected(tiny_drive: Path, toy: str, dask_client: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The store of an undisturbed extraction, by two workers."""
    teacher = TeacherSpec(name="toy", source=toy.partition("=")[2], layers=("-1",), image_size=(56, 112))
    return undisturbed(tiny_drive, teacher, dask_client, tmp_path_factory.mktemp("expected") / "store")


def test_kill_9_and_the_same_command_again(
    tiny_drive: Path, toy: str, expected: dict[str, str], tmp_path: Path
) -> None:
    store, moments = tmp_path / "store", random.Random(3)
    killed = 0
    for _ in range(3):
        left = len(expected) - count_files(store)
        target = len(expected) - left + moments.randint(1, max(1, left - 4))
        run = Extraction(tiny_drive, toy, store, "--layers", "-1", log=tmp_path / "log")
        killed += run.wait_for(lambda: count_files(store) >= target)  # noqa: B023 - called before it changes
        run.kill_all()
        check_nothing_is_torn(store)
    assert killed
    assert (store / ".lock").exists()  # of a dead process: it holds nothing
    code, told = Extraction(tiny_drive, toy, store, "--layers", "-1", log=tmp_path / "log").finish()
    assert code == 0, told
    assert tree(store) == expected


def test_signals_end_it_with_their_code_and_no_worker_stays(tiny_drive: Path, slow_toy: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number, to_all in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        made = len(list(store.glob("parts/[!.]*/seal.json")))
        run = Extraction(tiny_drive, slow_toy, store, "--layers", "-1", log=tmp_path / "log")
        if not made:  # of six parts the first is far: the second command ends long before
            assert run.wait_for((store / ".lock").exists)
            second = Extraction(tiny_drive, slow_toy, store, "--layers", "-1", log=tmp_path / "second")
            code, told = second.finish()
            assert code == 1
            assert f"error [cache.conflict]: {store} is being written by pid {run.process.pid} on " in told
        assert run.wait_for(lambda: len(list(store.glob("parts/[!.]*/seal.json"))) > made)  # noqa: B023
        # A terminal's Ctrl-C goes to every process of the command, a scheduler's SIGTERM to the first.
        (os.killpg if to_all else os.kill)(run.process.pid, number)
        code, told = run.finish()
        assert code == 128 + number
        assert told.splitlines()[-1] == (
            f"interrupted by {number.name}; finished parts are kept: run the same command again to go on"
        )
        assert "Traceback" not in told
        assert not (store / ".lock").exists()
        check_nothing_is_torn(store)
    assert open_cache(store, allow_partial=True).manifest.state == "partial"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kill_9_at_20_random_moments(tiny_drive: Path, tiny_vit: Path, dask_client: Any, tmp_path: Path) -> None:
    teacher = TeacherSpec(name="vit", source=str(tiny_vit), layers=("-2", "-1"), image_size=(56, 112))
    expected = undisturbed(tiny_drive, teacher, dask_client, tmp_path / "expected")

    def start(store: Path, workers: int) -> Extraction:
        return Extraction(tiny_drive, f"vit={tiny_vit}", store, "--workers", str(workers), log=tmp_path / "log")

    began = time.monotonic()
    assert start(tmp_path / "whole", 2).finish()[0] == 0
    whole_s = time.monotonic() - began
    assert tree(tmp_path / "whole") == expected
    moments, seen = random.Random(0), []
    for attempt in range(20):
        store = tmp_path / f"store{attempt}"
        run = start(store, 1 + attempt % 3)
        if attempt % 4 == 0:  # anywhere, also before the first file: starting, resolving
            until = time.monotonic() + moments.uniform(0, whole_s)
            killed = run.wait_for(lambda: time.monotonic() >= until)  # noqa: B023
        elif attempt % 4 == 1:  # while the root is written
            killed = run.wait_for(lambda: (store / "frames.parquet").exists())  # noqa: B023
        else:
            target = moments.randint(1, len(expected))
            killed = run.wait_for(lambda: count_files(store) >= target)  # noqa: B023
        run.kill_all()
        check_nothing_is_torn(store)
        seen.append((killed, count_files(store)))
        code, told = start(store, 1 + attempt % 2).finish()
        assert code == 0, told
        assert tree(store) == expected, f"attempt {attempt}, killed with {seen[-1][1]} files"
        shutil.rmtree(store)
    assert sum(killed for killed, _ in seen) >= 15, seen
    assert len({count for _, count in seen}) >= 8, seen


DISK = """
set -e
mount -t tmpfs -o size=4m none "$1"
shift
store="$1" out="$2"
shift 2
set +e
"$@"
echo "first: $?"
cp -r "$store" "$out/starved"
mount -o remount,size=64m "$(dirname "$store")"
"$@"
echo "second: $?"
cp -r "$store" "$out/finished"
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_full_disk_is_said_plainly_and_nothing_is_torn(
    tiny_drive: Path, toy: str, expected: dict[str, str], tmp_path: Path
) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    store = disk / "store"
    asked = [
        str(tiny_drive),
        "--dataset",
        "nuscenes",
        "--teacher",
        toy,
        "--layers",
        "-1",
        "--out",
        str(store),
        *OPTIONS,
    ]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", DISK, "disk", str(disk), str(store), str(out), *COMMAND, *asked],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    first, second = done.stdout.split("first: ")
    assert second.startswith("1\n"), done.stdout
    assert "second: 0" in second, done.stdout
    assert "failed [cache.full]: " in first
    assert "disk full (or over quota) while writing" in first
    assert "free some space and run the same command again" in first
    assert "Traceback" not in done.stdout
    made = len(list((out / "starved" / "parts").glob("[!.]*")))
    assert 1 <= made < 6
    assert first.count("failed [cache.full]") <= 2  # the parts after that are not computed for nothing
    check_nothing_is_torn(out / "starved")
    assert not list((out / "starved" / "parts").glob(".tmp-*"))
    assert tree(out / "finished") == expected
