"""What `push` and `pull` do once their options are understood."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hilda_cache.commands import print_json
from hilda_cache.reshape.commands import parse_cut
from hilda_cache.share.cost import Cost, pull_cost, push_cost
from hilda_cache.share.pool import Transfer
from hilda_cache.share.pull import PullPlan, files_of, missing_parts, plan_pull
from hilda_cache.share.pull import pull as run_pull
from hilda_cache.share.push import check_remote, complete_manifest
from hilda_cache.share.push import push as run_push
from hilda_schema.errors import UsageError
from hilda_schema.manifest import Manifest
from hilda_schema.part import SEAL, SEAL_LIMIT
from hilda_schema.reader import open_cache
from hilda_schema.remote import RemoteStorage
from hilda_schema.root import SEALS_AT_ONCE, read_seals
from hilda_schema.storage import LocalStorage, open_storage, pinned
from hilda_schema.terminal import Interrupted, Meter, counted, human_bytes, human_seconds, say, warn


def push(
    store: Path, url: str, jobs: int, *, replace: bool, recheck: bool, dry_run: bool, as_json: bool
) -> int:  # fmt: skip
    """Bring a URL to hold a folder's store; the exit code.

    Raises:
        UsageError: the URL names a content, the store is no folder, or an option does not go with a folder.
        CacheError: the store is not complete, or the URL holds another one.
    """
    target = open_storage(url)
    if target.pin:
        raise UsageError("a push goes to a place, not to a content", "leave @sha256:... out")
    if re.match(r"\w+:/", str(store)):
        raise UsageError(f"{store} is no folder here", "pull that store first, then push the folder")
    if not isinstance(target, RemoteStorage):
        # A folder is written as every store on a disk is: part by part, by renaming.
        if replace or recheck:
            raise UsageError("--replace and --recheck are for URLs", "give a new folder instead")
        return pull(
            str(store), Path(target.name), None, None, None, jobs, dry_run=dry_run, as_json=as_json, verb="copied"
        )
    manifest = complete_manifest(LocalStorage(store))
    if dry_run:
        check_remote(target, manifest, LocalStorage(store), replace=replace)
        _say_cost(_cost_of_push(LocalStorage(store), manifest, target), "to send", as_json=as_json)
        return 0
    with _watched(len(manifest.parts)) as (meter, began):
        _, transfer = run_push(
            store, target, jobs=jobs, replace=replace, recheck=recheck, on_part=lambda t: _advance(meter, t)
        )
    _say_done(target.name, manifest, transfer, "sent", time.monotonic() - began, as_json=as_json)
    return 0


def pull(
    url: str,
    store: Path,
    scenes: str | None,
    teachers: str | None,
    layers: list[str] | None,
    jobs: int,
    *,
    dry_run: bool,
    as_json: bool,
    verb: str = "fetched",
) -> int:
    """Bring a folder to hold a store, or a cut of it; the exit code."""
    whole = scenes is None and teachers is None and not layers
    plan = plan_pull(url) if whole else plan_pull(url, *parse_cut(url, scenes, ":", None, teachers, layers or []))
    if dry_run:
        _say_cost(_cost_of_pull(plan, store), "to fetch", as_json=as_json)
        return 0
    with _watched(len(plan.parts)) as (meter, began):
        manifest, transfer = run_pull(plan, store, jobs=jobs, on_part=lambda t: _advance(meter, t))
    _say_done(str(store), manifest, transfer, verb, time.monotonic() - began, as_json=as_json)
    return 0


def sign(store: str, key: Path, out: Path | None) -> None:
    """Sign a store's content hash."""
    from hilda_cache.share.signature import sign_root

    cache = open_cache(store)
    path = sign_root(cache, key.expanduser(), out)
    say(f"wrote {path}: signature of sha256:{cache.manifest.root_sha256}")


@contextmanager
def _watched(parts: int) -> Iterator[tuple[Meter, float]]:
    """A meter of parts; an interruption says that nothing is lost."""
    began = time.monotonic()
    with Meter("parts", parts, lambda done, total, seconds: human_seconds(seconds)) as meter:
        try:
            yield meter, began
        except Interrupted:
            warn("what is there is kept: run the same command again to go on")
            raise


def _advance(meter: Meter, transfer: Transfer) -> None:
    meter.describe = lambda done, total, seconds: (
        f"{human_bytes(transfer.moved.bytes)}, {human_bytes(transfer.moved.bytes / max(seconds, 1e-9))}/s"
    )
    meter.advance(max(0, transfer.moved.parts + transfer.moved.kept_parts + len(transfer.damaged) - meter.done))


def _say_done(
    where: str, manifest: Manifest, transfer: Transfer, verb: str, seconds: float, *, as_json: bool
) -> None:  # fmt: skip
    moved = transfer.moved
    if as_json:
        print_json(
            {
                "root_sha256": manifest.root_sha256,
                "parts": len(manifest.parts),
                "parts_moved": moved.parts,
                "files": moved.files,
                "bytes": moved.bytes,
                "seconds": round(seconds, 3),
                "unlisted": transfer.unlisted,
            }
        )
    say(
        f"{where}: {counted(moved.parts, 'part')} {verb} ({moved.kept_parts} there already), "
        f"{counted(moved.files, 'file')}, {human_bytes(moved.bytes)} in {human_seconds(seconds)}; every byte checked"
    )
    if transfer.unlisted:
        count = counted(len(transfer.unlisted), "part")
        warn(f"{count} of the store before still there, unlisted; --json names them")
    say(f"exactly this store: {pinned(where, manifest.root_sha256)}")


def _say_cost(cost: Cost, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(cost.to_json())
        return
    lines = [
        f"{counted(cost.parts, 'part')} {what} ({cost.parts_there} there already): {counted(cost.files, 'file')}, "
        f"{human_bytes(cost.bytes)}",
        f"{counted(cost.writes, 'write request')}, {counted(cost.reads, 'read request')}",
    ]
    if cost.usd is not None:
        lines.append(
            f"about {cost.usd:.2f} USD at list prices, with {human_bytes(cost.bytes_out)} of traffic out of the store, "
            "which is free within a region"
        )
    sys.stdout.write("\n".join(lines) + "\n")


def _cost_of_push(source: LocalStorage, manifest: Manifest, target: RemoteStorage) -> Cost:
    missing, there = [], 0
    for start in range(0, len(manifest.parts), SEALS_AT_ONCE):
        entries = manifest.parts[start : start + SEALS_AT_ONCE]
        found = target.read_found([f"parts/{entry.part}/{SEAL}" for entry in entries], SEAL_LIMIT)
        for seal, other in zip(read_seals(source, entries), found, strict=True):
            if (data := seal.to_bytes()) == other:
                there += 1
            else:
                missing.append([*files_of(seal, manifest.recipe).values(), len(data)])
    return push_cost(_scheme(target), missing, there)


def _cost_of_pull(plan: PullPlan, store: Path) -> Cost:
    missing, recipe = missing_parts(plan, store), plan.recipe
    sizes = []
    for start in range(0, len(missing), SEALS_AT_ONCE):
        entries = [each.entry for each in missing[start : start + SEALS_AT_ONCE]]
        seals = read_seals(plan.source.storage, entries)
        sizes += [[*files_of(seal, recipe).values(), len(seal.to_bytes())] for seal in seals]
    return pull_cost(_scheme(plan.source.storage), sizes, len(plan.parts) - len(missing))


def _scheme(storage: object) -> str:
    return storage.url.split("://")[0] if isinstance(storage, RemoteStorage) else ""
