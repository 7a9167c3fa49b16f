"""Does the occupancy diffusion foresee motion? Its forecasts against the present carried forward, on unseen scenes.

    python benchmarks/forecast.py [--work FOLDER] [--scenes 48] [--steps 800]

Makes a synthetic drive and its cache, trains the temporal occupancy objective alone (a small student: 15 minutes of one
core), and compares DDIM samples on held-out scenes with the sweep of t0 carried forward. Moving cells are those under
objects that the drive's annotations show to have moved by more than 0.25 m between t0 and t1, where they were and where
they come to be, and one cell around.

The mean of the samples is a probability, and where little is certain, calling more cells occupied gains IoU by itself
(in the cells of moving objects, calling all of them occupied beats every forecast). So beside the threshold of 0.5
stands the one that calls as many cells of a region occupied as carrying the present forward does. Prints a table;
writes FOLDER/forecast.png. What lies in FOLDER already is used again.
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

Judged = tuple[Forecast, dict[str, np.ndarray]]  # a forecast, and region -> (H, W) cells
OPTIONS = (
    "objectives.point.weight=0",
    "objectives.global_context.weight=0",
    "objectives.occupancy.weight=1",
    "student.levels=[block8]",
    "student.voxels={size: [0.8, 0.8, 0.4]}",
    "objectives.occupancy.range_m=32",
    "objectives.occupancy.blocks=1",
    "data.batch_size=4",
    "train.epochs=null",
    "train.checkpoint_every=100",
    "train.log_every=10",
    "train.ema=0.99",
)


def main() -> None:
    """Make what is missing, train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("forecast-out"))
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--draws", type=int, default=8)
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
    judged = judge(drive, restored, [clip for clip in restored.held_out if clip.whole], arguments.draws)
    report(restored, judged, arguments.draws)
    (arguments.work / "forecast.png").write_bytes(draw_forecasts(spread([made for made, _ in judged], 4)))


def judge(drive: Path, restored: Restored, clips: Sequence[Clip], draws: int) -> list[Judged]:
    """Forecast clips and name the regions of each."""
    judged = []
    for clip in clips:
        made = forecast(restored, clip, draws=draws)
        regions = regions_of(made) | {"moving objects": moving_cells(drive, restored, clip, made)}
        judged.append((made, regions))
    return judged


def iou_of_as_many(judged: Sequence[Judged], region: str) -> float:
    """IoU in a region of the model's likeliest cells, as many as are occupied at t0."""
    where = [regions[region] & made.observed for made, regions in judged]
    probability = np.concatenate([made.probability[each] for (made, _), each in zip(judged, where, strict=True)])
    truth = np.concatenate([(made.truth == OCCUPIED)[each] for (made, _), each in zip(judged, where, strict=True)])
    number = sum(int(made.carried[each].sum()) for (made, _), each in zip(judged, where, strict=True))
    hits = int(truth[np.argsort(-probability, kind="stable")[:number]].sum())
    return hits / (number + int(truth.sum()) - hits)


def call(program: str, *arguments: object) -> None:
    """Run one of our command lines with this interpreter's environment."""
    subprocess.run([str(Path(sys.executable).with_name(program)), *map(str, arguments)], check=True)


def report(restored: Restored, judged: Sequence[Judged], draws: int) -> None:
    """Print the comparison."""
    config = restored.prepared.config
    scenes, gap_s = len(config.data.held_out), config.data.gap_s
    table: dict[str, dict[str, IoU]] = {}
    for made, regions in judged:
        scores(made, regions, table)
    print(f"{len(judged)} clips of {scenes} held-out scenes, {gap_s} s ahead, step {restored.step}, {draws} draws")
    print(f"{'IoU of occupied cells':24} {'carried forward':>16} {'model, 0.5':>11} {'model, as many cells':>21}")
    for name, row in table.items():
        as_many = iou_of_as_many(judged, name)
        print(f"{name:24} {row['carried forward'].value:16.3f} {row['model'].value:11.3f} {as_many:21.3f}")


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
