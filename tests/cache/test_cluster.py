"""Where parts are made: what is refused, and what a local worker is like."""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hilda_cache import cluster
from hilda_cache.cluster import connect, default_workers
from hilda_schema.errors import UsageError


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("tcp://10.0.0.7:8786", "is not encrypted"),
        ("tcp://scheduler.example.org:8786", "is not encrypted"),
        ("tcp://127.0.0.1.example.org:8786", "is not encrypted"),
        ("scheduler:8786", "is not an address"),
        ("http://127.0.0.1:8786", "is not an address"),
        ("tcp://", "is not an address"),
    ],
)
def test_a_scheduler_that_anybody_could_listen_to_is_refused(address: str, said: str) -> None:
    with pytest.raises(UsageError, match=said), connect(None, address):
        pass


def test_workers_and_a_scheduler_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="exclude each other"), connect(2, "tcp://127.0.0.1:8786"):
        pass


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.2)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"no Dask scheduler answers at {address}"), connect(None, address):
            pass


def test_a_share_of_a_node_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert default_workers() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert default_workers() == 3


def worker_facts() -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {
        "threads": [os.environ.get(name) for name in names],
        "deaf": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "pid": os.getpid(),
    }


def test_local_workers_use_one_thread_and_leave_ctrl_c_to_the_client(dask_client: Any) -> None:
    workers = dask_client.run(worker_facts)
    assert len(workers) == 2
    assert all(address.startswith("tcp://127.0.0.1:") for address in workers)
    for facts in workers.values():
        assert facts["threads"] == ["1", "1", "1"]
        assert facts["deaf"]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def listening(pid: int) -> set[str]:
    """Addresses on which a process listens, as /proc writes them."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.update(re.findall(r"^socket:\[(\d+)\]$", str(link.readlink())))
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def test_nothing_listens_beyond_this_machine(dask_client: Any) -> None:
    loopback = {"0100007F", "00000000000000000000000001000000"}
    processes = [os.getpid(), *(facts["pid"] for facts in dask_client.run(worker_facts).values())]
    found = [listening(pid) for pid in processes]
    assert all(found)
    assert set().union(*found) <= loopback


def test_a_running_scheduler_brings_its_workers(dask_client: Any) -> None:
    with connect(None, dask_client.scheduler.address) as client:
        assert client.scheduler_info()["workers"].keys() == dask_client.scheduler_info()["workers"].keys()
    assert dask_client.submit(sum, [1, 2]).result() == 3  # leaving does not stop it
