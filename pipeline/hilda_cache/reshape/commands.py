"""What each command does once its options are understood: call the work, show its progress, word its result."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hilda_cache.options import ENCODINGS
from hilda_cache.request import split_per_teacher
from hilda_cache.reshape.prune import own_folder
from hilda_cache.reshape.words import option_words
from hilda_schema.errors import UsageError
from hilda_schema.manifest import EncodingInfo, Manifest
from hilda_schema.reader import open_cache
from hilda_schema.terminal import Interrupted, Meter, counted, human_bytes, human_seconds, interruptible, say, warn

if TYPE_CHECKING:
    from hilda_cache.reshape.subset import Cut

MAX_LISTED = 10


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A meter of parts; an interruption says how to go on."""
    meter = Meter("parts", 0, lambda done, total, seconds: human_seconds(seconds))

    def on_part(done: int, total: int) -> None:
        meter.total = total
        meter.advance(done - meter.done)

    try:
        with interruptible(), meter:
            yield on_part
    except Interrupted:
        warn("finished parts are kept: run the same command again to go on")
        raise


def _say_made(out: Path, manifest: Manifest) -> None:
    size = human_bytes(sum(entry.bytes for entry in manifest.parts))
    say(
        f"{out}: {counted(manifest.frames, 'frame')} in {counted(len(manifest.parts), 'part')}, {size}, "
        f"content sha256:{manifest.root_sha256}"
    )


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"{option} {text!r} names nothing", f"write {option} NAME[,NAME...]")
    return names


def merge(stores: list[str], out: Path) -> None:
    """Unite stores."""
    from hilda_cache.reshape.merge import merge as run_merge

    with _progress() as on_part:
        manifest = run_merge(stores, out, on_part)
    _say_made(out, manifest)


def subset(
    store: str,
    out: Path,
    scenes: str | None,
    frames: str,
    cameras: str | None,
    teachers: str | None,
    layers: list[str],
) -> None:
    """Cut a store."""
    from hilda_cache.reshape.subset import subset as run_subset

    cut, detail = parse_cut(store, scenes, frames, cameras, teachers, layers)
    with _progress() as on_part:
        manifest = run_subset(store, out, cut, detail, on_part)
    _say_made(out, manifest)


def parse_cut(
    store: str, scenes: str | None, frames: str, cameras: str | None, teachers: str | None, layers: list[str]
) -> tuple[Cut, str]:
    """What is to stay of a store, and the same as words on a command line."""
    from hilda_cache.reshape.subset import Cut

    known = list(open_cache(store).teachers)
    kept = _names("--teachers", teachers)
    per_teacher = split_per_teacher("--layers", layers, [name for name in known if kept is None or name in kept])
    cut = Cut(
        scenes=_names("--scenes", scenes),
        frames=frames,
        cameras=_names("--cameras", cameras),
        teachers=kept,
        layers={name: _names("--layers", text) or () for name, text in per_teacher.items()},
    )
    detail = option_words(
        scenes=scenes,
        frames=None if frames == ":" else frames,
        cameras=cameras,
        teachers=teachers,
        layers=layers,
    )
    return cut, detail


def reencode(store: str, out: Path, to: str | None, dims: list[str], like: str | None) -> None:
    """Encode a store anew.

    Raises:
        UsageError: nothing would change, or options exclude each other.
    """
    from hilda_cache.reshape.reencode import reencode as run_reencode

    if not (to or dims or like):
        raise UsageError("nothing would change", "add --to ENCODING, --dims N or --like STORE")
    if like and (to or dims):
        raise UsageError("--like takes encoding and channels of the other cache", "leave --to and --dims out")
    before = open_cache(store).manifest.recipe
    encoding = _encoding(to) if to else None
    if encoding and (before.encoding.dtype, encoding.dtype) == ("int8", "float16"):
        warn("what int8 lost does not come back: the new store is larger and no more exact")
    kept = _channels(dims, [teacher.name for teacher in before.teachers])
    with _progress() as on_part:
        manifest = run_reencode(store, out, encoding, kept, like, on_part)
    if before.digest() != manifest.recipe.digest():
        _say_losses(store, manifest)
    _say_made(out, manifest)


def _encoding(word: str) -> EncodingInfo:
    if word not in ENCODINGS:
        raise UsageError(f"--to {word!r} is not known", f"use one of {', '.join(ENCODINGS)}")
    kind, dtype = ENCODINGS[word]
    return EncodingInfo.model_validate({"kind": kind, "dtype": dtype})


def _channels(dims: list[str], teachers: list[str]) -> dict[str, int]:
    found = {}
    for name, text in split_per_teacher("--dims", dims, teachers).items():
        if not (text.isascii() and text.isdigit() and int(text)):
            raise UsageError(f"--dims {text!r} is no number of channels", "write --dims 128, or --dims TEACHER=128")
        found[name] = int(text)
    return found


def _say_losses(store: str, manifest: Manifest) -> None:
    layers = {f"{each.name}/{layer.name}": layer for each in manifest.recipe.teachers for layer in each.layers}
    for name, error in manifest.encoding_error.items():
        reduction = layers[name].reduction
        of = (
            f"{layers[name].channels} of {reduction.channels} channels, "
            f"{reduction.explained_variance:.1%} of the variance: "
            if reduction
            else ""
        )
        say(
            f"{name}, against {store}: {of}cosine at least {error.cosine_min:.6f}, {error.cosine_mean:.6f} on average; "
            f"relative L2 at most {error.relative_l2_max:.2g}, {error.relative_l2_mean:.2g} on average"
        )


def prune(store: str, *, dry_run: bool) -> None:
    """Remove what does not belong to a store."""
    from hilda_cache.reshape.prune import prune as run_prune

    found = run_prune(own_folder(store), dry_run=dry_run)
    verb = "would remove" if dry_run else "removed"
    for name in [*found.temporary, *found.unlisted]:
        say(f"{verb} parts/{name}")
    for name in found.unknown:
        warn(f"unknown, left alone: {name}")
    gone = len(found.temporary) + len(found.unlisted)
    say(f"{store}: {verb} {counted(gone, 'leftover')}" if gone else f"{store}: nothing to remove")


def forget(store: str, reason: str, scenes: str | None, frames: str | None) -> None:
    """Remove frames from a store."""
    from hilda_cache.reshape.forget import forget as run_forget

    folder = own_folder(store)
    report = run_forget(folder, _names("--scenes", scenes) or (), _names("--frames", frames) or (), reason)
    if not report.frames:
        say(f"{store}: nothing to remove, the frames were removed before")
        return
    say(
        f"{store}: {counted(report.frames, 'frame')} removed, {counted(report.rewritten, 'part')} made anew, "
        f"{counted(report.dropped, 'part')} dropped"
    )
    if report.linked:
        warn(
            f"{counted(report.linked, 'removed file')} had another hard link: another store still holds the bytes "
            "(a merge or subset on the same disk); run this there too"
        )
    for name in report.strangers[:MAX_LISTED]:
        warn(f"not looked into, since it is no file of the store: {name}")
    if report.card:
        warn(f"{report.card}: see whether it names what was removed")


def catalog(uri: str, *, as_json: bool) -> None:
    """List stores."""
    from hilda_cache.reshape.catalog import catalog as find
    from hilda_cache.reshape.catalog import catalog_json, catalog_text

    rows = find(uri)
    if as_json:
        sys.stdout.write(json.dumps(catalog_json(rows), indent=2, ensure_ascii=False) + "\n")
    elif rows:
        sys.stdout.write(catalog_text(rows) + "\n")
    else:
        say(f"no cache under {uri}")


def card(store: str, *, write: bool) -> None:
    """Print or write a store's card."""
    from hilda_cache.reshape.dataset_card import card_markdown, write_card

    if write:
        write_card(own_folder(store))
        say(f"wrote {store}/README.md")
    else:
        sys.stdout.write(card_markdown(open_cache(store, allow_partial=True)))


def migrate(store: str, *, dry_run: bool) -> None:
    """Take a store to today's schema."""
    from hilda_cache.reshape.migrate import migrate as run_migrate
    from hilda_cache.reshape.migrate import steps_of
    from hilda_schema.manifest import SCHEMA_VERSIONS

    steps = steps_of(Path(store)) if dry_run else run_migrate(Path(store))
    if not steps:
        say(f"{store} has a schema that is written today ({', '.join(SCHEMA_VERSIONS)}): nothing to do")
    for version in steps:
        say(f"{'would leave' if dry_run else 'left'} schema {version} behind")


def repair(store: str, *, drop_damaged: bool) -> None:
    """Restore a store, and say how to make again what it lost."""
    from hilda_cache.reshape.again import extract_command
    from hilda_cache.reshape.repair import repair as run_repair

    folder = own_folder(store)
    meter = Meter("files", 0, lambda done, total, seconds: human_seconds(seconds))

    def on_progress(done: int, total: int) -> None:
        meter.total = total
        meter.advance(done - meter.done)

    with meter:
        report = run_repair(folder, drop_damaged=drop_damaged, on_progress=on_progress)
    manifest = report.manifest
    if report.forgot:
        say(f"{store}: the interrupted removal of frames is done")
    for part, keys in report.lost.items():
        frames = f"{keys[0]} to {keys[-1]}, {counted(len(keys), 'frame')}" if keys else "its frames are not known"
        warn(f"removed part {part}: {frames}")
    held = f"{counted(len(manifest.parts), 'part')}, {counted(manifest.frames, 'frame')}"
    say(f"{store}: {held}, content {manifest.root_sha256}")
    if report.lost and (manifest.parents or manifest.forgotten):
        warn("  -> to have the lost frames again, make it anew from the stores it was made from (hilda-cache card)")
    elif report.lost:
        warn(f"  -> {extract_command(manifest.recipe, store)}")
        warn("     makes them again; where images are gone, --missing skip records them as absent")
    if report.manifest_was_lost and not report.history_was_lost:
        say("the manifest was lost: what only it knew is taken from history.json")
    if report.history_was_lost:
        warn(
            "manifest.json and history.json were lost: the parts do not say which --scenes and --frames had been asked "
            f"for, nor whether frames were removed on request; to go on extracting a selection, remove {store}/"
            "manifest.json and history.json first: parts are kept"
        )
