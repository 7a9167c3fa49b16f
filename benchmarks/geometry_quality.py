"""How good are the ground rule and the occlusion rule? Against labels on real sweeps, and against an exact ray caster.

    python benchmarks/geometry_quality.py [--samples FOLDER] [--scenes 8]

Ground is judged on real sweeps by labels that the rule never sees (PandaSet, SemanticKITTI, Argoverse 2, below FOLDER;
left out where they are absent) and on the synthetic drive by its own. Occlusion is judged on the synthetic drive, whose
world can be asked what stands between a camera and a point at the moment of the image. Beside each rule stand simpler
ones, so that one sees what it gains. docs/design-notes/0003-ground-and-occlusion.md discusses the numbers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.feather

from hilda_cache.drives import FrameInfo, Points, open_drive
from hilda_cache.drives.synthetic import make_drive
from hilda_cache.drives.synthetic.categories import INDEX
from hilda_cache.drives.synthetic.primitives import Primitives
from hilda_cache.drives.synthetic.raycast import RayGrid, cast
from hilda_cache.drives.synthetic.scene import Scene, draw_scene
from hilda_cache.geometry import CELL_DEG, MARGIN_M, MARGIN_SHARE, project
from hilda_cache.ground import ground_mask
from hilda_schema.content import Pairs

PANDASET_GROUND, PANDASET_UNCLEAR = range(6, 13), range(5)  # ground to driveway; unlabelled, smoke, ..., reflection
KITTI_GROUND, KITTI_UNCLEAR = (40, 44, 48, 49, 60, 72), (0, 1)
SYNTHETIC_GROUND = tuple(INDEX[name] for name in INDEX if name.startswith("flat."))
SYNTHETIC_UNCLEAR = (INDEX["vehicle.ego"],)
POROUS = (INDEX["vehicle.ego"], INDEX["static.vegetation"])  # leaves send pulses back from behind their surface
FRAMES = 2  # of each synthetic scene
SEED, IMAGE_PX = 11, (704, 396)
FAR_M = 300.0
HIDDEN_M, CLEAR_M = 0.5, 0.05  # something is so much nearer than the point; between the two nothing is claimed

Labelled = tuple[np.ndarray, np.ndarray]  # (N, 3) points, (N,) whether the label says ground


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, help="folder with pandaset/, semantickitti/, argoverse2/, ...")
    parser.add_argument("--scenes", type=int, default=8, help="synthetic scenes, two frames each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drive = Path(folder) / "drive"
        make_drive(drive, scenes=arguments.scenes, frames=FRAMES, seed=SEED, image_size=IMAGE_PX)
        print("ground                                 precision  recall    IoU    others lost   ms a sweep")
        if arguments.samples:
            for title, sweeps in real_sweeps(arguments.samples):
                judge_ground(title, sweeps)
        judge_ground(f"synthetic, {arguments.scenes} scenes", synthetic_sweeps(drive))
        print()
        judge_occlusion(drive, arguments.scenes)
    return 0


# --- ground ---------------------------------------------------------------------------------------------------------


def real_sweeps(samples: Path) -> Iterator[tuple[str, Iterator[Labelled]]]:
    """Every labelled sweep that is there, by data set."""
    for folder, lidars in (("pandaset", ("pandar64", "pandargt")), ("pandaset_long", ("pandar64",))):
        if (samples / folder).is_dir():
            for lidar in lidars:
                yield f"{folder} 002, {lidar}", pandaset_sweeps(samples / folder, lidar)
    if (samples / "semantickitti").is_dir():
        yield "semantickitti 00", by_label(samples / "semantickitti", "semantickitti", KITTI_GROUND, KITTI_UNCLEAR)
    if (samples / "argoverse2").is_dir():
        yield "argoverse2 (within 0.3 m of its map)", argoverse_sweeps(samples / "argoverse2")


def pandaset_sweeps(root: Path, lidar: str) -> Iterator[Labelled]:
    return by_label(root, "pandaset", PANDASET_GROUND, PANDASET_UNCLEAR, lidar=lidar)


def synthetic_sweeps(root: Path) -> Iterator[Labelled]:
    return by_label(root, "nuscenes", SYNTHETIC_GROUND, SYNTHETIC_UNCLEAR)


def by_label(root: Path, dataset: str, ground, unclear, **options: str) -> Iterator[Labelled]:
    """Sweeps whose points carry the ground as classes; points of the unclear ones are neither."""
    drive = open_drive(dataset, root, **options)
    for scene in drive.scenes():
        for info in drive.frames(scene):
            points = drive.read(info).points
            clear = ~np.isin(points.label, unclear)
            yield points.xyz_m, np.where(clear, np.isin(points.label, ground), -1)


def argoverse_sweeps(root: Path) -> Iterator[Labelled]:
    drive = open_drive("argoverse2", root)
    for path in sorted(root.rglob("flow_labels.feather")):
        flags = pyarrow.feather.read_table(path)
        first = drive.frames(path.parent.name)[0]
        yield drive.read(first).points.xyz_m, flags["is_ground_0"].to_numpy().astype(int)


def judge_ground(title: str, sweeps: Iterator[Labelled]) -> None:
    """Print a line for the rule and one for a flat threshold that knows the road's true height."""
    rules = {title: ground_mask, "  flat: 0.2 m above the true height": None}
    counts = {name: np.zeros(4) for name in rules}  # said and true, said, true, false
    seconds, number = dict.fromkeys(rules, 0.0), 0
    for xyz_m, truth in sweeps:
        number += 1
        road_m = np.median(xyz_m[(truth == 1) & (np.hypot(*xyz_m[:, :2].T) < 15), 2])
        for name, rule in rules.items():
            began = time.perf_counter()
            said = rule(xyz_m) if rule else xyz_m[:, 2] < road_m + 0.2
            seconds[name] += time.perf_counter() - began
            true, false = truth == 1, truth == 0
            counts[name] += [(said & true).sum(), (said & (true | false)).sum(), true.sum(), false.sum()]
    for name, (both, said, true, false) in counts.items():
        print(
            f"{name:38} {both / said:9.1%} {both / true:7.1%} {both / (said + true - both):6.1%}"
            f" {(said - both) / false:14.1%} {1000 * seconds[name] / number:12.0f}"
        )


# --- occlusion ------------------------------------------------------------------------------------------------------


def judge_occlusion(root: Path, scenes: int) -> None:
    """Print what each rule finds of the points that are hidden from a camera, and what it loses of the others."""
    rules = {
        "no test": lambda pairs, info: np.zeros(len(pairs), bool),
        "nearest point in a cell of 0.25 deg": lambda pairs, info: point_buffer(pairs, info, CELL_DEG),
        "nearest point in a cell of 1 deg": lambda pairs, info: point_buffer(pairs, info, 1.0),
        "nearest point in a cell of 2 deg": lambda pairs, info: point_buffer(pairs, info, 2.0),
        "ours: linked depth buffer": lambda pairs, info: ~pairs.visible,
    }
    counts, share = {name: np.zeros(5) for name in rules}, np.zeros(2)
    seconds, frames = 0.0, 0
    for points, info, scene in recorded(root, scenes):
        frames += 1
        began = time.perf_counter()
        pairs = project(points.xyz_m, info)
        seconds += time.perf_counter() - began
        solid = ~np.isin(points.label[pairs.point], POROUS)
        ahead_m = ahead(pairs, info, scene, points.xyz_m)
        hidden, clear = solid & (ahead_m > HIDDEN_M), solid & (ahead_m < CLEAR_M)
        share += [hidden.sum(), solid.sum()]
        for name, rule in rules.items():
            said = rule(pairs, info) & solid
            counts[name] += [(said & hidden).sum(), said.sum(), hidden.sum(), (said & clear).sum(), clear.sum()]
    hidden_share = share[0] / share[1]
    print(f"occlusion, synthetic: {hidden_share:.1%} of {int(share[1]):,} pairs are hidden by more than {HIDDEN_M} m")
    print("                                       recall  precision   visible lost   hidden among the kept")
    for name, (both, said, true, lost, clear) in counts.items():
        precision = f"{both / said:9.1%}" if said else "        -"
        kept = (true - both) / (share[1] - said)
        print(f"{name:38} {both / true:6.1%}  {precision} {lost / clear:14.2%} {kept:23.2%}")
    print(f"projection with the test: {1000 * seconds / frames:.0f} ms a frame of six cameras")


def recorded(root: Path, scenes: int) -> Iterator[tuple[Points, FrameInfo, Scene]]:
    """The drive's sweeps with the worlds that they were taken in."""
    drive = open_drive("nuscenes", root)
    for index, name in zip(range(scenes), drive.scenes(), strict=True):
        scene = draw_scene(SEED, index, FRAMES, IMAGE_PX, 1085)
        for info in drive.frames(name):
            yield drive.read(info).points, info, scene


def ahead(pairs: Pairs, info: FrameInfo, scene: Scene, xyz_m: np.ndarray) -> np.ndarray:
    """(P,) by how much the first surface on the way from the camera is nearer than the point, at the image's time."""
    found = np.empty(len(pairs))
    world_m = xyz_m.astype(np.float64) @ info.world_SE3_lidar[:3, :3].T + info.world_SE3_lidar[:3, 3]
    for number, view in enumerate(info.cameras):
        mine = np.flatnonzero(pairs.camera == number)
        camera_m = (view.world_SE3_ego @ np.linalg.inv(view.cam_SE3_ego))[:3, 3]
        way_m = world_m[pairs.point[mine]] - camera_m
        length_m = np.linalg.norm(way_m, axis=1)
        at_s = scene.seconds(view.stamp_ns // 1000)
        things = Primitives.concatenate([scene.world.still, scene.world.moving_at(at_s)])
        rays = RayGrid(camera_m, np.zeros(len(mine)), way_m / length_m[:, None], np.zeros((1, 3)), np.float64)
        everywhere = ((each, slice(None), slice(None)) for each in range(len(things)))
        found[mine] = length_m - cast(rays, things, everywhere, scene.world.ground, FAR_M).t[:, 0]
    return found


def point_buffer(pairs: Pairs, info: FrameInfo, cell_deg: float) -> np.ndarray:
    """(P,) hidden by the usual test: another point in the same cell is nearer by the same margin as ours."""
    hidden = np.zeros(len(pairs), bool)
    for number, view in enumerate(info.cameras):
        mine = np.flatnonzero(pairs.camera == number)
        cells = (pairs.uv_px[mine] / (np.radians(cell_deg) * view.intrinsics[0, 0])).astype(int)
        _, cell = np.unique(cells, axis=0, return_inverse=True)
        nearest_m = np.full(cell.max(initial=0) + 1, np.inf)
        depth_m = pairs.depth_m[mine].astype(np.float64)
        np.minimum.at(nearest_m, cell, depth_m)
        hidden[mine] = nearest_m[cell] < depth_m - np.maximum(MARGIN_M, MARGIN_SHARE * depth_m)
    return hidden


if __name__ == "__main__":
    sys.exit(main())
