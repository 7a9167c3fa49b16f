"""Workers that are killed, run out of memory or lose their scheduler: every other part is made, none of them torn."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hilda_cache.cluster import connect, result_of
from hilda_cache.extract import ExtractReport
from hilda_cache.request import ExtractRequest
from hilda_schema.errors import ClusterError, SchedulerLost
from hilda_schema.verify import verify

pytestmark = pytest.mark.timeout(900)  # every death costs a start of Python and torch, on however busy a machine
WHITE = (255, 255, 255)
KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def on_the_white_image(code: str) -> str:
    return f"if float(x.amin(dim=(1, 2, 3)).max()) > 1.9:\n    {code}"


def paint_white(drive: Path) -> None:
    """One of the six frames is unlike the others, which the teacher sees."""
    image = sorted((drive / "samples" / "CAM_FRONT").iterdir())[1]
    Image.new("RGB", (176, 99), WHITE).save(image, quality=95)


def test_a_killed_worker_costs_time_and_nothing_else(
    request_of: Callable[..., ExtractRequest], run: Any, tree: Any, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Scenario 22: SIGKILL to the only worker while it makes the first part (scattered data would die with it)."""
    once = f"import os, signal\nif not (HERE / 'died').exists():\n    (HERE / 'died').touch()\n    {KILL}"
    with connect(1, None) as client:
        report = run(request_of(once), tmp_path / "store", client)
    assert (tmp_path / "died").exists()
    assert report.complete
    assert not report.failures
    assert tree(tmp_path / "store") == undisturbed


def test_a_frame_that_kills_every_worker_fails_alone(
    drive: Path, request_of: Callable[..., ExtractRequest], run: Any, tmp_path: Path
) -> None:
    """Scenario 23, with one worker, where parts wait behind the one that kills it."""
    paint_white(drive)
    store, done = tmp_path / "store", []
    with connect(1, None) as client:
        report = run(request_of(on_the_white_image(KILL)), store, client, lambda report: done.append(1))
        assert len(done) == report.planned == 6
        assert len(report.entries) == 5
        ((plan, failure),) = report.failures.items()
        assert type(failure) is ClusterError
        assert "every worker that did this was killed" in failure.message
        assert "--part-frames" in failure.remedy
        assert verify(store).problems == []
        again = run(request_of(), store, client)  # the cause is mended
        assert again.complete
        assert again.reused == 5
        assert plan in again.entries


def test_too_little_memory_is_said_with_what_to_change(
    drive: Path, request_of: Callable[..., ExtractRequest], run: Any, dask_client: Any, tmp_path: Path
) -> None:
    """Scenario 24: allocations that the system refuses, in the model and beside it. Its killer is scenario 23."""
    paint_white(drive)
    asked = request_of(on_the_white_image("import torch; torch.empty(2**45)"))
    report = run(asked, tmp_path / "store", dask_client)
    assert len(report.entries) == 5
    (failure,) = report.failures.values()
    assert "Cannot allocate memory" in failure.message
    assert "fewer images at a time if memory ran out" in failure.remedy
    with pytest.raises(ClusterError, match="a worker ran out of memory: ") as error:
        result_of(dask_client.submit(np.zeros, 2**50))
    assert "--workers" in error.value.remedy


def free_address() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def start(*words: str) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "distributed.cli." + words[0], *words[1:]], **quiet)


def test_a_scheduler_that_dies_ends_the_extraction_and_another_goes_on(
    request_of: Callable[..., ExtractRequest],
    run: Any,
    tree: Any,
    undisturbed: dict[str, str],
    dask_client: Any,
    tmp_path: Path,
) -> None:
    """Scenario 25: `dask scheduler` on loopback, killed after the second part."""
    address = free_address()
    port = address.rpartition(":")[2]
    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
    worker = start("dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "5")

    def kill_after_two(report: ExtractReport) -> None:
        if len(report.entries) == 2:
            scheduler.kill()

    try:
        with connect(None, address) as client:
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(SchedulerLost, match="the Dask scheduler is gone"):
                run(request_of("import time; time.sleep(0.5)"), tmp_path / "store", client, kill_after_two)
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    report = run(request_of(), tmp_path / "store", dask_client)
    assert report.complete
    assert report.reused >= 2
    assert tree(tmp_path / "store") == undisturbed


def test_a_part_that_takes_much_longer_changes_nothing(
    drive: Path,
    request_of: Callable[..., ExtractRequest],
    run: Any,
    dask_client: Any,
    tree: Any,
    tmp_path: Path,
) -> None:
    """Scenario 28: a straggler."""
    paint_white(drive)
    quick = run(request_of(), tmp_path / "quick", dask_client)
    slow = on_the_white_image("import time; time.sleep(4)")
    report = run(request_of(slow), tmp_path / "slow", dask_client)
    assert quick.complete
    assert report.complete
    assert report.wall_s >= 4
    assert tree(tmp_path / "slow") == tree(tmp_path / "quick")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_workers_killed_at_random_all_the_time_change_no_byte(
    request_of: Callable[..., ExtractRequest], run: Any, tree: Any, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Scenario 26: two workers, one of them killed after each part, five times over."""
    chance, killed = random.Random(0), 0

    def kill_one(report: ExtractReport) -> None:
        nonlocal killed
        time.sleep(chance.uniform(0, 0.5))
        if pids := [pid for pid in client.run(os.getpid, on_error="ignore").values() if isinstance(pid, int)]:
            os.kill(chance.choice(pids), signal.SIGKILL)
            killed += 1

    for attempt in range(5):
        store = tmp_path / f"store-{attempt}"
        with connect(2, None) as client:
            report = run(request_of("import time; time.sleep(0.3)"), store, client, kill_one)
        while not report.complete:  # some part was hit each time: the same command again
            assert all(type(failure) is ClusterError for failure in report.failures.values())
            with connect(2, None) as client:
                report = run(request_of(), store, client)
        assert tree(store) == undisturbed
    assert killed >= 15


@pytest.mark.slow
def test_a_command_line_says_it_in_one_line(
    drive: Path, request_of: Callable[..., ExtractRequest], tmp_path: Path
) -> None:
    """A model that kills whoever resolves it: before the first part, where only the recipe is asked for."""
    request_of()
    (tmp_path / "toy.py").write_text(f"def make():\n    {KILL}\n")
    asked = [str(drive), "-d", "nuscenes", "-t", f"toy={tmp_path / 'toy.py'}:make", "-o", str(tmp_path / "store")]
    code = "from hilda_cache.cli import main\nif __name__ == '__main__':\n    main()"
    (tmp_path / "main.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "main.py"), "extract", *asked, "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"^error \[cluster\]: every worker that did this was killed", done.stderr, re.MULTILINE)
    assert not (tmp_path / "store").exists()
