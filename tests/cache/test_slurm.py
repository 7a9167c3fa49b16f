"""The batch script for Slurm: the command as it was typed, and a whole extraction where `srun` is only a loop."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.cluster import PARTS_AT_ONCE, connect
from hilda_schema import open_cache
from hilda_schema.errors import UsageError

ASKED = [
    "data/a b", "-d", "nuscenes", "-t", "facebook/dinov2-small", "--teacher", "own=timm:a/$b c", "--frames", ":5",
    "--option", "version=v1.0-mini", "--no-points", "-o", "cache",
]  # fmt: skip


def script(*words: str) -> str:
    done = CliRunner().invoke(app, ["extract", *words, "--print-sbatch"])
    assert done.exit_code == 0, done.output
    return done.stdout


def command(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith("hilda-cache ")]
    return shlex.split(line)


def test_the_script_runs_the_command_that_was_typed_on_as_many_tasks() -> None:
    text = script(*ASKED, "--workers", "48")
    assert "#SBATCH --ntasks=48 " in text
    words = command(text)
    assert words[:3] == ["hilda-cache", "extract", "data/a b"]
    assert words[-2:] == ["--scheduler", "$address"]
    assert [words[k + 1] for k, word in enumerate(words) if word == "--teacher"] == [
        "facebook/dinov2-small", "own=timm:a/$b c"
    ]  # fmt: skip
    assert "--no-points" in words
    assert not {"--workers", "--print-sbatch", "--encoding"} & set(words)
    again = CliRunner().invoke(app, [*words[1:-2], "--print-sbatch", "-w", "48"])
    assert again.stdout == text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_scheduler_of_ones_own_needs_no_script() -> None:
    done = CliRunner().invoke(app, ["extract", *ASKED, "--print-sbatch", "--scheduler", "tls://head:8786"])
    assert done.exit_code != 0
    assert "exclude each other" in str(done.exception)


SRUN = """#!/bin/bash
for task in 1 2; do "$@" & done
wait
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_extracts_behind_tls(tiny_drive: Path, tiny_vit: Path, tmp_path: Path) -> None:
    """What Slurm does is played by a loop; scheduler, workers, certificates and client are real."""
    asked = [str(tiny_drive), "-d", "nuscenes", "-t", f"vit={tiny_vit}", "-o", "store", "--part-frames", "1"]
    sizes = ["--image-size", "56x112", "--precision", "float32"]
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-s"],
        input=script(*asked, *sizes),
        env=os.environ | {"PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "asking tls://" in done.stderr
    assert len(open_cache(tmp_path / "store")) == 6
    assert not list(tmp_path.glob(".hilda-extract-*"))  # no key is left behind


SBATCH = """#!/bin/bash
cp "${@: -1}" "$0-$$"  # as Slurm does: the file is removed at once
setsid bash "$0-$$" > "$0-$$.log" 2>&1 < /dev/null &
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
for job in "$@"; do kill -- "-$job"; done
"""


def test_jobs_that_slurm_starts_work_behind_tls_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch` starts a job's script at once, here; all else is dask-jobqueue's and real."""
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with connect(2, "slurm") as client:
        client.wait_for_workers(2, timeout=120)
        facts = client.run(lambda: (os.environ["OMP_NUM_THREADS"], os.getpid()))
        assert all(address.startswith("tls://") for address in facts)
        assert {threads for threads, _ in facts.values()} == {"1"}
        assert set(client.nthreads().values()) == {PARTS_AT_ONCE}
    gone = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for _, pid in facts.values()):
        assert time.monotonic() < gone
        time.sleep(0.1)
    assert not list(tmp_path.glob(".hilda-extract-*"))  # no key is left behind


def test_slurm_that_is_not_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="no sbatch here"), connect(2, "slurm"):
        pass
