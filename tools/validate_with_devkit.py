"""Compares the synthetic drive and the nuScenes reader with the official nuScenes devkit.

    python tools/validate_with_devkit.py [--environment FOLDER] [--real FOLDER]

The devkit needs numpy < 2, so it gets a virtual environment of its own (made once, needs the package index). A
synthetic drive is made, opened by both, and compared; with --real, so is a real nuScenes folder, which may be a
partial one: tables that the devkit insists on are stubbed in a copy. Run with the project's own interpreter; not part
of the test suite. Exits with 1 if anything disagrees.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

MIN_DEPTH_M = 1.0  # the devkit's own default
MAX_DEVIATION_PX = 0.6  # the devkit computes in float32: world coordinates of kilometres cost it half a pixel
MIN_SHARE_IN_BOX = 0.97  # range noise of 2 cm puts some points just outside their box


def main() -> int:
    """Make, dump, compare; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "hilda-devkit-env")
    parser.add_argument("--real", type=Path, help="a real nuScenes folder to compare on as well")
    parser.add_argument("--check", nargs=2, type=Path, metavar=("ROOT", "OURS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.check:
        return check(*arguments.check)
    python = devkit_python(arguments.environment)
    with tempfile.TemporaryDirectory() as folder:
        synthetic = Path(folder) / "synthetic"
        pairs = [(synthetic, synthetic)]  # what our reader opens, what the devkit opens
        from hilda_cache.drives.synthetic import make_drive

        make_drive(synthetic, scenes=4, frames=3, seed=7, image_size=(352, 198))
        if arguments.real:
            pairs.append((arguments.real, stubbed(arguments.real.resolve(), Path(folder) / "real")))
        failed = 0
        for root, for_devkit in pairs:
            ours = Path(folder) / f"{for_devkit.name}.npz"
            dump(root, ours)
            failed |= subprocess.run([python, __file__, "--check", for_devkit, ours], check=False).returncode
    return failed


def devkit_python(environment: Path) -> Path:
    """The interpreter of the devkit's environment, made if it is not there."""
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "nuscenes-devkit", "numpy<2"], check=True)
    return python


def stubbed(real: Path, copy: Path) -> Path:
    """A copy of a partial nuScenes folder with empty stand-ins for the tables that the devkit insists on."""
    copy.mkdir()
    (copy / "samples").symlink_to(real / "samples")
    version = next(real.glob("v1.0-*"))
    shutil.copytree(version, copy / version.name)
    tables = copy / version.name
    (copy / "map.png").write_bytes(b"")
    stubs = {name: [] for name in ("instance", "sample_annotation", "log")}
    stubs["map"] = [{"token": "map", "filename": "map.png", "log_tokens": []}]
    for name, rows in stubs.items():
        if not (tables / f"{name}.json").exists():
            (tables / f"{name}.json").write_text(json.dumps(rows))
    return copy


def dump(root: Path, out: Path) -> None:
    """What our reader says: points, labels, and the pixels of every point in every camera, in float64."""
    from hilda_cache.drives import open_drive

    drive = open_drive("nuscenes", root)
    arrays = {}
    for scene in drive.scenes():
        for info in drive.frames(scene):
            frame, name = drive.read(info), info.key.frame
            arrays[f"{name}/xyz"] = frame.points.xyz_m
            if frame.points.label is not None:
                arrays[f"{name}/label"] = frame.points.label
            lidar = np.column_stack([frame.points.xyz_m.astype(np.float64), np.ones(len(frame.points))])
            for camera in info.cameras:
                chain = camera.cam_SE3_ego @ np.linalg.inv(camera.world_SE3_ego) @ info.world_SE3_lidar
                cam = lidar @ chain[:3].T
                uvw = cam @ camera.intrinsics.T
                with np.errstate(divide="ignore", invalid="ignore"):
                    uv = uvw[:, :2] / uvw[:, 2:]
                u, v = uv.T
                seen = (cam[:, 2] > MIN_DEPTH_M) & (u > 1) & (u < camera.width_px - 1)
                seen &= (v > 1) & (v < camera.height_px - 1)
                arrays[f"{name}/{camera.name}"] = np.column_stack([uv[seen], cam[seen, 2]])
    np.savez(out, **arrays)


def check(root: Path, ours: Path) -> int:
    """Runs in the devkit's environment."""
    from nuscenes import NuScenes

    version = next(root.glob("v1.0-*")).name
    nusc = NuScenes(version=version, dataroot=str(root), verbose=False)
    arrays = np.load(ours)
    sweeps = [sample["data"]["LIDAR_TOP"] for sample in nusc.sample]
    checks = [check_points(nusc, arrays, sweeps), check_projection(nusc, arrays)]
    if hasattr(nusc, "lidarseg"):
        checks += [check_boxes(nusc), check_velocities(nusc), check_map(nusc)]
    print(f"{root.name}: devkit opens {version} with {len(nusc.scene)} scenes, {len(nusc.sample)} samples")
    for passed, text in checks:
        print(f"  {'ok  ' if passed else 'FAIL'} {text}")
    return int(not all(passed for passed, _ in checks))


def check_points(nusc, arrays, sweeps) -> tuple[bool, str]:
    """Points and labels are the same bytes."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.data_io import load_bin_file

    same, labelled = True, 0
    for sweep in sweeps:
        cloud = LidarPointCloud.from_file(nusc.get_sample_data_path(sweep))
        same &= np.array_equal(cloud.points[:3].T, arrays[f"{sweep}/xyz"])
        if hasattr(nusc, "lidarseg"):
            path = Path(nusc.dataroot) / nusc.get("lidarseg", sweep)["filename"]
            same &= np.array_equal(load_bin_file(str(path), "lidarseg"), arrays[f"{sweep}/label"])
            labelled += 1
    return same, f"points of {len(sweeps)} sweeps and labels of {labelled} are equal"


def check_projection(nusc, arrays) -> tuple[bool, str]:
    """The devkit's `map_pointcloud_to_image` puts the same points on the same pixels."""
    worst, only_one, pairs = 0.0, 0, 0
    for sample in nusc.sample:
        sweep = sample["data"]["LIDAR_TOP"]
        for channel, token in sample["data"].items():
            if not channel.startswith("CAM"):
                continue
            theirs, depth, _ = nusc.explorer.map_pointcloud_to_image(sweep, token, min_dist=MIN_DEPTH_M)
            mine = arrays[f"{sweep}/{channel}"]
            deviation, unmatched = align(mine, np.column_stack([theirs[:2].T, depth]))
            worst, only_one, pairs = max(worst, deviation), only_one + unmatched, pairs + len(mine)
    text = f"{pairs} projected points, at most {worst:.3f} px apart, {only_one} on the border seen by one side only"
    return worst < MAX_DEVIATION_PX and only_one <= 1e-3 * pairs + 2, text


def align(mine, theirs) -> tuple[float, int]:
    """Largest distance of two lists of (u, v, depth) in one order, and how many rows one of them lacks."""
    i = j = unmatched = 0
    worst = 0.0
    while i < len(mine) and j < len(theirs):
        distance = float(np.abs(mine[i, :2] - theirs[j, :2]).max())
        if distance < 2 * MAX_DEVIATION_PX and abs(mine[i, 2] - theirs[j, 2]) < 0.01:
            worst, i, j = max(worst, distance), i + 1, j + 1
        else:
            unmatched += 1
            ahead = len(mine) - i >= len(theirs) - j
            i, j = i + ahead, j + (not ahead)
    return worst, unmatched + len(mine) - i + len(theirs) - j


def check_boxes(nusc) -> tuple[bool, str]:
    """The points that carry an object's label lie in its box, as many as its annotation says."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.data_io import load_bin_file
    from nuscenes.utils.geometry_utils import points_in_box

    inside = claimed = boxes = 0
    for sample in nusc.sample:
        sweep = sample["data"]["LIDAR_TOP"]
        path, in_lidar, _ = nusc.get_sample_data(sweep)
        points = LidarPointCloud.from_file(path).points[:3]
        label = load_bin_file(str(Path(nusc.dataroot) / nusc.get("lidarseg", sweep)["filename"]), "lidarseg")
        for box in in_lidar:
            wanted = nusc.lidarseg_name2idx_mapping[box.name]
            annotation = nusc.get("sample_annotation", box.token)
            found = np.count_nonzero(points_in_box(box, points, wlh_factor=1.02) & (label == wanted))
            inside += min(found, annotation["num_lidar_pts"])
            claimed += annotation["num_lidar_pts"]
            boxes += 1
    share = inside / max(claimed, 1)
    return share > MIN_SHARE_IN_BOX, f"{boxes} boxes hold {share:.2%} of their {claimed} points"


def check_velocities(nusc) -> tuple[bool, str]:
    """Boxes that the devkit sees moving are marked as moving, and the others not."""
    wrong = moving = 0
    for annotation in nusc.sample_annotation:
        speed = np.linalg.norm(nusc.box_velocity(annotation["token"]))
        names = {nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]}
        if np.isnan(speed) or not names:
            continue
        marked = bool(names & {"vehicle.moving", "pedestrian.moving", "cycle.with_rider"})
        moving += marked
        wrong += marked != (speed > 0.3)
    return wrong == 0, f"{moving} moving boxes; {wrong} whose motion contradicts their attribute"


def check_map(nusc) -> tuple[bool, str]:
    """The vehicle is always where its map says that one may drive."""
    off = 0
    for record in nusc.map:
        logs = set(record["log_tokens"])
        scenes = {scene["token"] for scene in nusc.scene if scene["log_token"] in logs}
        for sample in nusc.sample:
            if sample["scene_token"] in scenes:
                pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
                off += int(not record["mask"].is_on_mask(*pose["translation"][:2])[0])
    return off == 0, f"{len(nusc.map)} maps; {off} poses of the vehicle off the road"


if __name__ == "__main__":
    sys.exit(main())
