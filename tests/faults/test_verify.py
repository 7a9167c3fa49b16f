"""A verification that is interrupted says so, changes nothing and can be gone on with; one may also read less."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_schema.errors import UsageError
from hilda_schema.reader import open_cache
from hilda_schema.testing import tiny_cache
from hilda_schema.verify import Depth, verify
from hilda_schema.verify_progress import Progress


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILDA_CACHE_DIR", str(tmp_path / "kept"))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_verification_that_is_interrupted_ends_in_one_line(number: signal.Signals, tree: Any, tmp_path: Path) -> None:
    """Scenario 50, once it has begun to read the parts."""
    store = tiny_cache(tmp_path / "store", scenes=2, frames=4, points=50_000)
    before = tree(store)
    command = [sys.executable, "-c", "from hilda_cache.cli import main; main()", "verify", str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 120
    while not any(f"{store}/parts/" in name for name in open_files(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < give_up
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    remembered, last = said.splitlines()[-2:]
    assert remembered == "what was read is remembered: add --resume to go on"
    assert last == f"interrupted by {number.name}"
    assert "Traceback" not in said
    assert tree(store) == before
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "all as sealed" in done.stderr) == (0, True)
    assert not list((tmp_path / "kept" / "verified").iterdir())  # done


class Stop(BaseException):
    """The process is stopped."""


def stop_after(files: int) -> Any:
    def on_progress(done: int, total: int) -> None:
        if done > files:
            raise Stop

    return on_progress


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def test_what_was_read_before_an_interruption_is_not_read_again(tmp_path: Path) -> None:
    """Scenario 50: but what was damaged, or replaced since, is."""
    store = tiny_cache(tmp_path / "store", scenes=4, frames=2, points=40)
    parts = [entry.part for entry in open_cache(store).parts]
    files = [len(list((store / "parts" / part).rglob("*.*"))) for part in parts]
    three = 1 + sum(files[:3])  # the manifest is read first
    shard = "vit/layer_2/tokens/c.0.0.0.0.0"
    flip(store / "parts" / parts[0] / shard)
    with pytest.raises(Stop):
        verify(store, stop_after(three))
    report = verify(store, depth=Depth(resume=True))
    assert (report.parts_read, report.parts_resumed) == (4, 2)  # not the damaged one
    assert report.damaged_parts == [parts[0]]
    # Done: the next one begins anew, whatever is asked.
    assert verify(store, depth=Depth(resume=True)).parts_resumed == 0
    with pytest.raises(Stop):
        verify(store, stop_after(three))
    assert verify(store).parts_resumed == 0  # nobody asked
    # A part that was replaced since has another seal.
    with pytest.raises(Stop):
        verify(store, stop_after(three))
    (store / "parts" / parts[1] / "seal.json").write_bytes(b"{}")
    assert parts[1] in verify(store, depth=Depth(resume=True)).damaged_parts


def test_progress_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = open_cache(tiny_cache(tmp_path / "store", points=20)).parts
    progress = Progress("s3://bucket/store", resume=False)
    progress.add(entries[0])
    assert entries[0] not in Progress("s3://bucket/store", resume=True)  # not yet
    monkeypatch.setattr("hilda_schema.verify_progress.EVERY_S", 0.0)
    progress.add(entries[1])
    again = Progress("s3://bucket/store", resume=True)
    assert [entry in again for entry in entries] == [True, True, *[False] * (len(entries) - 2)]
    assert entries[0] not in Progress("s3://bucket/another", resume=True)
    (tmp_path / "kept/verified").chmod(0o500)
    progress.save()  # a folder that cannot be written is no reason to end
    progress.clear()


def test_a_sample_reads_some_parts_and_a_fast_one_none(tmp_path: Path) -> None:
    """Sizes and seals of all of them are looked at; over many samples every damage is met."""
    store = tiny_cache(tmp_path / "store", scenes=10, frames=1, points=40)
    parts = [entry.part for entry in open_cache(store).parts]
    shard = store / "parts" / parts[3] / "pairs/uv/c.0.0"
    flip(shard)
    assert verify(store, depth=Depth(sample=0)).sound
    found = [verify(store, depth=Depth(sample=0.25)) for _ in range(60)]
    assert {report.parts_read for report in found} == {3}
    hits = sum(report.damaged_parts == [parts[3]] for report in found)
    assert 2 <= hits <= 40  # 18 expected; outside this range once in 100,000 runs
    shard.write_bytes(shard.read_bytes()[:-1])
    assert verify(store, depth=Depth(sample=0)).damaged_parts == [parts[3]]
    assert verify(tiny_cache(tmp_path / "one", scenes=1, frames=1), depth=Depth(sample=0.001)).parts_read == 1


def test_the_command_line_says_how_much_was_read(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "store", scenes=5, frames=1, points=40)

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, ["verify", str(store), *words])
        assert done.exit_code == 0, done.stderr
        return done.stderr

    assert "read 2 of 5 parts; of the others, seals and sizes of files" in said("--sample", "2")
    assert "read 1 of 5 parts" in said("--sample", "1%")
    assert "read 0 of 5 parts" in said("--fast")
    assert "of the others" not in said("--sample", "100%")
    assert "of the others" not in said("--sample", "99")
    for words in (["--sample", "0"], ["--sample", "a"], ["--sample", "101%"], ["--sample", "2", "--fast"]):
        done = CliRunner().invoke(app, ["verify", str(store), *words])
        assert isinstance(done.exception, UsageError)


def open_files(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.append(os.fspath(link.readlink()))
        except OSError:
            continue
    return found
