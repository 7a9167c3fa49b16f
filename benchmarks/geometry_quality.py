"""How good are the ground rule and the occlusion rule? Against labels on real sweeps, and against an exact ray caster.

    python benchmarks/geometry_quality.py [--samples FOLDER] [--scenes 8]

Ground is judged on real sweeps by labels that the rule never sees (PandaSet, SemanticKITTI, Argoverse 2, below FOLDER;
left out where they are absent) and on the synthetic drive by its own. Occlusion is judged on the synthetic drive, whose
world can be asked what stands between a camera and a point at the moment of the image. Beside each rule stand simpler
ones, so that one sees what it gains. docs/design-notes/0002-ground-and-occlusion.md discusses the numbers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.feather

from hilda_cache.drives import FrameInfo, open_drive
from hilda_cache.drives.synthetic import make_drive
from hilda_cache.drives.synthetic.categories import INDEX
from hilda_cache.drives.synthetic.primitives import Primitives
from hilda_cache.drives.synthetic.raycast import camera_rays, camera_windows, cast
from hilda_cache.drives.synthetic.scene import Scene, draw_scene
from hilda_cache.geometry import CELL_DEG, MARGIN_M, MARGIN_SHARE, cam_SE3_lidar, project
from hilda_cache.ground import ground_mask
from hilda_schema.content import Pairs

PANDASET_GROUND, PANDASET_UNCLEAR = range(6, 13), range(5)  # ground to driveway; unlabelled, smoke, ..., reflection
KITTI_GROUND, KITTI_UNCLEAR = (40, 44, 48, 49, 60, 72), (0, 1)
SYNTHETIC_GROUND = tuple(INDEX[name] for name in INDEX if name.startswith("flat."))
SYNTHETIC_UNCLEAR = (INDEX["vehicle.ego"],)
FRAMES = 2  # of each synthetic scene
DRAWN_PX, TRUTH_PX = (176, 99), (2816, 1584)  # images of the drive; depth maps of the truth
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
        make_drive(drive, scenes=arguments.scenes, frames=FRAMES, seed=11, image_size=DRAWN_PX)
        print("ground                                 precision  recall    IoU   objects lost   ms a sweep")
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
        for number, info in enumerate(drive.frames(path.parent.name)[:2]):
            yield drive.read(info).points.xyz_m, flags[f"is_ground_{number}"].to_numpy().astype(int)


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
            counts[name] += [
                (said & (truth == 1)).sum(),
                (said & (truth >= 0)).sum(),
                (truth == 1).sum(),
                (truth == 0).sum(),
            ]
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
    for xyz_m, info, depths_m in with_truth(root, scenes):
        frames += 1
        began = time.perf_counter()
        pairs = project(xyz_m, info)
        seconds += time.perf_counter() - began
        ahead_m = ahead(pairs, info, xyz_m, depths_m)
        hidden, clear = ahead_m > HIDDEN_M, ahead_m < CLEAR_M
        share += [hidden.sum(), len(pairs)]
        for name, rule in rules.items():
            said = rule(pairs, info)
            counts[name] += [(said & hidden).sum(), said.sum(), hidden.sum(), (said & clear).sum(), clear.sum()]
    print(
        f"occlusion, synthetic: {share[0] / share[1]:.1%} of {int(share[1]):,} pairs are hidden by more than {HIDDEN_M} m"
    )
    print("                                       recall  precision   visible lost   hidden among the kept")
    for name, (both, said, true, lost, clear) in counts.items():
        precision = f"{both / said:9.1%}" if said else "        -"
        kept = (true - both) / (share[1] - said)
        print(f"{name:38} {both / true:6.1%}  {precision} {lost / clear:14.2%} {kept:23.2%}")
    print(f"projection with the test: {1000 * seconds / frames:.0f} ms a frame of six cameras")


def with_truth(root: Path, scenes: int) -> Iterator[tuple[np.ndarray, FrameInfo, list[np.ndarray]]]:
    """Sweeps of the drive, their frames as seen by large cameras, and the exact depth in every pixel of these."""
    drive = open_drive("nuscenes", root)
    for index, name in zip(range(scenes), drive.scenes(), strict=True):
        scene = draw_scene(11, index, FRAMES, TRUTH_PX, 1085)
        for number, info in enumerate(drive.frames(name)):
            large = {camera.name: camera for camera in scene.rig.cameras}
            views = tuple(
                replace(view, intrinsics=large[view.name].intrinsics, width_px=TRUTH_PX[0], height_px=TRUTH_PX[1])
                for view in info.cameras
            )
            depths_m = [depth_map(scene, number, view.name) for view in info.cameras]
            yield drive.read(info).points.xyz_m, replace(info, cameras=views), depths_m


def depth_map(scene: Scene, frame: int, name: str) -> np.ndarray:
    """(H, W) depth of the first surface along each pixel's ray, when the image is taken."""
    camera = next(each for each in scene.rig.cameras if each.name == name)
    at_s = scene.seconds(scene.stamps_us[frame] + camera.offset_us)
    pose = scene.world.world_SE3_ego(at_s)
    primitives = Primitives.concatenate([scene.world.still, scene.world.moving_at(at_s)])
    windows = camera_windows(camera, pose, primitives)
    return cast(camera_rays(camera, pose), primitives, windows, scene.world.ground, FAR_M).t


def ahead(pairs: Pairs, info: FrameInfo, xyz_m: np.ndarray, depths_m: list[np.ndarray]) -> np.ndarray:
    """(P,) by how much the first surface in the point's pixel is nearer than the point."""
    found = np.empty(len(pairs))
    for number, view in enumerate(info.cameras):
        mine = pairs.camera == number
        u, v = np.rint(pairs.uv_px[mine]).astype(int).T
        matrix = cam_SE3_lidar(info, view)
        depth_m = xyz_m[pairs.point[mine]].astype(np.float64) @ matrix[2, :3] + matrix[2, 3]
        found[mine] = depth_m - depths_m[number][v, u]
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
