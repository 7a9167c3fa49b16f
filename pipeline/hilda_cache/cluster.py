"""Where parts are made: a Dask LocalCluster on this machine, or a scheduler that somebody runs.

The local cluster binds the loopback interface only and has no dashboard. A worker process holds one model, and computes
with one thread on a CPU.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any
from urllib.parse import urlsplit

from hilda_schema.errors import ClusterError, HildaError, SchedulerLost, UsageError

SLURM = "slurm"  # as a scheduler: jobs that are submitted from here
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
CONNECT_TIMEOUT_S = 30
PARTS_AT_ONCE = 3  # of a worker: one in each of its lanes (lanes.py)
NO_WORKER_TIMEOUT_S = 300  # for a worker to start again, on however busy a machine
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
WORKER_SETTINGS: dict[str, Any] = {
    # A part is big and short-lived; pausing or killing at a guessed limit would only turn slow into failed.
    "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    # What kills two workers is tried again alone (extract.run_parts); each death costs a start and a model.
    "distributed.scheduler.allowed-failures": 1,
    # A worker that cannot be started again is not waited for.
    "distributed.scheduler.no-workers-timeout": NO_WORKER_TIMEOUT_S,
}
"""Dask's settings wherever we start the scheduler and the workers."""

_LESS_MEMORY = "take fewer --workers, a smaller --part-frames or --image-size, or one --teacher at a time"


def default_workers() -> int:
    """One worker per core that this process may use; Slurm's share of a node where it says so."""
    if allotted := os.environ.get("SLURM_CPUS_PER_TASK"):
        return max(1, int(allotted))
    return len(os.sched_getaffinity(0))


@contextmanager
def connect(workers: int | None, scheduler: str | None, *, insecure: bool = False) -> Iterator[Any]:
    """A Dask client.

    Args:
        workers: processes of a local cluster; None for one per core. Of Slurm: jobs.
        scheduler: address of a running scheduler instead, `tcp://host:port` or `tls://host:port`; or `slurm`.
        insecure: allow `tcp://` to another machine, where anybody on the network can run code on the workers.

    Raises:
        UsageError: both given, an unencrypted remote scheduler, or nobody answers there.
    """
    if scheduler == SLURM:
        from hilda_cache.slurm import slurm_client

        with slurm_client(workers) as client:
            yield client
        return
    if scheduler and workers:
        raise UsageError("--workers and --scheduler exclude each other", "a scheduler brings its own workers")
    with _remote(scheduler, insecure) if scheduler else _local(workers or default_workers()) as client:
        yield client


@contextmanager
def _local(workers: int) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    # Workers compute with one thread each: see work.load_teachers_once. The variables must be set before numpy and
    # torch start in the worker, which is what this Dask setting is for.
    environment = dict.fromkeys(THREAD_VARIABLES, "1")
    settings = WORKER_SETTINGS | {"distributed.nanny.pre-spawn-environ": environment}
    cluster = None
    try:
        with dask.config.set(settings), _beyond_ctrl_c():
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=PARTS_AT_ONCE,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any free port: two extractions may share a machine
                silence_logs=logging.CRITICAL,  # a failure comes back as an error; the log would be its second telling
            )
        with Client(cluster) as client:
            yield client
    finally:
        if cluster is not None:
            with suppress(TimeoutError):
                cluster.close(timeout=10)


def results_of(client: Any, futures: list[Any]) -> list[Any]:
    """What tasks returned, in one question to the scheduler, however many are asked for.

    None for those that must be asked for by themselves, with `result_of`: they failed, or the question did.
    """
    finished = [future for future in futures if future.status == "finished"]
    try:
        found = dict(zip(finished, client.gather(finished), strict=True))
    except Exception:  # which of them it is, and why, each future says
        found = {}
    return [found.get(future) for future in futures]


def result_of(future: Any) -> Any:
    """What a task returned.

    Raises:
        SchedulerLost: the scheduler is gone, and every task with it.
        ClusterError: every worker that tried was killed or had too little memory, or none is left.
        HildaError: whatever the task raised, in one line.
    """
    from concurrent.futures import CancelledError

    from distributed import KilledWorker
    from distributed.scheduler import NoValidWorkerError

    try:
        return future.result()
    except HildaError:
        raise
    except CancelledError:
        raise SchedulerLost(
            "the Dask scheduler is gone, or the connection to it", "start it and its workers, run the command again"
        ) from None
    except KilledWorker:
        raise ClusterError(
            "every worker that did this was killed; most often the system ran out of memory", _LESS_MEMORY
        ) from None
    except NoValidWorkerError:
        raise ClusterError("no worker is left: they end as soon as they start, or before", _LESS_MEMORY) from None
    except Exception as error:
        text = (str(error).strip().splitlines() or ["no message"])[0]
        if isinstance(error, MemoryError):
            raise ClusterError(f"a worker ran out of memory: {text}", _LESS_MEMORY) from error
        raise HildaError(f"{type(error).__name__}: {text}") from error


@contextmanager
def _beyond_ctrl_c() -> Iterator[None]:
    """Start processes that never see SIGINT; one that arrives meanwhile is delivered here afterwards.

    A terminal sends it to every process of a command, but only the client is to act on it: a worker prints a traceback.
    A blocked signal stays blocked in the threads and processes that are started meanwhile, and in theirs.
    """
    resource_tracker.ensure_running()  # to start it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _remote(address: str, insecure: bool) -> Iterator[Any]:
    from distributed import Client
    from distributed.security import Security

    parts = urlsplit(address)
    if parts.scheme not in {"tcp", "tls"} or not parts.hostname:
        raise UsageError(
            f"--scheduler {address!r} is not an address", "write tls://HOST:PORT or tcp://HOST:PORT, or slurm"
        )
    if parts.scheme == "tcp" and parts.hostname not in LOOPBACK and not insecure:
        raise UsageError(
            f"--scheduler {address} is not encrypted: whoever reaches it can run code on every worker",
            "use tls://, or --insecure-network on a network that you trust",
        )
    security = Security(require_encryption=True) if parts.scheme == "tls" else None
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S, security=security)
    except OSError as error:
        raise UsageError(f"no Dask scheduler answers at {address} ({error})", "start one: dask scheduler") from None
    with client:
        yield client
