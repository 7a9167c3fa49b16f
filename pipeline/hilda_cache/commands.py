"""What each command does once its options are understood: call the work, show its progress, word its result."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilda_cache.cluster import connect, default_workers
from hilda_cache.extract import ExtractReport, check_request
from hilda_cache.extract import extract as run_extract
from hilda_cache.request import DriveSpec, ExtractRequest
from hilda_schema.errors import CacheError, HildaError, UsageError
from hilda_schema.reader import Cache, open_cache
from hilda_schema.terminal import (
    EXIT_INCOMPLETE,
    Interrupted,
    Meter,
    counted,
    human_bytes,
    human_seconds,
    interruptible,
    say,
    warn,
)

if TYPE_CHECKING:
    import typer

    from hilda_schema.verify import Depth, Report

MAX_LISTED = 5  # failures listed one by one; the rest are counted


def print_json(value: Any) -> None:
    """A result for scripts, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def extract(
    request: ExtractRequest, store: Path, workers: int | None, scheduler: str | None, *, insecure: bool, as_json: bool
) -> int:
    """Run an extraction with its progress; the exit code."""
    meter: Meter | None = None

    def on_start(recipe: Any, report: ExtractReport) -> None:
        nonlocal meter
        for teacher in recipe.teachers:
            say(f"teacher {teacher.name}: {teacher.precision_reason}")
        say(f"{counted(report.planned, 'part')} of at most {counted(recipe.part_frames, 'frame')}")
        meter = Meter("parts", report.planned, lambda done, total, s: _rate(report, done, total, s))
        meter.__enter__()

    def on_part(report: ExtractReport) -> None:
        if meter is not None:
            meter.advance()

    check_request(request, store)
    say(f"asking {scheduler}" if scheduler else f"starting {counted(workers or default_workers(), 'worker')}")
    try:
        with interruptible(), connect(workers, scheduler, insecure=insecure) as client:
            report = run_extract(request, store, client, on_start, on_part)
    except Interrupted as stop:
        warn(f"interrupted by {stop.name}; finished parts are kept: run the same command again to go on")
        return stop.exit_code
    finally:
        if meter is not None:
            meter.__exit__()
    return _conclude(report, store, as_json)


def print_sbatch(context: typer.Context, workers: int | None, scheduler: str | None) -> int:
    """Print a batch script for Slurm that runs the command; the exit code.

    Raises:
        UsageError: `scheduler` is given too.
    """
    from hilda_cache.slurm import sbatch_script, words_of

    if scheduler:
        raise UsageError("--print-sbatch and --scheduler exclude each other", "the script starts a scheduler itself")
    sys.stdout.write(sbatch_script(words_of(context), workers))
    say("save it, look at its first lines, then: sbatch FILE")
    return 0


def _rate(report: ExtractReport, done: int, total: int, seconds: float) -> str:
    made = done - report.reused
    written = sum(entry.bytes for entry in report.entries.values())
    left = f", {human_seconds(seconds / made * (total - done))} left" if made and done < total else ""
    failed = f", {len(report.failures)} failed" if report.failures else ""
    return f"{report.images / max(seconds, 1e-9):.1f} images/s, {human_bytes(written)}{failed}{left}"


def _conclude(report: ExtractReport, store: Path, as_json: bool) -> int:
    for plan, error in list(report.failures.items())[:MAX_LISTED]:
        warn(f"failed [{error.code}]: {plan.scene}[{plan.start}:{plan.stop}]: {error.message}")
        if error.remedy:
            warn(f"  -> {error.remedy}")
    if len(report.failures) > MAX_LISTED:
        warn(f"... and {len(report.failures) - MAX_LISTED} more parts failed")
    if not report.complete:
        warn(f"{len(report.entries)} of {report.planned} parts are in {store}: mend the causes, run the command again")
        return 1
    cache = open_cache(str(store))
    from hilda_cache.card import totals

    sums = totals(cache)
    for part in report.superseded:
        warn(f"removed part {part}: its images or calibration have changed since it was made")
    if as_json:
        print_json({"store": store.name, "totals": sums, "time": report.timing.to_json(), "reused": report.reused})
    _say_summary(report, store, sums)
    return EXIT_INCOMPLETE if sums["absences"] else 0


def _say_summary(report: ExtractReport, store: Path, sums: dict[str, Any]) -> None:
    coverage = sums["points_seen"] / sums["points"] if sums["points"] else 0.0
    say(
        f"{store}: {counted(sums['frames'], 'frame')} in {counted(sums['parts'], 'part')} ({report.reused} there "
        f"already), {counted(report.images, 'image')} seen, {counted(sums['pairs'], 'point-camera pair')}, "
        f"{coverage:.0%} of points seen, {human_bytes(sums['bytes'])}"
    )
    for line in report.timing.lines():
        say(line)
    if sums["points_dropped"]:
        warn(f"{sums['points_dropped']:,} points were not finite and are left out")
    if sums["absences"]:
        frames = counted(sums["frames_with_absences"], "frame")
        warn(f"{counted(sums['absences'], 'image or sweep', 'images or sweeps')} absent in {frames} (exit code 3)")


def plan(request: ExtractRequest, store: Path, workers: int | None, *, as_json: bool) -> int:
    """Print what an extraction costs; the exit code says whether it fits."""
    from hilda_cache.plan import make_plan

    made = make_plan(request, store, workers or default_workers())
    if as_json:
        print_json(made.to_json())
    else:
        lines = [
            f"{counted(made.frames, 'frame')} in {counted(made.parts, 'part')}, {counted(made.images, 'image')} "
            f"({made.missing_images:,} missing)",
            f"{made.points_per_frame:,.0f} points and {made.pairs_per_frame:,.0f} point-camera pairs a frame",
        ]
        for name, size in made.bytes_by_encoding.items():
            lines.append(f"  {name:14} {human_bytes(size)}{'   <- this one' if name == made.encoding else ''}")
        lines += [
            f"{counted(made.files, 'file')}; {human_bytes(made.free_bytes)} free: "
            f"it {'fits' if made.fits else 'does NOT fit'}",
            f"{made.seconds_per_image:.3f} s per image for the teachers, {made.seconds_per_frame:.2f} s a frame with "
            f"reading and projecting: {human_seconds(made.hours * 3600)} with {counted(made.workers, 'worker')}, "
            "writing not counted",
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    if made.missing_images and request.missing == "fail":
        warn(f"{made.missing_images} images are missing: restore them, or add --missing skip")
        return 1
    return 0 if made.fits else 1


def info(store: str, *, as_json: bool) -> None:
    """Print the card."""
    from hilda_cache.card import card_json, card_text

    cache = open_cache(store, allow_partial=True)
    if as_json:
        print_json({"pinned_url": cache.pinned_url or None} | card_json(cache))
    else:
        sys.stdout.write(card_text(cache) + "\n")
        if cache.pinned_url:  # where it lies is not the card's affair
            sys.stdout.write(f"  pinned    {cache.pinned_url}\n")


def say_remedy(store: str, report: Report) -> None:
    """The next command for a store in which something is wrong; none for what only --deep has found."""
    if report.sound:
        return
    if "://" in store:
        warn(f"  -> hilda-cache push STORE {store} --recheck, with the folder it came from, mends it")
    elif report.damaged_parts:
        warn(f"  -> hilda-cache repair {shlex.quote(store)} --drop-damaged")
        warn(f"     removes {counted(len(report.damaged_parts), 'part')} and says how to make them again")
    else:
        warn(f"  -> hilda-cache repair {shlex.quote(store)}")


def say_strangers(store: str, report: Report) -> None:
    """What lies in a store's folder without belonging to it."""
    if report.extra:
        more = f" and {len(report.extra) - 1} more" if len(report.extra) > 1 else ""
        say(f"{report.extra[0]}{more} belongs to nothing; see: hilda-cache prune {shlex.quote(store)} --dry-run")


def depth_of(store: str, sample: str | None, *, fast: bool, resume: bool) -> Depth:
    """How much of a store to verify.

    Raises:
        UsageError: the options contradict each other, or `sample` is no number.
    """
    from hilda_schema.verify import Depth

    if bool(sample) + fast + resume > 1:
        raise UsageError("--sample, --fast and --resume are three ways to read less", "choose one")
    if not sample:
        return Depth(0.0 if fast else 1.0, resume)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", sample)
    if match is None or not float(match[1] or match[2]) > 0 or float(match[1] or 0) > 100:
        raise UsageError(f"--sample {sample!r} is no number of parts", "write --sample 20, or --sample 5%")
    if match[1]:
        return Depth(float(match[1]) / 100)
    parts = len(open_cache(store, allow_partial=True).parts)
    return Depth(min(1.0, int(match[2]) / max(1, parts)))


@contextmanager
def _remembered(depth: Depth) -> Iterator[None]:
    """Say that an interrupted verification can go on, where it can."""
    try:
        yield
    except Interrupted:
        if depth.sample == 1:
            warn("what was read is remembered: add --resume to go on")
        raise


def check_signature(store: str, signers: Path, signature: str | None) -> str:
    """Who signed the content that a store says it has; whether it has, `verify` says."""
    from hilda_cache.share.signature import read_signature, signer_of

    root = open_cache(store).manifest.root_sha256
    return signer_of(root, read_signature(store, signature), signers)


def verify(
    store: str,
    depth: Depth,
    signer: str,
    deep: int,
    root: Path | None,
    teachers: list[str],
    reader: str | None = None,
    *,
    as_json: bool,
) -> bool:
    """Check a store; whether it is sound and complete."""
    from hilda_schema.verify import verify as run_verify

    live = None
    if deep and root is not None:
        from hilda_cache.deep import compare_frames, live_request

        # What is wrong with the request is said before hours are spent on reading a large store; of the store, after.
        with suppress(CacheError):
            live = live_request(open_cache(store, allow_partial=True).manifest.recipe, root, teachers, reader)
    meter = Meter("files", 0, lambda done, total, s: human_seconds(s))

    def on_progress(done: int, total: int) -> None:
        meter.total = total
        meter.advance(done - meter.done)

    with meter, _remembered(depth):
        report = run_verify(store, on_progress, depth)
    name = report.store if "://" in store else store  # a URL may hold a password
    problems = [str(problem) for problem in report.problems]
    compared: list[dict[str, Any]] = []
    if live is not None and not problems:
        compared, differing = compare_frames(open_cache(store, allow_partial=True), deep, live)
        problems += differing
    if as_json:
        state = {"sound": not problems, "complete": report.complete, "problems": problems, "files": report.files}
        read = {"parts": report.parts, "parts_read": report.parts_read, "parts_resumed": report.parts_resumed}
        print_json(state | read | {"deep": compared, "signer": signer or None})
    for problem in problems:
        warn(f"wrong: {problem}")
    if problems:
        warn(counted(len(problems), "problem"))
        say_remedy(name, report)
    else:
        _say_sound(name, report, signer)
    for row in compared:
        least = row["cosine_min"]
        found = "no pair to compare" if least is None else f"cosine >= {least:.6f} in every layer"
        say(f"deep: {row['frame']}: {found}")
    return not problems and report.complete


def _say_sound(name: str, report: Report, signer: str) -> None:
    """What was found right, and how much of the store that is."""
    say(f"{name}: {counted(report.files, 'file')}, {human_bytes(report.bytes)}, all as sealed")
    if report.parts_read < report.parts:
        say(f"read {report.parts_read} of {counted(report.parts, 'part')}; of the others, seals and sizes of files")
    if report.parts_resumed:
        say(f"{counted(report.parts_resumed, 'part')} had been read by the verification before")
    if signer:
        say(f"signed by {signer}")
    if not report.complete:
        planned = counted(report.planned_parts, "part")
        warn(f"its extraction has not finished: {report.parts} of {planned} are there")
    say_strangers(name, report)


def show(
    store: str, out: Path | None, html: Path | None, rerun: Path | None, view: str, index: int, teacher: str | None,
    layers: str | None, point: int | None, at: str | None, root: Path | None, reader: str | None = None,
) -> None:  # fmt: skip
    """Draw one frame, in each of the forms that is asked for."""
    from hilda_cache.show import Wanted, show_frame, show_page, show_recording

    cache = open_cache(store, allow_partial=True)
    names = tuple(layers.split(",")) if layers else None
    wanted = Wanted(index, teacher, names, view, point, at)
    images = frame_images(cache, index, root, reader) if root is not None and 0 <= index < len(cache) else None
    for write, path in ((show_frame, out), (show_page, html), (show_recording, rerun)):
        if path is not None:
            write(cache, wanted, path, images)
            say(f"wrote {path}")


def frame_images(cache: Cache, index: int, root: Path, reader: str | None = None) -> dict[str, Any]:
    """The original images of a frame, camera -> (H, W, 3) uint8; those that cannot be read are left out."""
    from hilda_cache.images import read_image
    from hilda_cache.parts import find_frame

    drive = DriveSpec.of_store(cache.manifest.recipe.dataset, root, reader).open()
    images = {}
    for view in find_frame(drive, cache[index].key).cameras:
        name = view.image_path.relative_to(drive.root).as_posix()
        try:
            images[view.name] = read_image(view.image_path.read_bytes(), name).numpy()
        except OSError as error:
            warn(f"no picture behind {view.name}: {name}: {error.strerror}")
        except HildaError as error:
            warn(f"no picture behind {view.name}: {error.message}")
    return images


def prototypes(model: str, classes: Path, out: Path, templates: list[str], space: str) -> None:
    """Write the vectors of class names."""
    from hilda_cache.teachers.text import TEMPLATES, read_classes, text_prototypes, write_prototypes

    made = text_prototypes(model, read_classes(classes), templates or TEMPLATES, space)  # type: ignore[arg-type]
    write_prototypes(made, out)
    width = len(next(iter(made.vectors.values())))
    say(f"wrote {out}: {counted(len(made.vectors), 'class', 'classes')}, {width} channels, space {space}")


def labels(root: Path, dataset: str, out: Path, options: list[str], lidar: str | None, scenes: str | None) -> None:
    """Write the boxes of a drive."""
    from hilda_cache.labels import write_labels
    from hilda_cache.options import drive_spec, scene_names

    spec = drive_spec(root, dataset, options, lidar)
    drive, wanted = spec.open(), scene_names(scenes)
    chosen = drive.scenes() if wanted is None else tuple(sorted(set(wanted)))
    with Meter("scenes", len(chosen), lambda done, total, s: human_seconds(s)) as meter:
        frames, boxes = write_labels(drive, dict(spec.options), chosen, out, meter.advance)
    say(f"wrote {out}: {counted(boxes, 'box', 'boxes')} in {counted(frames, 'frame')}")


def export(store: str, target: str, out: Path, teachers: str | None, layers: str | None) -> None:
    """Write a cache for another loader."""
    from hilda_cache.export import export as run_export

    cache = open_cache(store)
    of_teachers, of_layers = (tuple(text.split(",")) if text else None for text in (teachers, layers))
    with Meter("frames", len(cache), lambda done, total, s: human_seconds(s)) as meter:
        files = run_export(cache, target, out, of_teachers, of_layers, meter.advance)
    size = human_bytes(sum((out / name).stat().st_size for name in files))
    say(f"wrote {out}: {counted(len(cache), 'frame')} in {counted(len(files), 'file')}, {size}")


def synth(out: Path, scenes: int, frames: int, seed: int, image_size: str) -> None:
    """Make a synthetic drive."""
    from hilda_cache.drives.synthetic import make_drive
    from hilda_cache.request import parse_image_size

    height, width = parse_image_size(image_size)
    with Meter("frames", scenes * frames, lambda done, total, s: f"{s / max(done, 1):.1f} s a frame") as meter:
        make_drive(
            out,
            scenes=scenes,
            frames=frames,
            seed=seed,
            image_size=(width, height),
            progress=lambda done, _total: meter.advance(done - meter.done),
        )
    say(f"{out}: read it with --dataset nuscenes")
