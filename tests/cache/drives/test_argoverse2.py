"""Argoverse 2 against its own tables read by pyarrow and turned by scipy, and Feather files that lie."""

from __future__ import annotations

import resource
import shutil
import struct

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hilda_cache.drives import open_drive
from hilda_cache.drives.argoverse2 import UP_LIDAR_IN_EGO_M
from hilda_cache.drives.feather import read_feather
from hilda_cache.drives.files import MAX_SWEEP_BYTES
from hilda_schema.errors import DriveError, MissingSensor, UsageError

LOG = "7fab2350-7eaf-3b7e-a39d-6937a4c1bede"
SWEEPS_NS = (315966265259836000, 315966265360032000, 315966265459927000)
RING, STEREO = "ring_front_center", "stereo_front_left"
UP_LIDAR = ((0.999987, 0.0, 0.005, 0.0), (1.35018, 0.0, 1.64042))
MOUNTS = {
    RING: ((0.5016, -0.4986, 0.4999, -0.4999), (1.63, 0.0, 1.4)),
    STEREO: ((0.5, -0.5, 0.5, -0.5), (1.62, 0.25, 1.2)),
    "up_lidar": UP_LIDAR,
}


def write(path, compression="zstd", **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.feather.write_feather(pa.table(columns), path, compression=compression)


def pose_columns(poses):
    quaternions = np.array([rotation for rotation, _ in poses])
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    table = np.c_[quaternions, [translation for _, translation in poses]]
    return dict(zip(("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m"), table.T, strict=True))


def write_log(folder, images=True, calibration=True, seed=0):
    rng = np.random.default_rng(seed)
    for stamp_ns in SWEEPS_NS:
        write(
            folder / f"sensors/lidar/{stamp_ns}.feather",
            **{name: rng.uniform(-60, 60, 50).astype(np.float16) for name in "xyz"},
            intensity=rng.integers(0, 256, 50).astype(np.uint8),
            laser_number=rng.integers(0, 64, 50).astype(np.uint8),
            offset_ns=rng.integers(0, 10**8, 50).astype(np.int32),
        )
    ring = [stamp_ns + offset_ns for stamp_ns in SWEEPS_NS for offset_ns in (-20_000_000, 9_000_000, 30_000_000)]
    stereo = [SWEEPS_NS[0] + 40_000_000, SWEEPS_NS[2] + 40_000_000]
    if images:
        for name, stamps_ns in ((RING, ring), (STEREO, stereo)):
            (folder / "sensors/cameras" / name).mkdir(parents=True)
            for stamp_ns in stamps_ns:
                (folder / "sensors/cameras" / name / f"{stamp_ns}.jpg").write_bytes(b"not opened")
    stamps_ns = sorted({*SWEEPS_NS, *ring, *stereo})
    turn = [
        Rotation.from_euler("z", 1e-9 * (stamp_ns - SWEEPS_NS[0])).as_quat()[[3, 0, 1, 2]] for stamp_ns in stamps_ns
    ]
    along = [(4000 + 1e-8 * (stamp_ns - SWEEPS_NS[0]), -900, 20) for stamp_ns in stamps_ns]
    poses = pose_columns(list(zip(turn, along, strict=True)))
    write(folder / "city_SE3_egovehicle.feather", timestamp_ns=np.array(stamps_ns), **poses)
    if calibration:
        write(
            folder / "calibration/egovehicle_SE3_sensor.feather",
            sensor_name=list(MOUNTS),
            **pose_columns(list(MOUNTS.values())),
        )
        write(
            folder / "calibration/intrinsics.feather",
            sensor_name=[RING, STEREO],
            fx_px=[1776.0, 1690.5],
            fy_px=[1776.0, 1690.5],
            cx_px=[778.0, 1024.0],
            cy_px=[1013.5, 767.0],
            k1=[-0.24, -0.28],
            k2=[-0.21, -0.04],
            k3=[0.33, 0.1],
            height_px=np.array([2048, 1550], np.uint16),
            width_px=np.array([1550, 2048], np.uint16),
        )


@pytest.fixture
def root(tmp_path):
    write_log(tmp_path / "sensor/val" / LOG)
    return tmp_path


def matrix(wxyz, translation_m):
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_quat(np.array(wxyz)[[1, 2, 3, 0]]).as_matrix()
    transform[:3, 3] = translation_m
    return transform


def poses_of(path):
    """stamp or name -> matrix, by pyarrow and scipy."""
    table = pyarrow.feather.read_table(path).to_pydict()
    names = table.get("timestamp_ns") or table["sensor_name"]
    rows = zip(*(table[name] for name in ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")), strict=True)
    return {name: matrix(row[:4], row[4:]) for name, row in zip(names, rows, strict=True)}


@pytest.mark.parametrize("above", ["", "sensor", "sensor/val"])
def test_logs_are_found_below_dataset_split_or_nothing(root, above):
    write_log(root / "sensor/val/adcf7d18", calibration=False)
    drive = open_drive("argoverse2", root / above)
    assert drive.scenes() == (LOG, "adcf7d18")
    assert [info.stamp_ns for info in drive.frames(LOG)] == list(SWEEPS_NS)
    assert str(drive.frames(LOG)[1].key) == f"argoverse2/{LOG}/{SWEEPS_NS[1]}"
    assert len(drive.camera_names) == 9


def test_points_go_from_the_vehicle_to_the_upper_lidar(root):
    drive = open_drive("argoverse2", root)
    for info in drive.frames(LOG):
        table = pyarrow.feather.read_table(info.lidar_paths[0]).to_pandas()
        in_ego = table[["x", "y", "z"]].to_numpy().astype(float)
        expected = np.c_[in_ego, np.ones(50)] @ np.linalg.inv(matrix(*UP_LIDAR)).T
        points = drive.read(info).points
        np.testing.assert_allclose(points.xyz_m, expected[:, :3], atol=1e-5)
        np.testing.assert_array_equal(points.intensity, table.intensity)
        np.testing.assert_array_equal(points.ring, table.laser_number)
        np.testing.assert_array_equal(points.time_offset_ns, table.offset_ns)
        np.testing.assert_allclose(info.ego_SE3_lidar, matrix(*UP_LIDAR), atol=1e-12)


def test_images_are_the_nearest_in_time_with_the_pose_of_their_own_stamp(root):
    drive = open_drive("argoverse2", root)
    frames = drive.frames(LOG)
    city_SE3_ego = poses_of(root / "sensor/val" / LOG / "city_SE3_egovehicle.feather")
    for info in frames:
        ring, stereo = info.cameras
        assert ring.stamp_ns == info.stamp_ns + 9_000_000
        assert ring.image_path == root / f"sensor/val/{LOG}/sensors/cameras/{RING}/{ring.stamp_ns}.jpg"
        assert ring.image_path.exists()
        for view in info.cameras:
            np.testing.assert_allclose(view.world_SE3_ego, city_SE3_ego[view.stamp_ns], atol=1e-9)
            np.testing.assert_allclose(np.linalg.inv(view.cam_SE3_ego), matrix(*MOUNTS[view.name]), atol=1e-3)
        np.testing.assert_allclose(info.world_SE3_ego, city_SE3_ego[info.stamp_ns], atol=1e-9)
        assert (ring.width_px, ring.height_px, stereo.width_px) == (1550, 2048, 2048)
        np.testing.assert_array_equal(ring.intrinsics, [[1776, 0, 778], [0, 1776, 1013.5], [0, 0, 1]])
        assert ring.distortion == ()
    # 40 ms after the first, 60 ms before the second, 40 ms after the third sweep
    assert [info.cameras[1].stamp_ns - SWEEPS_NS[0] for info in frames] == [40_000_000, 40_000_000, 240_091_000]


def test_an_image_of_another_sweep_does_not_stand_in_for_a_missing_one(root):
    folder = root / f"sensor/val/{LOG}/sensors/cameras/{RING}"
    for offset_ns in (-20_000_000, 9_000_000):
        (folder / f"{SWEEPS_NS[1] + offset_ns}.jpg").unlink()
    views = [info.cameras[0] for info in open_drive("argoverse2", root).frames(LOG)]
    assert [view.image_path.exists() for view in views] == [True, False, True]
    assert views[1].image_path.name == f"{SWEEPS_NS[1]}.jpg"


def test_a_log_without_images_has_views_whose_images_are_missing(root):
    shutil.rmtree(root / f"sensor/val/{LOG}/sensors/cameras")
    for info in open_drive("argoverse2", root).frames(LOG):
        assert [view.image_path.exists() for view in info.cameras] == [False, False]
        assert {view.stamp_ns for view in info.cameras} == {info.stamp_ns}


def test_a_log_without_calibration_has_no_cameras(tmp_path):
    write_log(tmp_path / LOG, calibration=False)
    drive = open_drive("argoverse2", tmp_path)
    info = drive.frames(LOG)[0]
    assert (drive.camera_names, info.cameras) == ((), ())
    np.testing.assert_array_equal(info.ego_SE3_lidar[:3, 3], UP_LIDAR_IN_EGO_M)
    assert len(drive.read(info).points) == 50


def test_a_camera_without_intrinsics_is_left_out(root):
    """Some published logs lack the stereo cameras."""
    path = root / f"sensor/val/{LOG}/calibration/intrinsics.feather"
    pyarrow.feather.write_feather(pyarrow.feather.read_table(path).slice(0, 1), path)
    assert [view.name for view in open_drive("argoverse2", root).frames(LOG)[0].cameras] == [RING]


def test_non_finite_points_are_dropped_with_their_rows_and_counted(root):
    drive = open_drive("argoverse2", root)
    info = drive.frames(LOG)[0]
    table = pyarrow.feather.read_table(info.lidar_paths[0]).to_pandas()
    table.loc[3, "x"], table.loc[8, "z"] = np.nan, np.inf
    table.to_feather(info.lidar_paths[0])
    frame = drive.read(info)
    assert frame.report.non_finite == 2
    np.testing.assert_array_equal(frame.points.ring, table.laser_number.drop([3, 8]))
    assert np.isfinite(frame.points.xyz_m).all()


def without(table, rows):
    return table[~rows].reset_index(drop=True)


def change(path, edit):
    table = pyarrow.feather.read_table(path).to_pandas()
    edit(table).to_feather(path)


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        ("city_SE3_egovehicle", lambda table: table.drop(columns="qw"), "no column 'qw'"),
        (
            "city_SE3_egovehicle",
            lambda table: table[table.timestamp_ns != SWEEPS_NS[1]].reset_index(drop=True),
            "no pose",
        ),
        ("city_SE3_egovehicle", lambda table: table.assign(qw=7.0), "norm"),
        ("city_SE3_egovehicle", lambda table: table.assign(tx_m=np.nan), "not finite"),
        ("city_SE3_egovehicle", lambda table: table.assign(tx_m="east"), "not numbers"),
        ("city_SE3_egovehicle", lambda table: table.assign(tx_m=True), "not numbers"),
        (
            "calibration/egovehicle_SE3_sensor",
            lambda table: table[table.sensor_name != RING].reset_index(drop=True),
            RING,
        ),
        ("calibration/egovehicle_SE3_sensor", lambda table: table.assign(qx=None), "column 'qx'"),
        ("calibration/egovehicle_SE3_sensor", lambda table: table.assign(sensor_name=7), "not text"),
        ("city_SE3_egovehicle", lambda table: table.assign(timestamp_ns=0.5), "timestamp_ns"),
        ("calibration/intrinsics", lambda table: table.assign(fx_px=-1.0), "usable"),
        ("calibration/intrinsics", lambda table: table.assign(width_px=0), "usable"),
        ("calibration/intrinsics", lambda table: table.assign(height_px=1e9), "usable"),
        ("calibration/intrinsics", lambda table: table.assign(cx_px=np.inf), "usable"),
    ],
)
def test_broken_tables_are_named(root, name, edit, said):
    path = root / f"sensor/val/{LOG}/{name}.feather"
    change(path, edit)
    with pytest.raises(DriveError, match=rf"{said}") as caught:
        open_drive("argoverse2", root).frames(LOG)
    assert path.parent.name in str(caught.value)


@pytest.mark.parametrize("name", ["city_SE3_egovehicle", "calibration/egovehicle_SE3_sensor", "calibration/intrinsics"])
def test_absent_tables_are_no_missing_sensor(root, name):
    path = root / f"sensor/val/{LOG}/{name}.feather"
    path.unlink()
    with pytest.raises(DriveError, match=f"{path.name} is not there") as caught:
        open_drive("argoverse2", root).frames(LOG)
    assert not isinstance(caught.value, MissingSensor)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda table: table.drop(columns="laser_number"), "no column 'laser_number'"),
        (lambda table: table.assign(laser_number=300), "laser_number"),
        (lambda table: table.assign(offset_ns=2**40), "offset_ns"),
        (lambda table: table.assign(offset_ns=0.5), "offset_ns"),
        (lambda table: table.assign(y=1e9), "no LiDAR sees"),
        (lambda table: table.assign(x="north"), "not numbers"),
    ],
)
def test_sweeps_of_another_content_are_refused_naming_file_and_frame(root, edit, said):
    drive = open_drive("argoverse2", root)
    info = drive.frames(LOG)[1]
    change(info.lidar_paths[0], edit)
    with pytest.raises(DriveError, match=rf"^argoverse2/{LOG}/{SWEEPS_NS[1]}: .*{SWEEPS_NS[1]}.feather.*{said}"):
        drive.read(info)


def test_absent_empty_and_cut_sweeps_are_named(root):
    drive = open_drive("argoverse2", root)
    info = drive.frames(LOG)[1]
    path = info.lidar_paths[0]
    whole = path.read_bytes()
    no_message = b"ARROW1\0\0" + b"\xff\xff\xff\xff\0\0\0\0" + b"ARROW1"
    for data in (b"", whole[:-1], whole[: len(whole) // 2], b"FEA1" + whole[4:], b"ARROW1ARROW1", no_message):
        path.write_bytes(data)
        with pytest.raises(DriveError, match=rf"^argoverse2/{LOG}/{SWEEPS_NS[1]}: .*{path.name}"):
            drive.read(info)
    path.unlink()
    with pytest.raises(MissingSensor, match=rf"{path.name} is not there"):
        drive.read(info)


def test_files_not_named_by_a_stamp_and_logs_of_one_name_are_refused(root):
    odd = root / f"sensor/val/{LOG}/sensors/lidar/copy of a sweep.feather"
    odd.touch()
    with pytest.raises(DriveError, match="copy of a sweep"):
        open_drive("argoverse2", root).frames(LOG)
    shutil.copytree(root / "sensor/val", root / "sensor/test")
    with pytest.raises(DriveError, match="have one name"):
        open_drive("argoverse2", root)
    with pytest.raises(UsageError, match="has no option 'lidar'"):
        open_drive("argoverse2", root, lidar="up")


# Feather files that lie


def columns(rows=1000):
    names = pa.array([f"sensor {row % 7}" for row in range(rows)], pa.string())
    return {"x": np.arange(rows, dtype=np.float32), "name": names}


@pytest.mark.parametrize("compression", ["zstd", "lz4", "uncompressed"])
@pytest.mark.parametrize("rows", [0, 1, 1000, 200_000])  # the last makes several record batches
def test_columns_are_those_that_pyarrow_reads(tmp_path, compression, rows):
    write(tmp_path / "a.feather", compression, **columns(rows))
    found = read_feather(tmp_path / "a.feather", ("x",), ("name",))
    np.testing.assert_array_equal(found["x"], np.arange(rows, dtype=np.float32))
    assert list(found["name"]) == columns(rows)["name"].to_pylist()


def test_a_real_bomb_is_refused_before_it_is_inflated(tmp_path):
    zeros = pa.chunked_array([pa.array(np.zeros(1 << 18))] * 140)  # 280 MiB, of 2 MiB in memory
    write(tmp_path / "a.feather", "zstd", x=zeros)
    assert (tmp_path / "a.feather").stat().st_size < MAX_SWEEP_BYTES / 50
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DriveError, match=r"a.feather claims \d+ bytes"):
        read_feather(tmp_path / "a.feather", ("x",))
    # Batches before the one that goes beyond the limit have been decoded.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.2 * MAX_SWEEP_BYTES / 1024


@pytest.mark.parametrize("claim", [1 << 40, (1 << 63) - 1, -2, -(1 << 63)])
def test_a_buffer_that_claims_too_much_is_refused(tmp_path, claim):
    path = tmp_path / "a.feather"
    write(path, "zstd", x=np.zeros(1000))
    data = path.read_bytes()
    assert data.count(struct.pack("<q", 8000)) >= 1
    path.write_bytes(data.replace(struct.pack("<q", 8000), struct.pack("<q", claim), 1))
    with pytest.raises(DriveError, match=r"a.feather"):
        read_feather(path, ("x",))


def test_dictionaries_and_nested_columns_are_no_part_of_the_format(tmp_path):
    write(tmp_path / "a.feather", x=pa.array(["a", "b"]).dictionary_encode())
    with pytest.raises(DriveError, match="dictionary"):
        read_feather(tmp_path / "a.feather", ("x",))
    write(tmp_path / "b.feather", x=pa.array([[1], [2, 3]]))
    with pytest.raises(DriveError, match="not numbers"):
        read_feather(tmp_path / "b.feather", ("x",))


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["x", "x"])
    with pa.OSFile(str(tmp_path / "a.feather"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DriveError, match=r"a.feather.*twice"):
        read_feather(tmp_path / "a.feather", ("x",))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes_give_columns_or_an_error_and_nothing_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "changed.feather"
    write(path, data.draw(st.sampled_from(["zstd", "uncompressed"])), **columns(20))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = read_feather(path, ("x",), ("name",))
    except DriveError:
        return
    assert len(found["x"]) == len(found["name"])


def test_real_log(sample_data):
    root = sample_data / "data" / "argoverse2"
    drive = open_drive("argoverse2", root)
    assert drive.scenes() == (LOG, "adcf7d18-0510-35b0-a2fa-b4cea13a6d76")
    folder = root / "sensor/val" / LOG
    city_SE3_ego = poses_of(folder / "city_SE3_egovehicle.feather")
    ego_SE3_sensor = poses_of(folder / "calibration/egovehicle_SE3_sensor.feather")
    for info in drive.frames(LOG):
        points = drive.read(info).points
        assert [view.name for view in info.cameras] == list(drive.camera_names)
        assert not any(view.image_path.exists() for view in info.cameras)
        table = pyarrow.feather.read_table(info.lidar_paths[0])
        in_ego = np.stack([table[name].to_numpy() for name in "xyz"], axis=1).astype(float)
        world = in_ego @ city_SE3_ego[info.stamp_ns][:3, :3].T + city_SE3_ego[info.stamp_ns][:3, 3]
        np.testing.assert_allclose(
            points.xyz_m @ info.world_SE3_lidar[:3, :3].T + info.world_SE3_lidar[:3, 3], world, atol=1e-4
        )
        for view in info.cameras:
            expected = np.c_[in_ego, np.ones(len(in_ego))] @ np.linalg.inv(ego_SE3_sensor[view.name]).T
            cam_SE3_lidar = view.cam_SE3_ego @ np.linalg.inv(view.world_SE3_ego) @ info.world_SE3_lidar
            found = points.xyz_m @ cam_SE3_lidar[:3, :3].T + cam_SE3_lidar[:3, 3]
            np.testing.assert_allclose(found, expected[:, :3], atol=1e-4)


@pytest.mark.parametrize("scene", [LOG, "adcf7d18-0510-35b0-a2fa-b4cea13a6d76"])
def test_real_rays_of_the_upper_scanner_meet_in_the_origin(sample_data, scene):
    """A laser keeps its elevation angle as it turns, seen from where it sits, and from nowhere else."""
    drive = open_drive("argoverse2", sample_data / "data" / "argoverse2")
    info = drive.frames(scene)[0]
    points = drive.read(info).points
    xyz_m = points.xyz_m.astype(float)

    def spread_deg(origin_m):
        ray = xyz_m - origin_m
        elevation = np.degrees(np.arctan2(ray[:, 2], np.hypot(ray[:, 0], ray[:, 1])))
        near = np.linalg.norm(ray, axis=1) < 60  # beyond, half-precision coordinates blur the angle
        lasers = [elevation[near & (points.ring == laser)] for laser in range(32)]
        return np.median([np.median(np.abs(angles - np.median(angles))) for angles in lasers])

    assert spread_deg(np.zeros(3)) < 0.05
    assert spread_deg(np.array([0, 0, -0.115])) > 0.08  # the lower scanner
    assert spread_deg(-info.ego_SE3_lidar[:3, 3]) > 1  # the vehicle's origin
