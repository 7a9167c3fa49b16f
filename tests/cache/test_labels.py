"""`hilda-cache labels`: boxes of every dataset against a naive reading of its files, and against exact motion."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.drives import open_drive
from hilda_cache.drives.pandas_pickle import read_columns
from hilda_cache.drives.synthetic.scene import draw_scene
from hilda_cache.labels import boxes_of_scene, write_labels
from hilda_schema.boxes import points_inside, read_boxes
from hilda_schema.errors import DriveError, UsageError


@pytest.fixture(scope="module")
def tables(tiny_drive):
    """The synthetic drive's tables by name, rows by token."""
    return {
        path.stem: {row["token"]: row for row in json.loads(path.read_text())}
        for path in (tiny_drive / "v1.0-synthetic").glob("*.json")
    }


@pytest.fixture(scope="module")
def labels(tiny_drive, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels") / "boxes.parquet"
    drive = open_drive("nuscenes", tiny_drive)
    write_labels(drive, {}, drive.scenes(), out)
    return read_boxes(out)


def rotation(wxyz):
    return Rotation.from_quat(np.roll(wxyz, -1))


def test_boxes_of_nuscenes_are_those_of_a_naive_reading(tables, labels):
    annotations = tables["sample_annotation"].values()
    assert len(annotations) > 100
    count = 0
    for data in tables["sample_data"].values():
        sensor = tables["calibrated_sensor"][data["calibrated_sensor_token"]]
        if tables["sensor"][sensor["sensor_token"]]["channel"] != "LIDAR_TOP":
            continue
        scene = tables["scene"][tables["sample"][data["sample_token"]]["scene_token"]]["name"]
        found = labels[f"nuscenes/{scene}/{data['token']}"]
        ego = tables["ego_pose"][data["ego_pose_token"]]
        rows = {track: row for row, track in enumerate(found.track)}
        own = [each for each in annotations if each["sample_token"] == data["sample_token"]]
        assert len(own) == len(found)
        for each in own:
            row = rows[each["instance_token"]]
            # world -> ego -> LiDAR, a step at a time, as the devkit does it
            centre, turn = np.array(each["translation"]), rotation(each["rotation"])
            for pose in (ego, sensor):
                centre = rotation(pose["rotation"]).inv().apply(centre - pose["translation"])
                turn = rotation(pose["rotation"]).inv() * turn
            np.testing.assert_allclose(found.centre_m[row], centre, atol=1e-9)
            np.testing.assert_allclose(found.lidar_SE3_box[row, :3, :3], turn.as_matrix(), atol=1e-9)
            assert found.size_m[row].tolist() == [each["size"][k] for k in (1, 0, 2)]
            instance = tables["instance"][each["instance_token"]]
            assert found.category[row] == tables["category"][instance["category_token"]]["name"]
            assert found.points[row] == each["num_lidar_pts"]
            count += 1
    assert count == len(annotations)


def test_velocities_are_made_as_the_devkit_makes_them(tables, labels, tiny_drive):
    """`NuScenes.box_velocity`: from the annotation before to the one after, in the world; then turned to the LiDAR."""
    drive, moving = open_drive("nuscenes", tiny_drive), 0
    for scene in drive.scenes():
        for info in drive.frames(scene):
            found = labels[info.key]
            for row, track in enumerate(found.track):
                own = [each for each in tables["sample_annotation"].values() if each["instance_token"] == track]
                stamp = {each["token"]: tables["sample"][each["sample_token"]]["timestamp"] for each in own}
                (current,) = [each for each in own if stamp[each["token"]] * 1000 == info.stamp_ns]
                first = tables["sample_annotation"].get(current["prev"], current)
                last = tables["sample_annotation"].get(current["next"], current)
                if first is last:
                    assert np.isnan(found.velocity_mps[row]).all()
                    continue
                seconds = (stamp[last["token"]] - stamp[first["token"]]) / 1e6
                limit = 3.0 if current["prev"] and current["next"] else 1.5
                if seconds > limit:
                    assert np.isnan(found.velocity_mps[row]).all()
                    continue
                world = (np.array(last["translation"]) - first["translation"]) / seconds
                expected = Rotation.from_matrix(info.world_SE3_lidar[:3, :3]).inv().apply(world)[:2]
                np.testing.assert_allclose(found.velocity_mps[row], expected, atol=1e-9)
                moving += bool(np.linalg.norm(expected) > 1)
    assert moving > 5


def test_a_velocity_is_not_made_over_a_gap(tiny_drive):
    """The second of three keyframes lies five seconds after the first."""
    drive = open_drive("nuscenes", tiny_drive)
    scene = drive.scenes()[0]
    infos = list(drive.frames(scene))
    infos = [infos[0], *(replace(each, stamp_ns=each.stamp_ns + 5_000_000_000) for each in infos[1:])]
    drive.frames = lambda name: tuple(infos)
    frames = [boxes for _, boxes in boxes_of_scene(drive, scene)]
    everywhere = set(frames[0].track) & set(frames[1].track) & set(frames[2].track)
    assert everywhere
    for track in everywhere:
        known = [not np.isnan(f.velocity_mps[list(f.track).index(track)]).any() for f in frames]
        assert known == [False, False, True]


def test_a_point_of_a_box_moves_with_it_to_where_the_world_puts_it(labels, tiny_drive):
    """The world's own motion is a closed expression: what the boxes say of their points differs by rounding alone."""
    drive, checked = open_drive("nuscenes", tiny_drive), 0
    for index, name in enumerate(drive.scenes()):
        scene = draw_scene(0, index, 3, (176, 99), 1085)
        first, second = drive.frames(name)[:2]
        for info in (first, second):
            assert info.stamp_ns // 1000 in scene.stamps_us
        before, after = labels[first.key], labels[second.key]
        xyz_m = drive.read(first).points.xyz_m.astype(np.float64)
        times = [scene.seconds(info.stamp_ns // 1000) for info in (first, second)]
        (here, yaw), (there, yaw_after) = (scene.world.agent_poses(t) for t in times)
        for row, rows in enumerate(points_inside(xyz_m, before)):
            later = np.flatnonzero(after.track == before.track[row])
            if not len(rows) or not len(later):
                continue
            motion = after.lidar_SE3_box[later[0]] @ np.linalg.inv(before.lidar_SE3_box[row])
            moved = xyz_m[rows] @ motion[:3, :3].T + motion[:3, 3]
            world = xyz_m[rows] @ first.world_SE3_lidar[:3, :3].T + first.world_SE3_lidar[:3, 3]
            centre = first.world_SE3_lidar @ np.append(before.centre_m[row], 1)
            agent = int(np.linalg.norm(here[:, :2] - centre[:2], axis=1).argmin())
            turn = Rotation.from_euler("z", yaw_after[agent] - yaw[agent])
            expected = turn.apply(world - here[agent]) + there[agent]
            found = moved @ second.world_SE3_lidar[:3, :3].T + second.world_SE3_lidar[:3, 3]
            np.testing.assert_allclose(found, expected, atol=1e-6)
            checked += len(rows)
    assert checked > 500


def test_the_command(tiny_drive, tmp_path):
    out = tmp_path / "boxes.parquet"
    words = ["labels", str(tiny_drive), "-d", "nuscenes", "-o", str(out), "--scenes", "scene-0002"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert len(read_boxes(out)) == 3
    assert all("scene-0002" in key for key in read_boxes(out))
    assert read_boxes(out).about.version == "v1.0-synthetic"


def test_what_cannot_be_read(tiny_drive, tmp_path):
    drive = open_drive("nuscenes", tiny_drive)
    with pytest.raises(UsageError, match="scene 'scene-9' is not in this drive"):
        write_labels(drive, {}, ["scene-9"], tmp_path / "x.parquet")
    version = tmp_path / "drive" / "v1.0-x"
    version.mkdir(parents=True)
    (tmp_path / "drive" / "samples" / "LIDAR_TOP").mkdir(parents=True)
    for path in (tiny_drive / "samples" / "LIDAR_TOP").iterdir():
        (tmp_path / "drive" / "samples" / "LIDAR_TOP" / path.name).hardlink_to(path)
    for path in (tiny_drive / "v1.0-synthetic").glob("*.json"):
        (version / path.name).write_bytes(path.read_bytes())
    rows = json.loads((version / "sample_annotation.json").read_text())
    rows[7]["instance_token"] = "nobody"
    (version / "sample_annotation.json").write_text(json.dumps(rows))
    with pytest.raises(DriveError, match=r"names 'nobody' in 'instance_token'"):
        write_labels(open_drive("nuscenes", tmp_path / "drive"), {}, ["scene-0001"], tmp_path / "x.parquet")
    (version / "sample_annotation.json").unlink()
    with pytest.raises(DriveError, match=r"sample_annotation\.json is not there"):
        write_labels(open_drive("nuscenes", tmp_path / "drive"), {}, ["scene-0001"], tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize("dtype", ["object", None])
def test_columns_of_strings_are_read_from_pickles(tmp_path, dtype):
    frame = pd.DataFrame({"uuid": ["a", "b é", "c"], "x": [1.0, 2.0, 3.0], "label": ["Car", "Bus", "Car"]})
    frame = frame.astype({"uuid": dtype, "label": dtype}) if dtype else frame
    frame.to_pickle(tmp_path / "x.pkl")
    found = read_columns(tmp_path / "x.pkl", ("x",), ("label", "uuid"))
    assert found["uuid"].tolist() == ["a", "b é", "c"]
    assert found["label"].tolist() == ["Car", "Bus", "Car"]
    with pytest.raises(DriveError, match="no column 'x'"):
        read_columns(tmp_path / "x.pkl", (), ("x",))


# ---- real data


@pytest.mark.parametrize("folder", ["pandaset", "pandaset_long"])
def test_points_in_pandasets_boxes_have_the_boxes_classes(sample_data, folder):
    """A wrong convention of yaw, length or world would put other points into the boxes."""
    drive = open_drive("pandaset", sample_data / "data" / folder)
    annotations, infos = drive.annotations("002"), drive.frames("002")
    assert len(annotations) == len(infos)
    tracks = [set(annotations[info.key.frame].track) for info in infos[:2]]
    assert len(tracks[0] & tracks[1]) > 0.9 * len(tracks[0])
    frames = {key.frame: boxes for key, boxes in _first(drive, 2)}
    inside = right = 0
    for info in infos[:2]:
        boxes, points = frames[info.key.frame], drive.read(info).points
        is_car = np.isin(points.label, [13, 14])
        for row, rows in enumerate(points_inside(points.xyz_m, boxes)):
            assert len(rows) == boxes.points[row]
            if boxes.category[row] in {"Car", "Pickup Truck"}:
                inside, right = inside + len(rows), right + int(is_car[rows].sum())
    assert inside > 5000
    assert right > 0.9 * inside


def _first(drive, count):
    """Boxes of a scene's first frames alone: a sweep of PandaSet takes long to read."""
    annotations = drive.annotations("002")
    few = {info.key.frame: annotations[info.key.frame] for info in drive.frames("002")[:count]}
    drive.annotations = lambda scene: few
    return list(boxes_of_scene(drive, "002"))


def test_the_publishers_count_of_points_in_argoverses_boxes_is_ours(sample_data):
    drive, same, count = open_drive("argoverse2", sample_data / "data" / "argoverse2"), 0, 0
    for scene in drive.scenes():
        for (key, boxes), info in zip(boxes_of_scene(drive, scene), drive.frames(scene), strict=True):
            assert key == info.key
            found = np.array([len(rows) for rows in points_inside(drive.read(info).points.xyz_m, boxes)])
            same, count = same + int((np.abs(found - boxes.points) <= 1).sum()), count + len(boxes)
    assert count > 100
    assert same > 0.95 * count


def test_a_partial_nuscenes_without_boxes_says_so(sample_data, tmp_path):
    drive = open_drive("nuscenes", sample_data / "data" / "nuscenes_keyframe")
    with pytest.raises(DriveError, match=r"instance\.json is not there"):
        write_labels(drive, {}, drive.scenes(), tmp_path / "x.parquet")


def test_a_dataset_without_boxes_says_so(sample_data, tmp_path):
    drive = open_drive("semantickitti", sample_data / "data" / "semantickitti")
    with pytest.raises(UsageError, match="semantickitti has no boxes"):
        write_labels(drive, {}, drive.scenes(), tmp_path / "x.parquet")
