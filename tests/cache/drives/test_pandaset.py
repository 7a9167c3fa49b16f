"""PandaSet against pandas and scipy, on a small made-up drive and on the real one."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation, Slerp

from hilda_cache.drives import open_drive
from hilda_cache.drives.pandaset import PANDAR64_IN_EGO_M
from hilda_schema.errors import DriveError, MissingSensor, UsageError

CAMERAS = ("front_camera", "front_left_camera", "front_right_camera", "left_camera", "right_camera", "back_camera")
FRAMES = 4
FIRST_STAMP_S = 1557539960.5


def record(rotation, position):
    x, y, z, w = rotation.as_quat()
    return {
        "position": dict(zip("xyz", map(float, position), strict=True)),
        "heading": {"w": float(w), "x": float(x), "y": float(y), "z": float(z)},
    }


def matrix(pose):
    heading, position = pose["heading"], pose["position"]
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_quat([heading[name] for name in "xyzw"]).as_matrix()
    transform[:3, 3] = [position[name] for name in "xyz"]
    return transform


def write_scene(folder, seed=0, labels=True):
    """A scene of the published layout: 60 points a sweep, of which the last 20 are the PandarGT's."""
    rng = np.random.default_rng(seed)

    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    stamps = [FIRST_STAMP_S + 0.1 * index for index in range(FRAMES)]
    ego = [record(Rotation.from_rotvec((0.01, 0.02, 0.1 * i)), (5 + 2 * i, i, 0.1)) for i in range(FRAMES)]
    write(folder / "lidar/poses.json", ego)
    write(folder / "lidar/timestamps.json", stamps)
    for index in range(FRAMES):
        table = pd.DataFrame(rng.uniform(-50, 50, (60, 3)), columns=list("xyz"))
        table["i"] = rng.integers(0, 256, 60).astype(float)
        table["t"] = stamps[index] - rng.uniform(0, 0.1, 60)
        table["d"] = np.repeat([0, 1], [40, 20])
        table.to_pickle(folder / f"lidar/{index:02d}.pkl.gz")
        if labels:
            (folder / "annotations/semseg").mkdir(parents=True, exist_ok=True)
            pd.DataFrame({"class": rng.integers(1, 43, 60)}).to_pickle(
                folder / f"annotations/semseg/{index:02d}.pkl.gz"
            )
    for number, name in enumerate(CAMERAS):
        camera = folder / "camera" / name
        write(camera / "timestamps.json", [stamp - 0.02 * number for stamp in stamps])
        poses = [record(Rotation.from_rotvec((1.2, 0.3 * number, i / 9)), (i, number, 1.5)) for i in range(FRAMES)]
        write(camera / "poses.json", poses)
        write(camera / "intrinsics.json", {"fx": 33.0, "fy": 34.0, "cx": 15.5 + number, "cy": 8.5})
        for index in range(FRAMES):
            Image.new("RGB", (32, 18)).save(camera / f"{index:02d}.jpg")


@pytest.fixture
def root(tmp_path):
    write_scene(tmp_path / "002")
    return tmp_path


def test_a_drive_lists_its_scenes_frames_and_cameras(root):
    write_scene(root / "010", labels=False)
    drive = open_drive("pandaset", root)

    assert drive.scenes() == ("002", "010")
    assert drive.camera_names == CAMERAS
    frames = drive.frames("002")
    assert [str(frame.key) for frame in frames] == [f"pandaset/002/{index:02d}" for index in range(FRAMES)]
    assert [frame.stamp_ns for frame in frames] == [1557539960500000000 + 100_000_000 * i for i in range(FRAMES)]
    assert [view.name for view in frames[0].cameras] == list(CAMERAS)
    assert {(view.width_px, view.height_px) for view in frames[0].cameras} == {(32, 18)}
    assert frames[1].lidar_paths == (root / "002/lidar/01.pkl.gz", root / "002/annotations/semseg/01.pkl.gz")
    assert drive.frames("010")[1].lidar_paths == (root / "010/lidar/01.pkl.gz",)
    assert drive.read(drive.frames("010")[1]).points.label is None


@pytest.mark.parametrize(("lidar", "sensors"), [("pandar64", [0]), ("pandargt", [1]), ("both", [0, 1])])
def test_points_are_the_chosen_sensors_rows_in_the_lidars_frame(root, lidar, sensors):
    drive = open_drive("pandaset", root, lidar=lidar)
    for index, info in enumerate(drive.frames("002")):
        table = pd.read_pickle(root / f"002/lidar/{index:02d}.pkl.gz")
        labels = pd.read_pickle(root / f"002/annotations/semseg/{index:02d}.pkl.gz")["class"]
        rows = table.d.isin(sensors).to_numpy()
        pose = matrix(json.loads((root / "002/lidar/poses.json").read_text())[index])
        rotation = Rotation.from_matrix(pose[:3, :3])
        in_ego = rotation.inv().apply(table.loc[rows, ["x", "y", "z"]].to_numpy() - pose[:3, 3])

        points = drive.read(info).points

        np.testing.assert_allclose(points.xyz_m, in_ego - PANDAR64_IN_EGO_M, atol=1e-5)
        np.testing.assert_array_equal(points.intensity, table.i[rows].astype(np.float32))
        np.testing.assert_array_equal(points.label, labels[rows])
        np.testing.assert_allclose(points.time_offset_ns, (table.t[rows] - info.stamp_ns / 1e9) * 1e9, atol=500, rtol=0)
        assert (points.xyz_m.dtype, points.label.dtype, points.time_offset_ns.dtype) == ("f4", "u2", "i4")


def test_the_chain_of_transforms_is_the_published_camera_pose(root):
    frames = open_drive("pandaset", root).frames("002")
    for index, info in enumerate(frames):
        for view in info.cameras:
            published = matrix(json.loads((root / "002/camera" / view.name / "poses.json").read_text())[index])
            world_SE3_cam = view.world_SE3_ego @ np.linalg.inv(view.cam_SE3_ego)
            np.testing.assert_allclose(world_SE3_cam, published, atol=1e-12)


def test_ego_at_the_image_lies_between_the_sweeps(root):
    frames = open_drive("pandaset", root).frames("002")
    stamps = [info.stamp_ns / 1e9 for info in frames]
    turn = Slerp(stamps, Rotation.from_matrix([info.world_SE3_ego[:3, :3] for info in frames]))
    for info in frames[1:]:  # the first sweep's images are older than the first pose
        for view in info.cameras:
            seconds = view.stamp_ns / 1e9
            along = [np.interp(seconds, stamps, [pose.world_SE3_ego[axis, 3] for pose in frames]) for axis in range(3)]
            np.testing.assert_allclose(view.world_SE3_ego[:3, :3], turn(seconds).as_matrix(), atol=1e-6)
            np.testing.assert_allclose(view.world_SE3_ego[:3, 3], along, atol=1e-5)


def test_non_finite_points_are_dropped_with_their_labels_and_counted(root):
    path = root / "002/lidar/01.pkl.gz"
    table = pd.read_pickle(path)
    for row, (name, value) in enumerate([("x", np.nan), ("y", np.inf), ("z", -np.inf), ("i", np.nan), ("t", np.nan)]):
        table.loc[2 * row, name] = value
    table.loc[50, list("xyzit")] = np.nan  # the PandarGT's: not this drive's business
    table.to_pickle(path)
    drive = open_drive("pandaset", root)

    frame = drive.read(drive.frames("002")[1])

    kept = [row for row in range(40) if row not in (0, 2, 4, 6, 8)]
    assert frame.report.non_finite == 5
    assert len(frame.points) == 35
    labels = pd.read_pickle(root / "002/annotations/semseg/01.pkl.gz")["class"].to_numpy()
    np.testing.assert_array_equal(frame.points.label, labels[kept])
    assert np.isfinite(frame.points.xyz_m).all()


def test_unpacked_sweeps_are_read_as_well(root):
    packed = open_drive("pandaset", root)
    expected = packed.read(packed.frames("002")[2]).points
    for path in [*root.glob("002/lidar/*.pkl.gz"), *root.glob("002/annotations/semseg/*.pkl.gz")]:
        pd.read_pickle(path).to_pickle(path.with_suffix(""))
        path.unlink()

    drive = open_drive("pandaset", root)
    points = drive.read(drive.frames("002")[2]).points

    np.testing.assert_array_equal(points.xyz_m, expected.xyz_m)
    np.testing.assert_array_equal(points.label, expected.label)


def test_missing_images_are_named_and_missing_cameras_left_out(root):
    (root / "002/camera/front_camera/00.jpg").unlink()
    (root / "002/camera/front_camera/01.jpg").write_bytes(b"damaged: its own frame's trouble")
    shutil.rmtree(root / "002/camera/left_camera")
    for path in (root / "002/camera/back_camera").glob("*.jpg"):
        path.unlink()

    drive = open_drive("pandaset", root)
    views = {view.name: view for view in drive.frames("002")[0].cameras}

    assert drive.camera_names == tuple(views) == tuple(name for name in CAMERAS if name != "left_camera")
    assert views["front_camera"].image_path == root / "002/camera/front_camera/00.jpg"
    assert (views["front_camera"].width_px, views["front_camera"].height_px) == (32, 18)
    assert (views["back_camera"].width_px, views["back_camera"].height_px) == (1920, 1080)


def test_wrong_requests_are_named(root):
    with pytest.raises(UsageError, match="no LiDAR 'velodyne'"):
        open_drive("pandaset", root, lidar="velodyne")
    with pytest.raises(UsageError, match="did you mean '002'"):
        open_drive("pandaset", root).frames("02")
    with pytest.raises(UsageError, match="it has 002"):
        open_drive("pandaset", root).frames("scene-0061")
    with pytest.raises(DriveError, match="holds no scene"):
        open_drive("pandaset", root / "002")


def edit(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value)))


def set_item(container, *steps_and_value):
    *steps, last, value = steps_and_value
    target = container
    for step in steps:
        target = target[step]
    target[last] = value
    return container


TABLE_FAULTS = {
    "lidar/poses.json": [
        lambda poses: poses[:-1],
        lambda poses: set_item(poses, 2, "heading", "w", 5.0),
        lambda poses: set_item(poses, 2, "position", "x", "far"),
        lambda poses: set_item(poses, 2, "position", {}),
        lambda poses: set_item(poses, 2, None),
        lambda poses: {"poses": poses},
    ],
    "lidar/timestamps.json": [
        lambda stamps: stamps[::-1],
        lambda stamps: [*stamps[:-1], stamps[-2]],
        lambda stamps: [*stamps, stamps[-1] + 1],
        lambda stamps: set_item(stamps, 1, "noon"),
        lambda stamps: set_item(stamps, 1, 1e300),
        lambda stamps: set_item(stamps, 1, -1.0),
        lambda stamps: 7,
    ],
    "camera/left_camera/timestamps.json": [lambda stamps: stamps[:-1], lambda stamps: []],
    "camera/left_camera/poses.json": [
        lambda poses: poses[:-1],
        lambda poses: set_item(poses, 3, "heading", "x", 0.9),
        lambda poses: set_item(poses, 3, "heading", None),
    ],
    "camera/left_camera/intrinsics.json": [
        lambda table: {},
        lambda table: [],
        lambda table: set_item(table, "fx", -3.0),
        lambda table: set_item(table, "cx", "wide"),
    ],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name in TABLE_FAULTS for change in TABLE_FAULTS[name]])
def test_broken_tables_are_named(root, name, change):
    edit(root / "002" / name, change)
    with pytest.raises(DriveError, match=name.rpartition("/")[2]) as caught:
        open_drive("pandaset", root).frames("002")
    assert not isinstance(caught.value, MissingSensor)


@pytest.mark.parametrize("name", TABLE_FAULTS)
def test_absent_and_cut_tables_are_named(root, name):
    path = root / "002" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DriveError, match=path.name):
        open_drive("pandaset", root).frames("002")
    path.unlink()
    with pytest.raises(DriveError, match=f"{path.name} is not there"):
        open_drive("pandaset", root).frames("002")


def change_table(path, change):
    table = pd.read_pickle(path)
    change(table).to_pickle(path)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("lidar", lambda table: table.drop(columns="z"), "no column 'z'"),
        ("lidar", lambda table: table.assign(d=7), "column d"),
        ("lidar", lambda table: table.assign(i=table.i * 1e6), "column i"),
        ("lidar", lambda table: table.assign(t=table.t + 100), "time stamp"),
        ("lidar", lambda table: table.assign(x=table.x * 1e9), "no LiDAR sees"),
        ("lidar", lambda table: table.iloc[:-1], "labels 60 points of a sweep of 59"),
        ("lidar", lambda table: table.iloc[:0], "labels 60 points of a sweep of 0"),
        ("annotations/semseg", lambda table: table.iloc[:-1], "labels 59 points"),
        ("annotations/semseg", lambda table: table - 100, "class ids"),
        ("annotations/semseg", lambda table: table + 0.5, "class ids"),
        ("annotations/semseg", lambda table: table.rename(columns={"class": "category"}), "no column 'class'"),
    ],
)
def test_sweeps_of_another_content_are_refused_naming_file_and_frame(root, name, change, said):
    change_table(root / "002" / name / "01.pkl.gz", change)
    drive = open_drive("pandaset", root)
    with pytest.raises(DriveError, match=rf"^pandaset/002/01: .*01\.pkl\.gz.*{said}"):
        drive.read(drive.frames("002")[1])


@pytest.mark.parametrize("name", ["lidar/01.pkl.gz", "annotations/semseg/01.pkl.gz"])
def test_absent_empty_and_cut_sweeps_are_named(root, name):
    path = root / "002" / name
    drive = open_drive("pandaset", root)
    whole = path.read_bytes()
    for data, kind in [(whole[: len(whole) // 2], DriveError), (b"", DriveError), (None, MissingSensor)]:
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        with pytest.raises(kind, match=rf"^pandaset/002/01: .*{path.name}"):
            drive.read(drive.frames("002")[1])


def test_links_out_of_the_drive_are_not_followed(root, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.jpg"
    secret.write_bytes(b"canary")
    image = root / "002/camera/left_camera/02.jpg"
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(DriveError, match=r"02.jpg is a link that leaves"):
        open_drive("pandaset", root).frames("002")


@pytest.mark.parametrize("name", ["pandaset", "pandaset_long"])
def test_real_points_project_as_world_points_into_published_cameras(sample_data, name):
    """Independent of every transform of ours: world points of pandas, the published pose, scipy, K."""
    root = sample_data / "data" / name
    drive = open_drive("pandaset", root)
    info = drive.frames("002")[7]
    points = drive.read(info).points
    table = pd.read_pickle(root / "002/lidar/07.pkl.gz")
    world = table.loc[table.d == 0, ["x", "y", "z"]].to_numpy()
    np.testing.assert_array_equal(
        points.label, pd.read_pickle(root / "002/annotations/semseg/07.pkl.gz")["class"][table.d == 0]
    )
    shares = {}
    for view in info.cameras:
        pose = json.loads((root / "002/camera" / view.name / "poses.json").read_text())[7]
        rotation = Rotation.from_quat([pose["heading"][axis] for axis in "xyzw"])
        expected = rotation.inv().apply(world - [pose["position"][axis] for axis in "xyz"])
        cam_SE3_lidar = view.cam_SE3_ego @ np.linalg.inv(view.world_SE3_ego) @ info.world_SE3_lidar
        found = points.xyz_m @ cam_SE3_lidar[:3, :3].T + cam_SE3_lidar[:3, 3]
        np.testing.assert_allclose(found, expected, atol=2e-4)
        uv = found @ view.intrinsics.T
        uv = uv[:, :2] / uv[:, 2:]
        inside = (found[:, 2] > 1) & (uv > -0.5).all(1) & (uv < (view.width_px - 0.5, view.height_px - 0.5)).all(1)
        shares[view.name] = inside.mean()
    # A camera of 90 (front: 50) degrees sees a quarter (an eighth) of a full turn.
    assert shares.pop("front_camera") == pytest.approx(0.13, abs=0.03)
    assert all(share == pytest.approx(0.24, abs=0.04) for share in shares.values()), shares


def test_real_cameras_are_fixed_to_the_interpolated_vehicle(sample_data):
    """While the vehicle moves up to half a metre between sweep and image, a camera stays where it is mounted."""
    frames = open_drive("pandaset", sample_data / "data" / "pandaset_long").frames("002")[25:]
    for number in range(6):
        mounts = np.array([np.linalg.inv(info.cameras[number].cam_SE3_ego)[:3, 3] for info in frames])
        assert mounts.std(axis=0).max() < 0.01


def test_real_road_lies_below_the_lidar(sample_data):
    """Road points (class 7) of the sweep lie a mounting height below the Pandar64, around it."""
    drive = open_drive("pandaset", sample_data / "data" / "pandaset")
    points = drive.read(drive.frames("002")[0]).points
    near_road = points.xyz_m[(points.label == 7) & (np.linalg.norm(points.xyz_m[:, :2], axis=1) < 10)]
    assert len(near_road) > 1000
    assert np.median(near_road[:, 2]) == pytest.approx(-0.39 - 1.85, abs=0.1)
