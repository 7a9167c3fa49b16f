"""Does a worker's memory stay within the model and two parts, however many frames it extracts?

    python benchmarks/extract_memory.py [--work FOLDER] [--frames 500] [--workers 2]

Extracts a synthetic drive (one scene, listed again and again until there are enough frames) with a DINOv2 of random
weights. After every 100 frames it reads how much memory each worker and the client had at most since the last reading:
the kernel's own high-water mark, which is then set back. Before that every worker extracts a single frame; what it
takes for that is the model, and what may come on top is two parts: one that is computed, one that is written. Prints a
table and a verdict; exits with 1 where memory grows or exceeds that bound. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from hilda_cache.cluster import connect
from hilda_cache.extract import extract
from hilda_cache.parts import bytes_per_frame
from hilda_cache.request import DriveSpec, ExtractRequest, Selection
from hilda_cache.teachers.spec import TeacherSpec

SCENE_FRAMES, PART_FRAMES, EVERY = 25, 25, 100
GROWTH = 1.05  # that is allowed between the first and the last hundred frames
FLOAT32_AND_FLOAT16, POINT_BYTES = 1.5, 100  # of a part in memory: tokens as computed and as stored; points and pairs
SAVE = """
import sys
from hilda_cache.teachers.random_vit import save_random_dinov2
save_random_dinov2(sys.argv[1], seed=0, hidden=384, heads=6, layers=2)
"""
SYNTH = "from hilda_cache.cli import main; main()"


def main() -> int:
    """Make the inputs, extract, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "hilda-extract-memory")
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    drive, vit, store = (arguments.work / name for name in ("drive", "vit", "store"))
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare(drive, vit, -(-arguments.frames // SCENE_FRAMES))
    teacher = TeacherSpec("vit", str(vit), ("-2", "-1"), (224, 448))
    request = ExtractRequest(
        DriveSpec("nuscenes", str(drive)), (teacher,), precision="float32", part_frames=PART_FRAMES
    )
    with connect(arguments.workers, None) as client:
        processes = {"client": os.getpid()} | {f"worker {k + 1}": pid for k, pid in enumerate(pids(client))}
        # As many scenes as workers, one frame of each: everybody loads the model and computes once.
        scenes = tuple(f"scene-{k + 1:04d}" for k in range(arguments.workers))
        run(replace(request, selection=Selection(scenes, "0:1")), store, client, lambda report: None)
        model = peaks_mb(processes)
        rows = []

        def on_part(report: Any) -> None:
            if sum(entry.frames for entry in report.entries.values()) >= EVERY * (len(rows) + 1):
                rows.append(peaks_mb(processes))

        recipe = run(request, store, client, on_part)
    print(f"{arguments.frames} frames of 6 images, {arguments.workers} workers on {os.cpu_count()} cores")
    return report_table(model, rows, bytes_per_frame(recipe.teachers, 6))


def run(request: ExtractRequest, store: Path, client: Any, on_part: Any) -> Any:
    """Extract into a store of its own; the recipe."""
    shutil.rmtree(store, ignore_errors=True)
    recipes = []
    made = extract(request, store, client, lambda recipe, report: recipes.append(recipe), on_part)
    if not made.complete:
        raise SystemExit(f"the extraction failed: {next(iter(made.failures.values()))}")
    return recipes[0]


def pids(client: Any) -> list[int]:
    """Of the workers."""
    return sorted(client.run(os.getpid).values())


def peaks_mb(processes: dict[str, int]) -> dict[str, float]:
    """The most memory that each process had since the last call."""
    peaks = {}
    for name, pid in processes.items():
        status = Path(f"/proc/{pid}/status").read_text()
        peaks[name] = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # sets the mark back to what is used now
    return peaks


def report_table(model: dict[str, float], rows: list[dict[str, float]], token_bytes: float) -> int:
    """Print the peaks and what they say; the exit status."""
    names = list(model)
    print("peak memory, MB      " + "".join(f"{name:>10}" for name in names))
    for k, row in enumerate([model, *rows]):
        frames = f"frames {EVERY * (k - 1) + 1}-{EVERY * k}" if k else "model and one frame"
        print(f"{frames:21}" + "".join(f"{row[name]:10.0f}" for name in names))
    part_mb = PART_FRAMES * (2 * token_bytes * FLOAT32_AND_FLOAT16 + 35_000 * POINT_BYTES) / 1e6
    flat = all(rows[-1][name] <= GROWTH * rows[0][name] for name in names)
    workers = [name for name in names if name != "client"]
    bounded = all(row[name] <= model[name] + 2 * part_mb for row in rows for name in workers)
    print(f"one part: {PART_FRAMES} frames, {part_mb:.0f} MB (tokens in float32 and float16, points, pairs)")
    print(f"flat over all frames: {'yes' if flat else 'NO'}; within model and two parts: {'yes' if bounded else 'NO'}")
    return 0 if flat and bounded else 1


def prepare(drive: Path, vit: Path, scenes: int) -> None:
    """The drive and the teacher, made by other processes: this one is the client, and its memory is measured."""
    if not vit.exists():
        subprocess.run([sys.executable, "-c", SAVE, str(vit)], check=True)
    if not drive.exists():
        sizes = ["--scenes", "1", "--frames", str(SCENE_FRAMES), "--image-size", "198x352"]
        subprocess.run([sys.executable, "-c", SYNTH, "synth", str(drive), *sizes], check=True)
        list_again(next(drive.glob("v1.0-*")), scenes)


def list_again(tables: Path, times: int) -> None:
    """Let a drive's tables list its one scene several times, as different scenes that share their files."""
    paths = [tables / f"{name}.json" for name in ("scene", "sample", "sample_data", "ego_pose", "lidarseg")]
    own = {row["token"] for path in paths for row in json.loads(path.read_text())}
    for path in paths:
        text, rows = path.read_text(), []
        for k in range(times):

            def renamed(found: re.Match[str], k: int = k) -> str:
                token = found[1]
                return f'"{sha256(f"{token} {k}".encode()).hexdigest()[:32] if token in own else token}"'

            copy = re.sub(r'"([0-9a-f]{32})"', renamed, text)
            rows += json.loads(copy.replace('"scene-0001"', f'"scene-{k + 1:04d}"'))
        path.write_text(json.dumps(rows))


if __name__ == "__main__":
    sys.exit(main())
