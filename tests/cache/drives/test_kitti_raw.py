"""KITTI raw against projection matrices multiplied out by hand, and its map against geodesy."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from hilda_cache.drives import open_drive
from hilda_cache.drives.kitti import read_oxts_poses
from hilda_schema.errors import DriveError, MissingSensor, UsageError

SCENE = "2011_09_26_drive_0009_sync"
NUMBERS = (0, 1, 2, 5)  # some recordings lack sweeps

R_RECT = Rotation.from_euler("xyz", (0.01, -0.02, 0.005)).as_matrix()
R_VELO = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ Rotation.from_euler("xyz", (0.01, 0.02, 0.0)).as_matrix()
T_VELO = np.array([-0.004, -0.076, -0.27])
R_IMU = Rotation.from_euler("xyz", (0.001, -0.002, 0.01)).as_matrix()
T_IMU = np.array([-0.81, 0.32, -0.80])
PROJECTIONS = {
    2: np.array([[70.0, 0, 60, 44.8], [0, 71, 17, 0.21], [0, 0, 1, 0.0027]]),
    3: np.array([[70.0, 0, 60, -339.5], [0, 71, 17, 2.2], [0, 0, 1, 0.0027]]),
}


def line(name, values):
    return f"{name}: {' '.join(f'{value:.17g}' for value in np.ravel(values))}\n"


def write_raw_calibration(folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = "calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.950000e-02\n" + line("R_rect_00", R_RECT)
    for number, projection in PROJECTIONS.items():
        text += line(f"S_rect_0{number}", (124, 37)) + line(f"P_rect_0{number}", projection)
    (folder / "calib_cam_to_cam.txt").write_text(text)
    for name, rotation, translation in [("velo_to_cam", R_VELO, T_VELO), ("imu_to_velo", R_IMU, T_IMU)]:
        text = "calib_time: 15-Mar-2012 11:37:16\n" + line("R", rotation) + line("T", translation)
        (folder / f"calib_{name}.txt").write_text(text)


def write_object_calibration(path):
    text = "".join(line(f"P{number}", PROJECTIONS.get(number, PROJECTIONS[2])) for number in range(4))
    text += line("R0_rect", R_RECT) + line("Tr_velo_to_cam", np.c_[R_VELO, T_VELO])
    path.write_text(text + line("Tr_imu_to_velo", np.c_[R_IMU, T_IMU]) + "\n")


def write_scene(folder, oxts=True, seed=0):
    rng = np.random.default_rng(seed)
    (folder / "velodyne_points/data").mkdir(parents=True)
    for number in NUMBERS:
        sweep = np.c_[rng.uniform(-40, 40, (30, 3)), rng.uniform(0, 1, 30)].astype("<f4")
        sweep.tofile(folder / f"velodyne_points/data/{number:010d}.bin")
    stamps = [f"2011-09-26 13:02:{25 + index // 10}.{index % 10}51199337\n" for index in range(6)]
    (folder / "velodyne_points/timestamps.txt").write_text("".join(stamps))
    for camera in ("image_02", "image_03"):
        (folder / camera / "data").mkdir(parents=True)
        (folder / camera / "timestamps.txt").write_text("".join(stamps).replace("337", "338"))
        for number in NUMBERS:
            Image.new("RGB", (124, 37)).save(folder / camera / f"data/{number:010d}.png")
    if oxts:
        (folder / "oxts/data").mkdir(parents=True)
        for number in range(6):
            packet = [49.0 + 1e-5 * number, 8.4 - 2e-5 * number, 110 + number, 0.01, 0.02, 0.5 + 0.1 * number]
            text = " ".join(f"{value:.15g}" for value in [*packet, *np.zeros(24)])
            (folder / f"oxts/data/{number:010d}.txt").write_text(text + "\n")


@pytest.fixture
def root(tmp_path):
    write_raw_calibration(tmp_path / "2011_09_26")
    write_scene(tmp_path / "2011_09_26" / SCENE)
    return tmp_path


@pytest.fixture
def object_root(tmp_path):
    """The layout of a hand-made cut: no IMU, one calibration file, one pose file."""
    write_scene(tmp_path / "2011_09_26", oxts=False)
    write_object_calibration(tmp_path / "calib_object_format.txt")
    poses = [np.c_[Rotation.from_euler("z", 0.1 * index).as_matrix(), (index, 0, 0)] for index in range(6)]
    np.savetxt(tmp_path / "poses.txt", np.reshape(poses, (6, 12)), fmt="%.17g")
    return tmp_path


def project(info, view, points):
    cam_SE3_lidar = view.cam_SE3_ego @ np.linalg.inv(view.world_SE3_ego) @ info.world_SE3_lidar
    pixels = (points @ cam_SE3_lidar[:3, :3].T + cam_SE3_lidar[:3, 3]) @ view.intrinsics.T
    return pixels[:, :2] / pixels[:, 2:]


def project_by_hand(number, points, projections=PROJECTIONS, rectify=R_RECT, rotation=R_VELO, translation=T_VELO):
    """P R0 Tr x, homogeneous, as the development kit multiplies them."""
    transform, rectification = np.eye(4), np.eye(4)
    transform[:3] = np.c_[rotation, translation]
    rectification[:3, :3] = rectify
    pixels = np.c_[points, np.ones(len(points))] @ (projections[number] @ rectification @ transform).T
    return pixels[:, :2] / pixels[:, 2:]


def test_a_drive_lists_its_scenes_frames_and_cameras(root):
    write_scene(root / "2011_09_26/2011_09_26_drive_0001_sync")
    drive = open_drive("kitti_raw", root)

    assert drive.scenes() == ("2011_09_26_drive_0001_sync", SCENE)
    assert drive.camera_names == ("image_02", "image_03")
    frames = drive.frames(SCENE)
    assert [frame.key.frame for frame in frames] == [f"{number:010d}" for number in NUMBERS]
    second = 1317042145 * 10**9  # 2011-09-26 13:02:25 UTC
    assert [frame.stamp_ns - second for frame in frames] == [n * 10**8 + 51_199_337 for n in NUMBERS]
    assert [view.stamp_ns - frames[3].stamp_ns for view in frames[3].cameras] == [1, 1]
    assert frames[3].cameras[1].image_path == root / "2011_09_26" / SCENE / "image_03/data/0000000005.png"
    assert (frames[3].cameras[1].width_px, frames[3].cameras[1].height_px) == (124, 37)
    assert open_drive("kitti_raw", root / "2011_09_26").scenes() == drive.scenes()


def test_points_are_the_files_rows(root):
    drive = open_drive("kitti_raw", root)
    for info in drive.frames(SCENE):
        rows = np.fromfile(info.lidar_paths[0], np.float32).reshape(-1, 4)
        frame = drive.read(info)
        np.testing.assert_array_equal(frame.points.xyz_m, rows[:, :3])
        np.testing.assert_array_equal(frame.points.intensity, rows[:, 3])
        assert frame.report.non_finite == 0


@pytest.mark.parametrize("layout", ["root", "object_root"])
def test_projection_is_the_development_kits_product(request, layout):
    drive = open_drive("kitti_raw", request.getfixturevalue(layout))
    points = np.random.default_rng(1).uniform((2, -10, -2), (40, 10, 1), (50, 3))
    for info in drive.frames(drive.scenes()[0]):
        for view, number in zip(info.cameras, (2, 3), strict=True):
            np.testing.assert_allclose(project(info, view, points), project_by_hand(number, points), atol=1e-7)


def test_imu_poses_are_metres_in_the_first_frame(root):
    """Against the lengths of degrees on the sphere that KITTI's map takes, by small-angle geodesy."""
    frames = open_drive("kitti_raw", root).frames(SCENE)
    degree_m = 6_378_137.0 * np.pi / 180
    first = Rotation.from_euler("ZYX", (0.5, 0.02, 0.01))
    for number, info in zip(NUMBERS, frames, strict=True):
        east_north_up = (-2e-5 * number * degree_m * np.cos(np.radians(49)), 1e-5 * number * degree_m, number)
        rotation = first.inv() * Rotation.from_euler("ZYX", (0.5 + 0.1 * number, 0.02, 0.01))
        np.testing.assert_allclose(info.world_SE3_ego[:3, 3], first.inv().apply(east_north_up), atol=1e-3)
        np.testing.assert_allclose(info.world_SE3_ego[:3, :3], rotation.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(np.linalg.inv(frames[0].ego_SE3_lidar)[:3], np.c_[R_IMU, T_IMU], atol=1e-12)


def test_pose_files_hold_the_lidars_pose_by_frame_number(object_root):
    frames = open_drive("kitti_raw", object_root).frames("2011_09_26")
    for number, info in zip(NUMBERS, frames, strict=True):
        expected = np.c_[Rotation.from_euler("z", 0.1 * number).as_matrix(), (number, 0, 0)]
        np.testing.assert_allclose(info.world_SE3_lidar[:3], expected, atol=1e-12)


def test_poses_and_calibration_can_be_named(object_root):
    (object_root / "elsewhere").mkdir()
    shutil.move(object_root / "poses.txt", object_root / "elsewhere/track.txt")
    shutil.move(object_root / "calib_object_format.txt", object_root / "elsewhere/cameras.txt")
    named = {"poses": "elsewhere/track.txt", "calib": "elsewhere/cameras.txt"}
    info = open_drive("kitti_raw", object_root, **named).frames("2011_09_26")[2]
    assert info.world_SE3_lidar[0, 3] == 2
    still = open_drive("kitti_raw", object_root, **{**named, "poses": "identity"}).frames("2011_09_26")
    assert all((info.world_SE3_lidar == np.eye(4)).all() for info in still)


def test_going_without_poses_must_be_asked_for(object_root):
    (object_root / "poses.txt").unlink()
    with pytest.raises(DriveError, match=r'must hold one .pose..txt, and holds none.*poses="identity"'):
        open_drive("kitti_raw", object_root).frames("2011_09_26")


def test_an_ambiguous_calibration_must_be_named(object_root):
    shutil.copy(object_root / "calib_object_format.txt", object_root / "calib_old.txt")
    with pytest.raises(DriveError, match=r"holds calib_object_format.txt, calib_old.txt.*calib=<file>"):
        open_drive("kitti_raw", object_root).frames("2011_09_26")


def test_without_time_stamps_frames_are_100_ms_apart(root):
    for path in root.rglob("timestamps.txt"):
        path.unlink()
    frames = open_drive("kitti_raw", root).frames(SCENE)
    assert [info.stamp_ns for info in frames] == [number * 100_000_000 for number in NUMBERS]
    assert all(view.stamp_ns == info.stamp_ns for info in frames for view in info.cameras)


def test_one_camera_or_none_will_do(root):
    scene = root / "2011_09_26" / SCENE
    shutil.rmtree(scene / "image_03")
    (scene / "image_02/data/0000000001.png").unlink()
    drive = open_drive("kitti_raw", root)
    assert drive.camera_names == ("image_02",)
    assert [info.cameras[0].image_path.exists() for info in drive.frames(SCENE)] == [True, False, True, True]
    shutil.rmtree(scene / "image_02")
    drive = open_drive("kitti_raw", root)
    assert (drive.camera_names, drive.frames(SCENE)[0].cameras) == ((), ())


def test_image_size_comes_from_an_image_where_calibration_does_not_say(object_root):
    folder = object_root / "2011_09_26/image_02/data"
    (folder / "0000000000.png").unlink()
    (folder / "0000000001.png").write_bytes(b"")  # damaged images are their own frames' trouble
    view = open_drive("kitti_raw", object_root).frames("2011_09_26")[0].cameras[0]
    assert (view.width_px, view.height_px) == (124, 37)
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(DriveError, match=r"no image can be opened in .*image_02"):
        open_drive("kitti_raw", object_root).frames("2011_09_26")


def test_repacked_images_are_found(root):
    folder = root / "2011_09_26" / SCENE / "image_02/data"
    for path in folder.glob("*.png"):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    assert all(info.cameras[0].image_path.exists() for info in open_drive("kitti_raw", root).frames(SCENE))


def test_wrong_requests_are_named(root, tmp_path_factory):
    with pytest.raises(DriveError, match="holds no scene"):
        open_drive("kitti_raw", tmp_path_factory.mktemp("empty"))
    for name in ("../../secret.txt", "/etc/passwd"):
        with pytest.raises(DriveError, match="not a path below"):
            open_drive("kitti_raw", root, calib=name).frames(SCENE)
    with pytest.raises(DriveError, match=r"absent.txt is not there"):
        open_drive("kitti_raw", root, poses="absent.txt").frames(SCENE)
    write_scene(root / "2011_09_26/2011_09_26_drive_0001_sync")
    with pytest.raises(UsageError, match="poses of 2 scenes"):
        open_drive("kitti_raw", root, poses="poses.txt")
    write_scene(root / "2011_09_27" / SCENE)
    with pytest.raises(DriveError, match=rf"2011_09_26/{SCENE} have one name"):
        open_drive("kitti_raw", root)


def test_unrectified_recordings_are_refused(root):
    (root / "2011_09_26" / SCENE).rename(root / "2011_09_26/2011_09_26_drive_0009_extract")
    with pytest.raises(DriveError, match="not rectified"):
        open_drive("kitti_raw", root).frames("2011_09_26_drive_0009_extract")


def replace_line(path, name, new):
    lines = [new if text.startswith(f"{name}:") else text for text in path.read_text().splitlines()]
    path.write_text("\n".join(text for text in lines if text is not None) + "\n")


@pytest.mark.parametrize(
    ("file", "name", "new"),
    [
        ("cam_to_cam", "R_rect_00", None),
        ("cam_to_cam", "R_rect_00", "R_rect_00: 1 0 0 0 1 0 0 0"),
        ("cam_to_cam", "R_rect_00", "R_rect_00: 2 0 0 0 2 0 0 0 2"),
        ("cam_to_cam", "P_rect_02", None),
        ("cam_to_cam", "P_rect_02", "P_rect_02: 0 0 60 0 0 0 17 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "P_rect_02: nan 0 60 0 0 70 17 0 0 0 1 0"),
        ("cam_to_cam", "P_rect_02", "P_rect_02: 70 0 60 0 0 70 17 0 0 0 2 0"),
        ("cam_to_cam", "P_rect_02", "P_rect_02: 70 0 60 0 0 70 17 0 0 0 1"),
        ("cam_to_cam", "P_rect_02", "P_rect_02: seventy"),
        ("cam_to_cam", "S_rect_02", "S_rect_02: 124"),
        ("cam_to_cam", "S_rect_02", "S_rect_02: nan 37"),
        ("cam_to_cam", "S_rect_02", None),
        ("cam_to_cam", "S_rect_03", "S_rect_02: 1 1"),
        ("velo_to_cam", "T", "T: 1 2"),
        ("velo_to_cam", "R", None),
        ("imu_to_velo", "R", "R: 1 0 0 0 1 0 0 0 -1"),
    ],
)
def test_broken_calibration_is_named(root, file, name, new):
    replace_line(root / f"2011_09_26/calib_{file}.txt", name, new)
    with pytest.raises(DriveError, match=f"calib_{file}|image_02"):
        open_drive("kitti_raw", root).frames(SCENE)


@pytest.mark.parametrize("name", ["R0_rect", "Tr_velo_to_cam", "P2"])
def test_incomplete_object_calibration_is_named(object_root, name):
    replace_line(object_root / "calib_object_format.txt", name, None)
    with pytest.raises(DriveError, match=f"{name}|image_02"):
        open_drive("kitti_raw", object_root).frames("2011_09_26")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("velodyne_points/timestamps.txt", "2011-09-26 13:02:25.9\n" * 3),
        ("velodyne_points/timestamps.txt", "2011-09-26 13:02:25.9\n" * 6),
        ("velodyne_points/timestamps.txt", "noon\n" * 6),
        ("image_02/timestamps.txt", "2011-09-26 13:02:25.9x\n" * 6),
        ("oxts/data/0000000002.txt", "49 8"),
        ("oxts/data/0000000002.txt", "nan 8 110 0 0 0"),
        ("oxts/data/0000000002.txt", "90 8 110 0 0 0"),
        ("oxts/data/0000000002.txt", "49 8 inf 0 0 0"),
        ("oxts/data/0000000002.txt", "north"),
        ("oxts/data/0000000002.txt", None),
        ("velodyne_points/data/notes.bin", "x"),
    ],
)
def test_broken_tables_are_named(root, name, text):
    path = root / "2011_09_26" / SCENE / name
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    with pytest.raises(DriveError, match=path.name) as caught:
        open_drive("kitti_raw", root).frames(SCENE)
    assert not isinstance(caught.value, MissingSensor)


def test_too_few_or_broken_poses_are_named(object_root):
    path = object_root / "poses.txt"
    whole = path.read_text()
    for text, said in [
        (whole[: whole.index("\n", 100)], "none for frame 0000000005"),
        (whole.replace("1", "2", 1), "line 1"),
        (whole + "1 2 3", "line 7"),
    ]:
        path.write_text(text)
        with pytest.raises(DriveError, match=rf"poses.txt.*{said}"):
            open_drive("kitti_raw", object_root).frames("2011_09_26")


def test_broken_sweeps_are_named_with_their_frame(root):
    drive = open_drive("kitti_raw", root)
    info = drive.frames(SCENE)[1]
    path = info.lidar_paths[0]
    rows = np.fromfile(path, np.float32).reshape(-1, 4)
    five_columns = np.c_[rows, np.arange(30) % 64].astype(np.float32)
    far = rows.copy()
    far[3, 1] = 1e20
    for data, said in [
        (rows.tobytes()[:-7], "expected stride 16"),
        (b"", "0 bytes"),
        (five_columns[:28].tobytes(), r"reflectance leaves 0..1.*16 bytes"),
        (far.tobytes(), "point 3 lies at"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DriveError, match=rf"^kitti_raw/{SCENE}/0000000001: .*0000000001.bin.*{said}"):
            drive.read(info)
    path.unlink()
    with pytest.raises(MissingSensor, match=rf"^kitti_raw/{SCENE}/0000000001: .*0000000001.bin is not there"):
        drive.read(info)


def test_non_finite_points_are_dropped_and_counted(root):
    drive = open_drive("kitti_raw", root)
    info = drive.frames(SCENE)[1]
    rows = np.fromfile(info.lidar_paths[0], np.float32).reshape(-1, 4)
    rows[4, 2], rows[9, 3], rows[11] = np.nan, np.inf, np.nan
    rows.tofile(info.lidar_paths[0])
    frame = drive.read(info)
    assert frame.report.non_finite == 3
    np.testing.assert_array_equal(frame.points.xyz_m, np.delete(rows[:, :3], [4, 9, 11], axis=0))
    rows[:] = np.nan
    rows.tofile(info.lidar_paths[0])
    empty = drive.read(info)
    assert (len(empty.points), empty.report.non_finite) == (0, 30)


def test_real_drive_projects_by_its_own_matrices(sample_data):
    root = sample_data / "data" / "kitti_raw"
    drive = open_drive("kitti_raw", root)
    (scene,) = drive.scenes()
    frames = drive.frames(scene)
    assert (len(frames), drive.camera_names) == (20, ("image_02",))
    lines = (text.split(": ") for text in (root / "calib_object_format.txt").read_text().splitlines() if text)
    table = {name: np.array(text.split(), float) for name, text in lines}
    transform = table["Tr_velo_to_cam"].reshape(3, 4)
    for info in (frames[0], frames[13]):
        sweep = drive.read(info).points.xyz_m
        points = sweep[sweep[:, 0] > 2]
        by_hand = project_by_hand(
            2,
            points.astype(float),
            {2: table["P2"].reshape(3, 4)},
            table["R0_rect"].reshape(3, 3),
            transform[:, :3],
            transform[:, 3],
        )
        (view,) = info.cameras
        found = project(info, view, points)
        np.testing.assert_allclose(found, by_hand, atol=1e-6)
        inside = (found > -0.5).all(1) & (found < (view.width_px - 0.5, view.height_px - 0.5)).all(1)
        assert (view.width_px, view.height_px) == (1242, 375)
        assert 0.12 < inside.sum() / len(sweep) < 81 / 360  # the camera sees 81 degrees, less the road below it
    rows = np.loadtxt(root / "poses_velodyne_derived.txt").reshape(-1, 3, 4)
    np.testing.assert_allclose([info.world_SE3_lidar[:3] for info in frames], rows, atol=1e-12)


@pytest.mark.parametrize("word", ["inf", "nan", "1e999", "89.5"])
def test_packets_that_are_no_place_are_refused(tmp_path, word):
    """Found by fuzzing: an infinite angle was an error of Python's."""
    for place in range(1 if word == "89.5" else 6):
        numbers = ["49", "8.4", "110", "0", "0", "0"]
        numbers[place] = word
        (tmp_path / "0.txt").write_text(" ".join(numbers))
        with pytest.raises(DriveError, match="is not a packet of latitude"):
            read_oxts_poses([tmp_path / "0.txt"])
