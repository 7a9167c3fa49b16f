"""The client's side of an extraction: what is to be done, who does it, and the one commit at the end.

One Dask task makes one part. Tasks carry a request, a recipe and a `PartPlan`, come back as small records, and are
submitted a few at a time, so that a million parts need no more memory here than a hundred. A part that fails does
not stop the others; the store stays `partial` and the same command goes on where this one ended.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hilda_cache.cluster import result_of, results_of
from hilda_cache.lock import NAME as LOCK
from hilda_cache.lock import locked
from hilda_cache.parts import PartOutcome, PartPlan, plan_parts, select_cameras
from hilda_cache.request import ExtractRequest, open_drive_once
from hilda_cache.timing import Timing
from hilda_schema.durable import writing
from hilda_schema.errors import CacheConflict, CacheFull, ClusterError, HildaError, SchedulerLost
from hilda_schema.manifest import Manifest, PartEntry, Recipe
from hilda_schema.root import OWN_FILES
from hilda_schema.writer import finish_store, read_manifest, remove_part, start_store, sweep_temporary

OWN_NAMES = {*OWN_FILES, LOCK, "parts"}
"""What a store without manifest may hold."""

TASKS_WAITING = 1  # for each worker: enough that none idles while the client answers
COUNT_EVERY_S = 5.0  # how often the workers are counted


@dataclass(slots=True)
class ExtractReport:
    """What came of an extraction."""

    planned: int
    entries: dict[PartPlan, PartEntry] = field(default_factory=dict)
    reused: int = 0
    images: int = 0
    failures: dict[PartPlan, HildaError] = field(default_factory=dict)
    superseded: list[str] = field(default_factory=list)  # part ids removed because their inputs changed
    workers: int = 0
    start_s: float = 0.0  # until every worker had its models, and the recipe was known
    wall_s: float = 0.0  # from the first part begun to the last one done
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # stage -> of all workers
    cpu_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # of their processors

    @property
    def complete(self) -> bool:
        """Whether every planned part is there."""
        return len(self.entries) == self.planned

    @property
    def timing(self) -> Timing:
        """Where the time went."""
        return Timing(self.start_s, self.wall_s, self.workers, self.seconds, self.cpu_seconds)

    def add(self, plan: PartPlan, outcome: PartOutcome) -> None:
        """Count a part that is there."""
        self.entries[plan] = outcome.entry
        self.reused += outcome.reused
        self.images += outcome.images
        for total, part in ((self.seconds, outcome.seconds), (self.cpu_seconds, outcome.cpu_seconds)):
            for stage, seconds in part.items():
                total[stage] += seconds


def check_request(request: ExtractRequest, store: Path) -> None:
    """Find what is wrong with a request without workers or models: seconds before they would, or hours.

    Raises:
        UsageError: the selection names a scene or camera that is not there, or holds no frame.
        DriveError: the drive cannot be opened.
        CacheConflict: the store's folder holds something else, or another process writes to it.
    """
    check_folder(store)
    refuse_derived(store)
    if (store / LOCK).exists():
        with locked(store):  # a dead process's file says nothing: only the lock itself does
            pass
    drive = open_drive_once(request.drive)
    select_cameras(drive, request.selection)
    plan_parts(drive, request.selection, request.part_frames or 1)


def extract(
    request: ExtractRequest,
    store: Path,
    client: Any,
    on_start: Callable[[Recipe, ExtractReport], None],
    on_part: Callable[[ExtractReport], None],
) -> ExtractReport:
    """Extract into a store, going on where an earlier run of the same request ended.

    Args:
        request: what is asked for.
        store: the store's folder; made where it is not there.
        client: a Dask client whose workers see the drive, the teachers and the store under the same paths.
        on_start: called once, when it is known what will be done.
        on_part: called after every part.

    Raises:
        CacheConflict: the store has another recipe, or another process writes to it.
        HildaError: the request cannot be resolved (drive, teacher). Failures of single parts are in the report.
    """
    check_request(request, store)
    with made_folder(store), locked(store):
        sweep_temporary(store)
        settled = read_manifest(store) if (store / "manifest.json").exists() else None
        began = time.perf_counter()
        loading = start_loading(client, request) if settled is None or settled.state == "partial" else []
        # Resolved where the models are loaded anyway: the client itself never needs torch.
        recipe, software = result_of(client.submit(_resolve, request, settled and settled.recipe, pure=False))
        if settled is not None:
            refuse_other_recipe(store, settled, recipe, software)
        plans = plan_parts(open_drive_once(request.drive), request.selection, recipe.part_frames)
        for future in loading:
            with suppress(HildaError):
                result_of(future)
        report = ExtractReport(planned=len(plans), start_s=time.perf_counter() - began)
        # A complete store stays readable while it is only checked again.
        if settled is None or settled.state == "partial" or settled.planned_parts != len(plans):
            start_store(store, recipe, len(plans), software)
        on_start(recipe, report)
        began = time.perf_counter()
        run_parts(client, request, recipe, store, plans, report, on_part)
        report.wall_s = time.perf_counter() - began
        if report.complete:
            entries = [report.entries[plan] for plan in plans]
            if settled is not None and set(settled.parts) != set(entries):
                start_store(store, recipe, len(plans), software)
            finish_store(store, recipe, entries)
            report.superseded = remove_superseded(store, report)
    return report


def check_folder(store: Path) -> None:
    """Never write into a folder that holds something else.

    Raises:
        CacheConflict: the folder has content but no manifest of ours, or is no folder.
        CacheError: it may not be written, or its place not be entered.
    """
    with writing(store):
        if store.is_file():
            raise CacheConflict(f"{store} is a file", "give a folder with --out")
        there = next(path for path in (store, *store.absolute().parents) if path.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if there != store:
            return
        if (store / "manifest.json").exists():
            return
        strangers = {path.name for path in store.iterdir()} - OWN_NAMES
    if strangers:
        raise CacheConflict(
            f"{store} is not a cache and not empty (it holds {sorted(strangers)[0]!r})", "give another --out"
        )


def refuse_derived(store: Path) -> None:
    """Extraction fills a store with all that its drive has: never one that was made to hold something else.

    Raises:
        CacheConflict: the store was made from other stores, or frames were removed from it on request.
    """
    if not (store / "manifest.json").exists():
        return
    manifest = read_manifest(store)
    if manifest.forgotten:
        count = sum(len(each.frames) for each in manifest.forgotten)
        raise CacheConflict(
            f"{count} frames were removed from {store} on request: extracting into it would bring them back",
            "to have them again on purpose, extract into another folder",
        )
    if manifest.parents:
        raise CacheConflict(
            f"{store} was made from other stores ({manifest.parents[0].operation}), not extracted",
            "extract what is missing into another folder, then: hilda-cache merge A B --out C",
        )


@contextmanager
def made_folder(store: Path) -> Iterator[None]:
    """Make the store's folder; a new one in which nothing was written (a layer mistyped) goes again."""
    new = not store.exists()
    with writing(store):
        store.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new:
            with suppress(OSError):  # it holds the beginnings of a store
                store.rmdir()


def refuse_other_recipe(store: Path, settled: Manifest, asked: Recipe, software: dict[str, str]) -> None:
    """Let nobody mix two recipes in one store, nor two versions of what computes the features.

    Raises:
        CacheConflict: naming every field that differs.
    """
    before = {name: settled.software.get(name) for name in software}
    old, new = settled.recipe.model_dump(mode="json"), asked.model_dump(mode="json")
    rows = [*differences(old, new), *differences(before, software, "software")]
    lines = [f"{name}: {a} -> {b}" for name, a, b in rows]
    if lines:
        raise CacheConflict(
            f"{store} was made with another recipe; {'; '.join(lines[:6])}{' ...' if len(lines) > 6 else ''}",
            "extract into another folder, or repeat the options of the first run (hilda-cache info shows them)",
        )


def differences(a: Any, b: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    """Where two JSON values differ: (field, one value, the other), None for a value that is not there."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [
            row for name in names for row in differences(a.get(name), b.get(name), f"{where}.{name}" if where else name)
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [row for k, pair in enumerate(zip(a, b, strict=True)) for row in differences(*pair, f"{where}[{k}]")]
    return [] if a == b else [(where, a, b)]


def start_loading(client: Any, request: ExtractRequest) -> list[Any]:
    """Let every worker load the teachers, all at the same time; what fails there fails again, with words, in a part."""
    places = client.nthreads()
    return [client.submit(_load, request, workers=[place], allow_other_workers=True, pure=False) for place in places]


def run_parts(
    client: Any,
    request: ExtractRequest,
    recipe: Recipe,
    store: Path,
    plans: list[PartPlan],
    report: ExtractReport,
    on_part: Callable[[ExtractReport], None],
) -> None:
    """Make every part, a bounded number of tasks at a time.

    Raises:
        HildaError: the scheduler is lost, and all tasks with it; other failures are in the report.
    """
    from distributed import as_completed

    waiting, killed = deque(plans), deque[PartPlan]()
    retried: set[PartPlan] = set()
    running: dict[Any, PartPlan] = {}
    queue = as_completed([])

    def submit(plan: PartPlan) -> None:
        # Request and recipe go with every task: what is scattered once dies with the workers that hold it.
        future = client.submit(_extract_part, request, recipe, str(store.resolve()), plan, pure=False)
        running[future] = plan
        queue.add(future)

    def fill() -> None:
        room = places.room()
        while waiting and len(running) < room:
            submit(waiting.popleft())

    places = _Places(client)
    fill()
    for batch in queue.batches():
        for future, outcome in zip(batch, results_of(client, batch), strict=True):
            plan = running.pop(future)
            failure = _failure_of(future, outcome, plan, report)
            if isinstance(failure, ClusterError) and plan not in retried:
                # It, or one that it waited behind: the end of the run shows, where each of them has a worker alone.
                killed.append(plan)
                retried.add(plan)
            else:
                if failure is not None:
                    report.failures[plan] = failure
                on_part(report)
            if isinstance(failure, CacheFull):
                waiting.clear()  # the others would be computed for nothing
        fill()
        if killed and not running:
            submit(killed.popleft())
    report.workers = places.most


class _Places:
    """How many parts may be under way: those that the workers make, and some that wait.

    Workers come and go while a cluster's queue starts and ends them, so they are counted again now and then.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._counted_s = -math.inf
        self._room = 1
        self.most = 1  # workers that there were at a time

    def room(self) -> int:
        """At least one: without any worker, what is submitted waits for the first."""
        if time.monotonic() - self._counted_s > COUNT_EVERY_S:
            with suppress(OSError):  # the scheduler is gone: the next part to come back will say so
                threads = self._client.nthreads().values()  # scheduler_info leaves out workers in some versions
                self._room = max(1, sum(TASKS_WAITING + count for count in threads))
                self.most = max(self.most, len(threads))
            self._counted_s = time.monotonic()
        return self._room


def _failure_of(future: Any, outcome: PartOutcome | None, plan: PartPlan, report: ExtractReport) -> HildaError | None:
    """Why a part was not made; None where it was, and is counted."""
    try:
        report.add(plan, outcome or result_of(future))
    except SchedulerLost:
        raise
    except HildaError as failure:
        return failure
    finally:
        future.release()  # the traceback of a failure would keep it, and the scheduler its task
    return None


def _resolve(request: ExtractRequest, settled: Recipe | None) -> tuple[Recipe, dict[str, str]]:
    from hilda_cache.lanes import Stopwatch, lanes
    from hilda_cache.recipe import resolve_recipe, software_versions

    with lanes().teaching(Stopwatch(), time.perf_counter()):  # another client's parts may be at the same models
        return resolve_recipe(request, settled), software_versions()


def _load(request: ExtractRequest) -> None:
    from hilda_cache.lanes import Stopwatch, lanes
    from hilda_cache.work import load_teachers_once

    with lanes().teaching(Stopwatch(), time.perf_counter()):
        load_teachers_once(request.teachers)


def _extract_part(request: ExtractRequest, recipe: Recipe, store: str, plan: PartPlan) -> PartOutcome:
    from hilda_cache.work import extract_part

    return extract_part(request, recipe, store, plan)


def remove_superseded(store: Path, report: ExtractReport) -> list[str]:
    """Remove parts that no frame needs any more, because an image or a calibration changed since they were made."""
    current = {entry.part for entry in report.entries.values()}
    stale = sorted(path.name for path in (store / "parts").iterdir() if path.is_dir() and path.name not in current)
    for name in stale:
        remove_part(store, name)  # never seen half removed
    return stale
