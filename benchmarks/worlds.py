"""The small worlds that comparisons run on: synthetic drives and their caches, and students that a CPU can train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hilda_cache

TEACHER = Path(hilda_cache.__file__).parent / "teachers" / "demo"
SCENES, FRAMES, SEED = 16, 10, 21
HELD_OUT = 'data.held_out=["scene-0013", "scene-0014", "scene-0015", "scene-0016"]'

# Over every recipe: a student and a batch for which a step takes a second of one core.
SMALL = (
    "student.depth=14",
    "student.width=0.25",
    "student.voxels={size: [0.4, 0.4, 0.4]}",
    "data.batch_size=2",
    "data.workers=0",
    "schedule={kind: cosine, warmup: 10%, final_lr: 1e-5}",
    "train.epochs=null",
    "train.precision=float32",
    "train.checkpoint_every=1000",
)


def small_head() -> tuple[str, ...]:
    """Heads as wide as the demo's."""
    return ("objectives.point.head.hidden=128", "objectives.global_context.head.hidden=128")


def small_occupancy() -> tuple[str, ...]:
    """A bird's-eye view and a network for minutes."""
    return (
        "objectives.occupancy.range_m=32",
        "objectives.occupancy.cell_m=0.8",
        "objectives.occupancy.blocks=1",
        "objectives.occupancy.history_channels=16",
        "objectives.occupancy.base=16",
        "objectives.occupancy.draws=4",
    )


def synthetic_cache(work: Path) -> Path:
    """The cache of a synthetic drive, seen by the teacher that comes with the package; made where it is not there."""
    drive, cache = work / "drive", work / "cache"
    if not drive.exists():
        call("hilda-cache", "synth", drive, "--scenes", SCENES, "--frames", FRAMES, "--seed", SEED)
    seen = ("-t", f"demo={TEACHER}", "--layers", "-2,-1", "--image-size", "224x392")
    call("hilda-cache", "extract", drive, "-d", "nuscenes", *seen, "-o", cache)
    return cache


def call(program: str, *arguments: object) -> None:
    """Run one of our command lines with this interpreter's environment."""
    subprocess.run([str(Path(sys.executable).with_name(program)), *map(str, arguments)], check=True)
