"""Does the occupancy diffusion foresee motion? Its forecasts against the present carried forward, on unseen scenes.

    python benchmarks/forecast.py [--work FOLDER] [--scenes 48] [--steps 3000]

Makes a synthetic drive and its cache, trains the temporal occupancy objective alone (a small student: an hour of one
core), and compares DDIM samples on held-out scenes with the sweep of t0 carried forward. Moving cells are those under
objects that the drive's annotations show to have moved by more than 0.25 m between t0 and t1, where they were and where
they come to be, and one cell around.

The mean of the samples is a probability. Which of them to call occupied is a threshold: IoU asks for a lower one than a
half where little is certain. So beside 0.5 stands, for each region, the threshold that is best on scenes trained on.
Prints a table; writes FOLDER/forecast.png. What lies in FOLDER already is used again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hilda_cache.drives.synthetic import make_drive
from hilda_cache.drives.transforms import inverse_se3, se3
from hilda_cache.teachers.random_vit import save_random_dinov2
from hilda_train.data.clips import Clip
from hilda_train.evaluate.forecast import Forecast, IoU, forecast, regions_of, scores, widened
from hilda_train.evaluate.restore import Restored, restore_run, spread
from hilda_train.objectives.bev import OCCUPIED
from hilda_train.report.figures import draw_forecasts

MOVED_M = 0.25
HELD_OUT = 4  # scenes, the last ones
THRESHOLDS = [round(0.05 * k, 2) for k in range(2, 11)]  # 0.1 to 0.5

Judged = tuple[Forecast, dict[str, np.ndarray]]  # a forecast, and region -> (H, W) cells
OPTIONS = (
    "objectives.point.weight=0",
    "objectives.global_context.weight=0",
    "student.levels=[block8]",
    "student.voxels={size: [0.8, 0.8, 0.4]}",
    "objectives.occupancy.range_m=32",
    "objectives.occupancy.blocks=1",
    "data.batch_size=4",
    "train.epochs=null",
    "train.checkpoint_every=100",
    "train.log_every=10",
    "train.ema=0.995",
)


def main() -> None:
    """Make what is missing, train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("forecast-out"))
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--every", type=int, default=20, help="of the clips trained on, one in so many sets thresholds")
    arguments = parser.parse_args()
    drive, cache, run = (arguments.work / name for name in ("drive", "cache", "run"))
    if not drive.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        make_drive(drive, scenes=arguments.scenes, frames=arguments.frames, seed=11, image_size=(176, 98))
    teacher = save_random_dinov2(arguments.work / "teacher", seed=0)
    teacher_options = ("-t", f"vit={teacher}", "--image-size", "56x98")
    call("hilda-cache", "extract", drive, "-d", "nuscenes", *teacher_options, "-o", cache)
    held_out = [f"scene-{number:04d}" for number in range(arguments.scenes - HELD_OUT + 1, arguments.scenes + 1)]
    sets = [*OPTIONS, f"train.max_steps={arguments.steps}", f"data.held_out={json.dumps(held_out)}"]
    call("hilda-train", "fit", "demo", "-c", cache, "-o", run, "--resume", *(word for s in sets for word in ("-s", s)))

    restored = restore_run(run, [str(cache)])
    tuning = [clip for clip in restored.prepared.clips if clip.whole][:: arguments.every]
    testing = [clip for clip in restored.held_out if clip.whole]
    chosen = best_thresholds(judge(drive, restored, tuning, arguments.draws))
    judged = judge(drive, restored, testing, arguments.draws)
    report(restored, judged, chosen, arguments.draws)
    (arguments.work / "forecast.png").write_bytes(draw_forecasts(spread([made for made, _ in judged], 4)))


def judge(drive: Path, restored: Restored, clips: Sequence[Clip], draws: int) -> list[Judged]:
    """Forecast clips and name the regions of each."""
    judged = []
    for clip in clips:
        made = forecast(restored, clip, draws=draws)
        regions = regions_of(made) | {"moving objects": moving_cells(drive, restored, clip, made)}
        judged.append((made, regions))
    return judged


def best_thresholds(judged: Sequence[Judged]) -> dict[str, float]:
    """For each region, the probability above which calling a cell occupied gives the largest IoU."""
    return {name: max(THRESHOLDS, key=lambda each: model_iou(judged, name, each)) for name in judged[0][1]}


def model_iou(judged: Sequence[Judged], region: str, threshold: float) -> float:
    """IoU of the model's occupied cells in a region, over all clips."""
    total = IoU()
    for made, regions in judged:
        total.add(made.probability > threshold, made.truth == OCCUPIED, regions[region] & made.observed)
    return total.value


def call(program: str, *arguments: object) -> None:
    """Run one of our command lines with this interpreter's environment."""
    subprocess.run([str(Path(sys.executable).with_name(program)), *map(str, arguments)], check=True)


def report(restored: Restored, judged: Sequence[Judged], chosen: dict[str, float], draws: int) -> None:
    """Print the comparison."""
    config = restored.prepared.config
    scenes, gap_s = len(config.data.held_out), config.data.gap_s
    table: dict[str, dict[str, IoU]] = {}
    for made, regions in judged:
        scores(made, regions, table)
    print(f"{len(judged)} clips of {scenes} held-out scenes, {gap_s} s ahead, step {restored.step}, {draws} draws")
    print(
        f"{'IoU of occupied cells':24} {'carried forward':>16} {'model, 0.5':>11} {'model, threshold of training':>29}"
    )
    for name, row in table.items():
        tuned = f"{model_iou(judged, name, chosen[name]):.3f} ({chosen[name]:.2f})"
        print(f"{name:24} {row['carried forward'].value:16.3f} {row['model'].value:11.3f} {tuned:>29}")


def moving_cells(drive: Path, restored: Restored, clip: Clip, made: Forecast) -> np.ndarray:
    """(H, W) cells at and beside the footprints, at t0 and at t1, of annotated objects that moved."""
    cache = restored.prepared.caches[clip.cache]
    now, then = cache[clip.current], cache[clip.next]
    t0_SE3_world = inverse_se3(now.world_SE3_lidar)
    boxes = [boxes_of(drive, str(frame.key).rsplit("/", 1)[-1]) for frame in (now, then)]
    centres_m = made.grid.centres_m().numpy().reshape(-1, 2)
    mask = np.zeros(len(centres_m), bool)
    for instance in boxes[0].keys() & boxes[1].keys():
        poses = [each[instance][0] for each in boxes]
        if np.linalg.norm(poses[1][:2, 3] - poses[0][:2, 3]) > MOVED_M:
            for world_SE3_box in poses:
                mask |= under(centres_m, t0_SE3_world @ world_SE3_box, boxes[0][instance][1])
    return widened(mask.reshape(made.grid.cells, made.grid.cells))


def under(centres_m: np.ndarray, t0_SE3_box: np.ndarray, size_m: np.ndarray) -> np.ndarray:
    """(K,) which (K, 2) cell centres lie under a box of (length, width)."""
    offset = centres_m - t0_SE3_box[:2, 3]
    local = offset @ t0_SE3_box[:2, :2]
    return (np.abs(local) <= size_m / 2).all(axis=1)


_TABLES: dict[Path, dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]] = {}


def boxes_of(drive: Path, sweep: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The annotated objects of one keyframe: instance -> (world_SE3_box, (length, width) in metres)."""
    if drive not in _TABLES:
        (folder,) = drive.glob("v1.0-*")
        sweeps = {row["sample_token"]: row["token"] for row in json.loads((folder / "sample_data.json").read_text())
                  if row["is_key_frame"] and "LIDAR_TOP" in row["filename"]}  # fmt: skip
        found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        for row in json.loads((folder / "sample_annotation.json").read_text()):
            width, length, _ = row["size"]
            pose = se3(row["rotation"], row["translation"])
            found.setdefault(sweeps[row["sample_token"]], {})[row["instance_token"]] = (pose, np.array([length, width]))
        _TABLES[drive] = found
    return _TABLES[drive].get(sweep, {})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
