"""Does an extraction scale with its workers, and what does Dask cost for each part?

    python benchmarks/scaling.py [--seconds 4] [--parts 4] [--frames 1000000]

The client's own loop (`extract.run_parts`) on a LocalCluster, with a part that takes no processor: its teacher sleeps,
so that one machine can play many. "n workers" are n threads in two worker processes. Prints

- for 1 to 64 workers the wall time of `--parts` parts for each against the time that they sleep: efficiency;
- what a part costs where it does nothing: the throughput of client, scheduler and workers together on this machine;
- for a drive of a million frames: what planning takes, and what submitting all of its parts does to the client's
  memory; how many tasks the scheduler knew of at most.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import dask
from distributed import Client, LocalCluster

from hilda_cache import extract
from hilda_cache.extract import ExtractReport, run_parts
from hilda_cache.parts import MAX_PART_FRAMES, PartOutcome, PartPlan, plan_parts
from hilda_cache.request import Selection
from hilda_schema.manifest import PartEntry

WORKERS, PROCESSES, SCENE_FRAMES, EMPTY_PARTS = (1, 2, 4, 8, 16, 32, 64), 2, 400, 2000
HERE = Path(__file__).resolve().parent


def sleeping_part(_request: Any, seconds: float, _store: str, plan: PartPlan) -> PartOutcome:
    """A part whose teacher sleeps instead of computing; what comes back is as large as from a real one."""
    time.sleep(seconds)
    name = f"{hash(plan) & (2**128 - 1):032x}"
    entry = PartEntry(part=name, scene=plan.scene, frames=plan.stop - plan.start, bytes=1, seal_sha256="0" * 64)
    stages = dict.fromkeys(("hash", "read", "decode", "project", "teach", "encode", "write"), 0.0)
    return PartOutcome(entry, reused=False, images=0, seconds=stages, cpu_seconds=stages)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="that a part takes")
    parser.add_argument("--parts", type=int, default=4, help="for each worker")
    parser.add_argument("--frames", type=int, default=1_000_000)
    arguments = parser.parse_args()
    print(f"{'workers':>7} {'parts':>6} {'wall s':>7} {'ideal s':>8} {'efficiency':>11}")
    for workers in WORKERS:
        with cluster(workers) as client:
            plans = [PartPlan("scene", k, k + 1) for k in range(workers * arguments.parts)]
            wall_s, ideal_s = run(client, plans, arguments.seconds)[0], arguments.seconds * arguments.parts
        print(f"{workers:7} {len(plans):6} {wall_s:7.2f} {ideal_s:8.2f} {ideal_s / wall_s:11.0%}")
    with cluster(PROCESSES) as client:
        plans = [PartPlan("scene", k, k + 1) for k in range(EMPTY_PARTS)]
        wall_ms, cpu_ms = (seconds / EMPTY_PARTS * 1e3 for seconds in run(client, plans, 0.0))
        print(f"a part that does nothing: {wall_ms:.2f} ms, {cpu_ms:.2f} ms of them client and scheduler (processor)")
        million(client, arguments.frames)


@contextmanager
def cluster(workers: int) -> Iterator[Client]:
    """A cluster of so many threads, in a few processes that know this file, beside a client that is warm."""
    processes = min(workers, PROCESSES)
    settings = {"distributed.nanny.pre-spawn-environ": {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=processes,
            threads_per_worker=workers // processes,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as local,
        Client(local) as client,
    ):
        client.run(lambda: __import__("scaling"))
        yield client


def run(
    client: Client,
    plans: list[PartPlan],
    seconds: float,
    on_part: Callable[[ExtractReport], None] = lambda report: None,
) -> tuple[float, float]:
    """Wall time, and processor time of this process (client and scheduler), of making parts."""
    import scaling  # by its name, which the workers know too

    report = ExtractReport(planned=len(plans))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    with patch.object(extract, "_extract_part", scaling.sleeping_part):
        run_parts(client, None, seconds, Path("nowhere"), plans, report, on_part)
    found = time.perf_counter() - wall_s, time.process_time() - cpu_s
    if not report.complete:
        raise SystemExit(str(next(iter(report.failures.values()))))
    return found


def million(client: Client, frames: int) -> None:
    """Plan a drive of so many frames, and submit every part of it."""
    scenes = {f"scene-{k:05d}": range(min(SCENE_FRAMES, frames - first)) for k, first in scene_starts(frames)}
    drive = SimpleNamespace(scenes=lambda: tuple(scenes), frames=scenes.__getitem__)
    before, start = resident_mb(), time.perf_counter()
    plans = plan_parts(drive, Selection(), MAX_PART_FRAMES)
    planned_s, planned = time.perf_counter() - start, resident_mb()
    most, scheduler = 0, client.cluster.scheduler

    def on_part(report: ExtractReport) -> None:
        nonlocal most
        most = max(most, len(scheduler.tasks))

    wall_s, _ = run(client, plans, 0.0, on_part)
    after = resident_mb()
    print(f"{frames} frames in {len(plans)} parts: planned in {planned_s:.2f} s, {planned - before:.0f} MB")
    print(f"submitted and made in {wall_s:.0f} s ({wall_s / len(plans) * 1e3:.2f} ms a part)")
    print(
        f"client and scheduler grew by {after - planned:.0f} MB, {(after - planned) / len(plans) * 1e3:.1f} kB a part;"
        f" the scheduler knew of at most {most} tasks at a time"
    )


def scene_starts(frames: int) -> Iterator[tuple[int, int]]:
    """Number and first frame of every scene."""
    return enumerate(range(0, frames, SCENE_FRAMES))


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
