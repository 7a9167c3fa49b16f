"""Disks that are full, read-only, forbidden or gone: one line that names the place, and nothing torn."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hilda_cache.extract import ExtractReport
from hilda_cache.request import ExtractRequest
from hilda_schema.testing import tiny_cache
from hilda_schema.verify import verify

pytestmark = pytest.mark.timeout(900)
MAIN = [sys.executable, "-c", "from hilda_cache.cli import main; main()"]
NOBODY = 65534


def in_own_mounts(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script whose mounts nobody else sees; skips where that is not allowed."""
    unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-Urm"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    return subprocess.run(
        [*unshare, "bash", "-c", script, "-", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip


WRITE = """
import sys
from pathlib import Path
from hilda_schema.errors import HildaError
from hilda_schema.testing import tiny_parts, tiny_recipe
from hilda_schema.writer import finish_store, start_store, write_part
recipe = tiny_recipe()
parts = tiny_parts(recipe, scenes=4, points=4000)
try:
    start_store(Path(sys.argv[1]), recipe, planned_parts=len(parts))
    finish_store(Path(sys.argv[1]), recipe, [write_part(Path(sys.argv[1]), recipe, part) for part in parts])
except HildaError as error:
    sys.exit(f"error [{error.code}]: {error.message} -> {error.remedy}")
"""

FULL = """
mount -t tmpfs -o size=1m none "$1" && cd "$1"
"$2" -c "$3" store; echo "first $?"
find store/parts -name '.tmp-*' | wc -l; ls store/parts | wc -l
mount -o remount,size=64m "$1" && cd "$1"
"$2" -c "$3" store; echo "second $?"
"${@:4}" verify store; echo "verified $?"
"""


def test_a_full_disk_keeps_what_is_whole_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """Scenario 4: a real file system of 1 MiB, enlarged after the failure."""
    done = in_own_mounts(FULL, str(tmp_path), sys.executable, WRITE, *MAIN)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("error [cache.full]: disk full (or over quota) while writing store/parts/"), done.stdout
    assert "free some space and run the same command again" in lines[0]
    assert lines[1:3] == ["first 1", "0"]
    assert 1 <= int(lines[3]) < 8
    assert lines[4] == "second 0", done.stdout
    assert lines[-1] == "verified 0"


def test_a_quota_is_a_full_disk(request_of: Callable[..., ExtractRequest], run: Any, tmp_path: Path) -> None:
    """Scenario 5: a limit on the size of files, in the worker."""
    from hilda_cache.cluster import connect

    with connect(1, None) as client:
        client.run(resource.setrlimit, resource.RLIMIT_FSIZE, (3000, 3000))
        report = run(request_of(), tmp_path / "store", client)
    assert not report.entries
    assert {failure.code for failure in report.failures.values()} == {"cache.full"}
    assert len(report.failures) < report.planned  # the others would be computed for nothing
    assert list((tmp_path / "store" / "parts").iterdir()) == []


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && cd "$1"
shift
for command in "repair store" "synth drive"; do "$@" $command; echo "$?"; done
"$@" verify store; echo "$?"
"""


def test_a_read_only_disk_is_named_and_may_be_read(tmp_path: Path) -> None:
    """Scenario 6."""
    tiny_cache(tmp_path / "store", scenes=1, frames=2, points=20)
    done = in_own_mounts(READ_ONLY, str(tmp_path), *MAIN)
    lines = done.stdout.splitlines()
    assert "Traceback" not in done.stdout, done.stdout
    assert lines[0].startswith("error [cache]: no permission to write store/.lock")
    assert lines[3].startswith("error [usage]: the drive cannot be written to drive: Read-only file system")
    assert (lines[2], lines[5]) == ("1", "2")
    assert "all as sealed" in lines[-2]
    assert lines[-1] == "0"


ONE_BY_ONE = """
import json, os, sys
import hilda_cache.commands
from hilda_cache.cli import main
for words in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        sys.argv = ["hilda-cache", *words]
        main()
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
"""


def as_a_plain_user(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Run `hilda-cache` without root's right to read and write everything: exit codes and all that was said."""
    powers = "-dac_override,-dac_read_search"
    plain = ["setpriv", f"--inh-caps={powers}", f"--bounding-set={powers}"]
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can give files to another user")
    done = subprocess.run(
        [*plain, sys.executable, "-c", ONE_BY_ONE],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, input=json.dumps(commands), text=True, timeout=120,
    )  # fmt: skip
    *found, rest = re.split(r"^exit (-?\d+)\n", done.stdout, flags=re.MULTILINE)
    assert (rest, len(found)) == ("", 2 * len(commands)), done.stdout
    return [(int(code), said) for said, code in zip(found[::2], found[1::2], strict=True)]


def test_what_a_user_may_not_read_or_write_is_one_line(tmp_path: Path) -> None:
    """Scenario 7: folders and files of uid 65534, at every place that a command looks at."""
    from hilda_cache.drives.synthetic import make_drive

    drive, store, closed = tmp_path / "drive", tmp_path / "store", tmp_path / "closed"
    make_drive(drive, scenes=1, frames=1, seed=0, image_size=(64, 36))
    tiny_cache(store, scenes=1, frames=2, points=20)
    closed.mkdir(mode=0o700)
    (store / "frames.parquet").chmod(0o600)
    for path in (tmp_path, store, closed, store / "frames.parquet", drive / "v1.0-synthetic"):
        os.chown(path, NOBODY, NOBODY)
    tmp_path.chmod(0o755)
    (drive / "v1.0-synthetic").chmod(0o700)
    teacher = ["-d", "nuscenes", "-t", "toy=x.y:make"]
    refused = [
        ["extract", str(drive), *teacher, "-o", str(tmp_path / "new")],  # a folder that is another's
        ["extract", str(drive), *teacher, "-o", str(closed / "new")],  # below a folder that may not be entered
        ["extract", str(closed / "drive"), *teacher, "-o", str(tmp_path / "new")],
        ["extract", str(drive), *teacher, "-o", "/tmp/never"],  # whose tables may not be read
        ["repair", str(store)],
        ["info", str(store)],
        ["info", str(closed / "store")],
        ["verify", str(closed / "store")],
        ["show", str(store), "-o", str(closed / "x.png")],
    ]
    *failed, (code, said) = as_a_plain_user([*refused, ["verify", str(store)]])
    assert code == 3
    assert "wrong: frames.parquet: " in said
    for words, (code, said) in zip(refused, failed, strict=True):
        errors = [line for line in said.splitlines() if line.startswith("error [")]
        assert (code in {1, 2}, len(errors), "Traceback" in said) == (True, 1, False), (words, said)
        assert str(tmp_path) in errors[0]
    assert {path.name for path in tmp_path.iterdir()} == {"drive", "store", "closed"}
    assert list(closed.iterdir()) == []


def test_a_store_that_goes_away_is_an_error_and_not_a_new_store(
    request_of: Callable[..., ExtractRequest], run: Any, dask_client: Any, tree: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """Scenario 39: what its path names is another, empty folder from one moment to the next."""
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"

    def unmount(report: ExtractReport) -> None:
        if len(report.entries) == 1 and not elsewhere.exists():
            disk.rename(elsewhere)
            disk.mkdir()

    disk.mkdir()
    report = run(request_of("import time; time.sleep(0.5)"), disk / "store", dask_client, unmount)
    assert not report.complete
    assert report.failures
    assert all(failure.code.startswith("cache") for failure in report.failures.values())
    assert list(disk.iterdir()) == []
    assert verify(elsewhere / "store").problems == []
    disk.rmdir()
    elsewhere.rename(disk)
    assert run(request_of(), disk / "store", dask_client).complete
    assert tree(disk / "store") == undisturbed
