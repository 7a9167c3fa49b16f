"""A drive of a million frames: what planning it and submitting its parts takes of the client."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, LocalCluster

from hilda_cache import extract
from hilda_cache.extract import TASKS_WAITING, ExtractReport, run_parts
from hilda_cache.parts import PartOutcome, PartPlan, plan_parts
from hilda_cache.request import Selection
from hilda_schema.manifest import PartEntry

SCENES, SCENE_FRAMES = 2_500, 400


def test_a_million_frames_are_planned_in_a_few_megabytes() -> None:
    scenes = {f"scene-{k:05d}": range(SCENE_FRAMES) for k in range(SCENES)}
    drive = SimpleNamespace(scenes=lambda: tuple(scenes), frames=scenes.__getitem__)
    tracemalloc.start()
    try:
        plans = plan_parts(drive, Selection(), 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(plan.stop - plan.start for plan in plans) == SCENES * SCENE_FRAMES
    assert max(plan.stop - plan.start for plan in plans) <= 64
    assert peak < 400 * len(plans)


def nothing() -> Callable[..., PartOutcome]:
    """A part without work. A function within another travels to workers, who do not know this file."""

    def part(_request: Any, _recipe: Any, _store: str, plan: PartPlan) -> PartOutcome:
        if plan.start % 10 == 3:
            raise ValueError("a broken frame")
        entry = PartEntry(part=f"{plan.start:032x}", scene="s", frames=1, bytes=1, seal_sha256="0" * 64)
        return PartOutcome(entry, reused=False, images=0, seconds={}, cpu_seconds={})

    return part


def test_parts_are_submitted_a_few_at_a_time(dask_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is planned, client and scheduler hold what the workers can take; what is done is forgotten."""
    monkeypatch.setattr(extract, "_extract_part", nothing())
    plans, most = [PartPlan("s", k, k + 1) for k in range(120)], [0]
    room = sum(TASKS_WAITING + threads for threads in dask_client.nthreads().values())
    report, before = ExtractReport(planned=len(plans)), set(dask_client.futures)  # other tests' that still live

    def on_part(report: ExtractReport) -> None:
        most.append(len(dask_client.futures.keys() - before))

    run_parts(dask_client, None, None, Path("nowhere"), plans, report, on_part)  # type: ignore[arg-type]
    assert len(report.entries) == 108
    assert {plan.start for plan in report.failures} == set(range(3, 120, 10))
    assert {failure.message for failure in report.failures.values()} == {"ValueError: a broken frame"}
    assert room // 2 < max(most) <= room


def test_workers_that_join_later_are_given_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "COUNT_EVERY_S", 0.0)
    with (
        LocalCluster(
            n_workers=0,
            threads_per_worker=3,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,  # fmt: skip
        Client(cluster) as client,
    ):
        places = extract._Places(client)
        assert places.room() == 1
        for workers in (1, 7):  # some versions of Dask list five
            cluster.scale(workers)
            client.wait_for_workers(workers)
            assert places.room() == workers * (TASKS_WAITING + 3)
        assert places.most == 7
