"""SemanticKITTI: labels with their points, camera poses turned into LiDAR poses, and what may be absent."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from hilda_cache.drives import open_drive
from hilda_schema.errors import DriveError, MissingSensor, UsageError

TR = np.c_[np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]) @ Rotation.from_euler("y", 0.02).as_matrix(), (0, -0.08, -0.3)]
P2 = np.array([[70.0, 0, 60, 44.8], [0, 71, 17, 0.21], [0, 0, 1, 0.0027]])


def write_sequence(folder, scans=3, seed=0):
    rng = np.random.default_rng(seed)
    for name in ("velodyne", "labels", "image_2"):
        (folder / name).mkdir(parents=True)
    for index in range(scans):
        sweep = np.c_[rng.uniform(-40, 40, (25, 3)), rng.uniform(0, 1, 25)].astype("<f4")
        sweep.tofile(folder / f"velodyne/{index:06d}.bin")
        labels = rng.integers(0, 260, 25) | rng.integers(0, 1 << 16, 25) << 16
        labels.astype("<u4").tofile(folder / f"labels/{index:06d}.label")
        Image.new("RGB", (124, 37)).save(folder / f"image_2/{index:06d}.png")
    rows = {**{f"P{number}": P2 for number in range(4)}, "Tr": TR}
    text = "".join(f"{name}: {' '.join(map(repr, values.ravel().tolist()))}\n" for name, values in rows.items())
    (folder / "calib.txt").write_text(text)
    poses = [np.c_[Rotation.from_euler("y", 0.1 * i).as_matrix(), (0, 0, 1.5 * i)].ravel() for i in range(scans)]
    np.savetxt(folder / "poses.txt", poses, fmt="%.17g")
    (folder / "times.txt").write_text("".join(f"{0.1037 * i:.6e}\n" for i in range(scans)))


@pytest.fixture
def root(tmp_path):
    write_sequence(tmp_path / "sequences/08")
    return tmp_path


def test_labels_are_the_lower_half_of_each_word_and_stay_with_their_points(root):
    path = root / "sequences/08/velodyne/000001.bin"
    rows = np.fromfile(path, np.float32).reshape(-1, 4)
    rows[[2, 7], 0] = np.nan
    rows.tofile(path)
    drive = open_drive("semantickitti", root)

    frame = drive.read(drive.frames("08")[1])

    kept = np.delete(np.arange(25), [2, 7])
    words = np.fromfile(root / "sequences/08/labels/000001.label", np.uint32)
    assert frame.report.non_finite == 2
    np.testing.assert_array_equal(frame.points.label, words[kept] % 65536)
    np.testing.assert_array_equal(frame.points.xyz_m, rows[kept, :3])
    assert (words > 65535).any()


def test_poses_of_camera_0_become_poses_of_the_lidar(root):
    """A vehicle that its camera sees going along z goes along the LiDAR's x, and turns left about z for -y."""
    frames = open_drive("semantickitti", root).frames("08")
    full = np.vstack([TR, (0, 0, 0, 1)])
    for index, info in enumerate(frames):
        pose = np.eye(4)
        pose[:3, :3], pose[2, 3] = Rotation.from_euler("y", 0.1 * index).as_matrix(), 1.5 * index
        np.testing.assert_allclose(info.world_SE3_lidar, np.linalg.inv(full) @ pose @ full, atol=1e-12)
        assert (info.ego_SE3_lidar == np.eye(4)).all()
    assert frames[2].world_SE3_lidar[0, 3] == pytest.approx(3, abs=0.1)
    assert [info.stamp_ns for info in frames] == [0, 103_700_000, 207_400_000]


def test_projection_is_the_benchmarks_product(root):
    info = open_drive("semantickitti", root).frames("08")[2]
    (view,) = info.cameras
    points = np.random.default_rng(1).uniform((2, -10, -2), (40, 10, 1), (50, 3))
    by_hand = np.c_[points, np.ones(50)] @ (P2 @ np.vstack([TR, (0, 0, 0, 1)])).T
    cam_SE3_lidar = view.cam_SE3_ego @ np.linalg.inv(view.world_SE3_ego) @ info.world_SE3_lidar
    found = (points @ cam_SE3_lidar[:3, :3].T + cam_SE3_lidar[:3, 3]) @ view.intrinsics.T
    np.testing.assert_allclose(found[:, :2] / found[:, 2:], by_hand[:, :2] / by_hand[:, 2:], atol=1e-8)
    assert (view.name, view.width_px, view.height_px) == ("image_2", 124, 37)
    assert view.image_path == root / "sequences/08/image_2/000002.png"


def test_archives_unpack_below_dataset_too(root):
    (root / "dataset").mkdir()
    shutil.move(root / "sequences", root / "dataset/sequences")
    assert open_drive("semantickitti", root).scenes() == ("08",)
    assert open_drive("semantickitti", root / "dataset").scenes() == ("08",)


def test_lidar_and_labels_alone_will_do(root):
    """As SemanticKITTI's own archive is, without the odometry benchmark's images."""
    shutil.rmtree(root / "sequences/08/image_2")
    drive = open_drive("semantickitti", root)
    assert (drive.camera_names, drive.frames("08")[0].cameras) == ((), ())

    for name in ("calib.txt", "poses.txt", "times.txt"):
        (root / "sequences/08" / name).unlink()
    frames = open_drive("semantickitti", root, poses="identity").frames("08")
    assert all((info.world_SE3_lidar == np.eye(4)).all() for info in frames)
    assert [info.stamp_ns for info in frames] == [0, 100_000_000, 200_000_000]
    with pytest.raises(DriveError, match=r'calib.txt is not there.*poses="identity"'):
        open_drive("semantickitti", root).frames("08")


def test_unlabelled_sequences_have_no_labels(root):
    shutil.rmtree(root / "sequences/08/labels")
    drive = open_drive("semantickitti", root)
    assert drive.read(drive.frames("08")[0]).points.label is None


def test_images_without_calibration_cannot_be_used(root):
    (root / "sequences/08/calib.txt").unlink()
    with pytest.raises(DriveError, match=r"image_2 cannot be projected on without .*calib.txt"):
        open_drive("semantickitti", root, poses="identity").frames("08")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("times.txt", "0.0\n0.1\n", "none for frame 000002"),
        ("times.txt", "0.0\n0.1\n0.1\n", "not later"),
        ("times.txt", "0\nnoon\n1\n", "other than seconds"),
        ("times.txt", "0\nnan\n1\n", "other than seconds"),
        ("times.txt", "0\ninf\n1\n", "other than seconds"),
        ("poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n", "none for frame 000002"),
        ("poses.txt", "1 0 0 0 0 1 0 0 0 0 0 0\n" * 3, "line 1"),
        ("calib.txt", "P2: 1 2 3\n", "calib.txt"),
        ("calib.txt", "P0: 1\nP0: 1\n", "twice"),
    ],
)
def test_broken_tables_are_named(root, name, text, said):
    (root / "sequences/08" / name).write_text(text)
    with pytest.raises(DriveError, match=rf"{name}.*{said}|{said}"):
        open_drive("semantickitti", root).frames("08")


def test_labels_that_do_not_fit_their_points_are_refused(root):
    drive = open_drive("semantickitti", root)
    info = drive.frames("08")[1]
    path = info.lidar_paths[1]
    whole = path.read_bytes()
    for data in (whole[:-4], whole[:-1], whole + bytes(4)):
        path.write_bytes(data)
        with pytest.raises(DriveError, match=r"^semantickitti/08/000001: .*000001.label holds .* for 25 points"):
            drive.read(info)
    path.unlink()
    with pytest.raises(MissingSensor, match=r"000001.label is not there"):
        drive.read(info)


def test_wrong_requests_are_named(root):
    with pytest.raises(UsageError, match="poses='mine'"):
        open_drive("semantickitti", root, poses="mine")
    with pytest.raises(UsageError, match="did you mean '08'"):
        open_drive("semantickitti", root).frames("8")
    with pytest.raises(DriveError, match="holds no scene"):
        open_drive("semantickitti", root / "sequences/08")


def test_real_scan_without_images_or_calibration(sample_data):
    root = sample_data / "data" / "semantickitti"
    drive = open_drive("semantickitti", root)
    (info,) = drive.frames("00")
    frame = drive.read(info)

    words = np.fromfile(root / "sequences/00/labels/000000.label", np.uint32)
    assert (drive.camera_names, info.cameras, len(frame.points)) == ((), (), 124_668)
    np.testing.assert_array_equal(frame.points.label, words & 0xFFFF)
    road = frame.points.xyz_m[(frame.points.label == 40) & (np.abs(frame.points.xyz_m[:, 0]) < 10)]
    assert np.median(road[:, 2]) == pytest.approx(-1.73, abs=0.1)  # KITTI's published mounting height
