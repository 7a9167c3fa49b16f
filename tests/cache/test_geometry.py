"""Projection against naive float64 arithmetic, the lens against OpenCV, occlusion against a ray caster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import nextafter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_cache.drives import CameraView, FrameInfo, open_drive
from hilda_cache.geometry import CELL_DEG, MIN_DEPTH_M, OCCLUSION, cam_SE3_lidar, distort, monotone_radius, project
from hilda_schema.content import Pairs
from hilda_schema.keys import Key

CAM_FROM_EGO_AXES = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])  # ego: x forward, y left, z up
LENS = (-0.1582, -0.0266, -0.00015221, 0.00059011, 0.0449)  # a PandaSet side camera, before rectification


def se3(rotation: np.ndarray, translation: np.ndarray | list[float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, translation
    return matrix


def turn(axis: int, radians: float) -> np.ndarray:
    c, s = np.cos(radians), np.sin(radians)
    rotation = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    rotation[[i, i, j, j], [i, j, i, j]] = [c, -s, s, c]
    return rotation


def random_pose(rng: np.random.Generator, reach_m: float) -> np.ndarray:
    rotation = turn(0, rng.uniform(-0.1, 0.1)) @ turn(1, rng.uniform(-0.1, 0.1)) @ turn(2, rng.uniform(-4, 4))
    return se3(rotation, rng.uniform(-reach_m, reach_m, 3))


def view(
    width: int = 640, height: int = 480, focal: float = 400.0, distortion: tuple[float, ...] = (), **frames: np.ndarray
) -> CameraView:
    """A camera looking along its own z; with no frames given, it sits in the LiDAR's."""
    K = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    cam_SE3_ego = frames.get("cam_SE3_ego", np.eye(4))
    world_SE3_ego = frames.get("world_SE3_ego", np.eye(4))
    return CameraView("cam", Path("cam.jpg"), 0, K, cam_SE3_ego, world_SE3_ego, width, height, distortion)


def frame_of(*views: CameraView, ego_SE3_lidar: np.ndarray | None = None) -> FrameInfo:
    lidar = np.eye(4) if ego_SE3_lidar is None else ego_SE3_lidar
    return FrameInfo(Key("toy", "scene", "0"), 0, (), lidar, np.eye(4), views)


def random_frame(rng: np.random.Generator, world_m: float, cameras: int = 4) -> FrameInfo:
    """A vehicle somewhere in a large world, moved and turned a little when each image is taken."""
    world_SE3_ego = random_pose(rng, world_m)
    views = []
    for index in range(cameras):
        motion = se3(turn(2, rng.uniform(-0.05, 0.05)), rng.uniform(-1, 1, 3))
        mounted = se3(CAM_FROM_EGO_AXES @ turn(2, rng.uniform(-4, 4)), rng.uniform(-1.5, 1.5, 3))
        views.append(
            view(
                1600, 900, 1200.0, LENS if index % 2 else (), cam_SE3_ego=mounted, world_SE3_ego=world_SE3_ego @ motion
            )
        )
    lidar = se3(turn(2, rng.uniform(-4, 4)), rng.uniform(-2, 2, 3))
    return FrameInfo(Key("toy", "scene", "0"), 0, (), lidar, world_SE3_ego, tuple(views))


def naive_pixel(point: np.ndarray, frame: FrameInfo, camera: CameraView) -> tuple[float, float, float]:
    """One point, one camera, each change of frame for itself."""
    in_ego = frame.ego_SE3_lidar[:3, :3] @ point + frame.ego_SE3_lidar[:3, 3]
    in_world = frame.world_SE3_ego[:3, :3] @ in_ego + frame.world_SE3_ego[:3, 3]
    in_ego_then = np.linalg.solve(camera.world_SE3_ego[:3, :3], in_world - camera.world_SE3_ego[:3, 3])
    x, y, z = camera.cam_SE3_ego[:3, :3] @ in_ego_then + camera.cam_SE3_ego[:3, 3]
    if z == 0:
        return np.nan, np.nan, z
    x, y = x / z, y / z
    if camera.distortion:
        k1, k2, p1, p2, k3 = camera.distortion
        r = np.hypot(x, y)
        if r >= monotone_radius(camera.distortion):
            return np.nan, np.nan, z
        bend = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6
        x, y = (
            x * bend + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2),
            y * bend + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y,
        )
    u, v, _ = camera.intrinsics @ (x, y, 1.0)
    return u, v, z


def naive_pairs(points: np.ndarray, frame: FrameInfo) -> dict[tuple[int, int], tuple[float, float, float]]:
    pairs = {}
    for number, camera in enumerate(frame.cameras):
        for row, point in enumerate(points.astype(np.float64)):
            u, v, z = naive_pixel(point, frame, camera)
            if z > 1.0 and -0.5 <= u < camera.width_px - 0.5 and -0.5 <= v < camera.height_px - 0.5:
                pairs[number, row] = (u, v, z)
    return pairs


def assert_same(pairs: Pairs, expected: dict[tuple[int, int], tuple[float, float, float]]) -> None:
    keys = list(zip(pairs.camera.tolist(), pairs.point.tolist(), strict=True))
    assert keys == sorted(expected)
    values = np.array([expected[key] for key in keys]).reshape(-1, 3)
    np.testing.assert_allclose(pairs.uv_px, values[:, :2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(pairs.depth_m, values[:, 2], rtol=1e-6)


# --- the way of a point ---------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 100.0, 50_000.0]))
def test_pixels_follow_every_change_of_frame(seed: int, world_m: float) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, world_m)
    points = rng.uniform(-40, 40, (60, 3)).astype(np.float32)
    assert_same(project(points, frame), naive_pairs(points, frame))


def test_ego_motion_between_sweep_and_image_moves_the_pixel() -> None:
    drove_1m = view(cam_SE3_ego=se3(CAM_FROM_EGO_AXES, [0, 0, 0]), world_SE3_ego=se3(np.eye(3), [1.0, 0, 0]))
    pairs = project(np.array([[11.0, -2.0, 0.5]], np.float32), frame_of(drove_1m))
    np.testing.assert_allclose(pairs.uv_px, [[320 + 400 * 2 / 10, 240 - 400 * 0.5 / 10]])
    np.testing.assert_allclose(pairs.depth_m, [10.0])


@pytest.mark.parametrize(
    ("dataset", "folder", "frames"),
    [("nuscenes", "nuscenes_keyframe", 1), ("pandaset", "pandaset", 11), ("kitti_raw", "kitti_raw", 20)],
)
def test_real_sweeps_agree_with_naive_arithmetic(sample_data: Path, dataset: str, folder: str, frames: int) -> None:
    options = {"version": "v1.0-test"} if dataset == "nuscenes" else {}
    drive = open_drive(dataset, sample_data / "data" / folder, **options)
    infos = drive.frames(drive.scenes()[0])
    assert len(infos) == frames
    frame = drive.read(infos[-1])
    points = frame.points.xyz_m
    pairs = project(points, frame.info)
    some = np.arange(0, len(points), 97)
    expected = naive_pairs(points[some], frame.info)
    kept = np.isin(pairs.point, some)
    row_in_some = np.searchsorted(some, pairs.point[kept]).astype(np.uint32)
    picked = Pairs(row_in_some, *(each[kept] for each in (pairs.camera, pairs.uv_px, pairs.depth_m, pairs.visible)))
    assert_same(picked, expected)
    assert set(pairs.camera.tolist()) == set(range(len(infos[0].cameras)))
    assert 0.002 < 1 - pairs.visible.mean() < 0.1  # some points are hidden, most are not


# --- which points make a pair ---------------------------------------------------------------------------------------

# Powers of two keep u = f x / z exact, so that a border can be met to the last bit.
EXACT = replace(view(64, 32, 64.0), intrinsics=np.diag([64.0, 64.0, 1.0]))


def pixel_of(u: float, v: float, depth_m: float = 2.0) -> np.ndarray:
    return np.array([[u / 64 * depth_m, v / 64 * depth_m, depth_m]])


@pytest.mark.parametrize(
    ("u", "v", "inside"),
    [
        (-0.5, -0.5, True),
        (nextafter(-0.5, -1), 0, False),
        (0, nextafter(-0.5, -1), False),
        (63.5, 0, False),
        (nextafter(63.5, 0), 0, True),
        (0, 31.5, False),
        (0, nextafter(31.5, 0), True),
    ],
)
def test_the_image_spans_from_minus_half_to_half_before_its_size(u: float, v: float, inside: bool) -> None:
    assert len(project(pixel_of(u, v), frame_of(EXACT))) == inside


def test_depth_must_exceed_one_metre() -> None:
    assert MIN_DEPTH_M == 1.0
    depths = [1.0, nextafter(1.0, 2), 0.0, -5.0]
    pairs = project(np.array([[0.0, 0.0, depth] for depth in depths]), frame_of(EXACT))
    assert pairs.point.tolist() == [1]


@given(st.lists(st.tuples(st.floats(-90, 90), st.floats(-90, 90), st.floats(-90, 90)), max_size=30))
def test_a_pair_is_a_point_in_front_and_in_the_image(points: list[tuple[float, float, float]]) -> None:
    cloud = np.array(points, np.float32).reshape(-1, 3)
    pairs = project(cloud, frame_of(EXACT))
    x, y, z = cloud.astype(np.float64).T
    with np.errstate(all="ignore"):
        u, v = 64 * (x / z), 64 * (y / z)
        member = (z > 1) & (u >= -0.5) & (u < 63.5) & (v >= -0.5) & (v < 31.5)
    assert pairs.point.tolist() == np.flatnonzero(member).tolist()


@pytest.mark.parametrize("frame", [frame_of(), frame_of(EXACT, EXACT)])
def test_empty_clouds_and_rigs_make_no_pairs(frame: FrameInfo) -> None:
    for cloud in (np.zeros((0, 3), np.float32), np.full((3, 3), -4.0, np.float32)):
        pairs = project(cloud, frame)
        assert len(pairs) == 0
        arrays = (pairs.point, pairs.camera, pairs.uv_px, pairs.depth_m, pairs.visible)
        assert [array.dtype for array in arrays] == ["u4", "u1", "f8", "f4", "?"]
        assert pairs.uv_px.shape == (0, 2)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_order_of_points_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, 1000.0)
    # rows of points one above the other, so that there is something to hide
    azimuth, height = rng.uniform(-4, 4, 80), np.linspace(-2, 2, 6)
    reach = rng.uniform(3, 30, (80, 1))
    across = np.stack([np.cos(azimuth), np.sin(azimuth)], 1)[:, None] * reach[..., None] * np.ones((1, 6, 1))
    cloud = np.concatenate([across, np.broadcast_to(height[:, None], (80, 6, 1))], 2).reshape(-1, 3)
    cloud = cloud.astype(np.float32)
    shuffle = rng.permutation(len(cloud))
    straight, shuffled = project(cloud, frame), project(cloud[shuffle], frame)
    back = np.lexsort((shuffle[shuffled.point], shuffled.camera))
    assert shuffle[shuffled.point[back]].tolist() == straight.point.tolist()
    for name in ("camera", "uv_px", "depth_m", "visible"):
        np.testing.assert_array_equal(getattr(shuffled, name)[back], getattr(straight, name))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_pixels_do_not_depend_on_the_other_points(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    frame = random_frame(rng, 1000.0)
    cloud = rng.uniform(-30, 30, (count, 3)).astype(np.float32)
    whole = project(cloud, frame)
    for row in range(0, count, 7):
        alone = project(cloud[row : row + 1], frame)
        np.testing.assert_array_equal(alone.uv_px, whole.uv_px[whole.point == row])


# --- the lens -------------------------------------------------------------------------------------------------------


def test_lens_agrees_with_opencv() -> None:
    # cv2.projectPoints of OpenCV 5.0.0
    rays = np.array([[0.3, -0.2, 2.0], [-1.1, 0.7, 3.0], [2.4, 1.5, 5.0], [-0.05, -1.3, 2.5], [1.9, -1.1, 2.2]])
    expected = {
        LENS: [
            [1130.581517952645, 449.053567143053],
            [661.213706473143, 751.86505915604],
            [1415.495343702666, 806.226696482273],
            [974.042381461088, 79.087749282766],
            [1684.584631040995, 140.786854070476],
        ],
        (0.12, -0.05, 0.004, -0.003, 0.02): [
            [1131.465064852772, 448.51793015763],
            [641.437677105983, 764.7730103974],
            [1452.369159969714, 831.169877994634],
            [971.854676299624, 46.785463997624],
            [1857.157837326961, 42.835733014871],
        ],
    }
    K = np.array([[930.4514, 0, 991.6883], [0, 930.0891, 541.6057], [0, 0, 1]])
    for distortion, pixels in expected.items():
        camera = replace(view(1920, 1080, distortion=distortion), intrinsics=K)
        np.testing.assert_allclose(project(rays, frame_of(camera)).uv_px, pixels, rtol=0, atol=1e-9)


@given(st.floats(-0.6, 0.6), st.floats(-0.7, 0.7), st.floats(-1, 1))
def test_monotone_radius_is_where_the_lens_turns_back(k1: float, k2: float, k3: float) -> None:
    lens = (k1, k2, 0.0, 0.0, k3)
    limit = monotone_radius(lens)
    radius = np.linspace(0, min(limit, 5.0), 2001)
    bent, _ = distort(radius, np.zeros_like(radius), lens)
    assert (np.diff(bent) >= -1e-12).all()
    if limit < 100:
        slope = 1 + 3 * k1 * limit**2 + 5 * k2 * limit**4 + 7 * k3 * limit**6
        scale = 1 + abs(3 * k1) * limit**2 + abs(5 * k2) * limit**4 + abs(7 * k3) * limit**6
        assert abs(slope) < 1e-6 * scale


def test_points_far_outside_are_not_folded_back_into_the_image() -> None:
    barrel = (-0.3, 0.0, 0.0, 0.0, 0.0)  # turns back at r = 1.054, crosses zero again at 1.826
    camera = view(640, 480, 400.0, barrel)
    inside, folded = [0.5, 0.0, 1.5], [1.7 * 2, 0.0, 2.0]
    u, _, _ = naive_pixel(np.array(inside), frame_of(camera), camera)
    bent = 1.7 * (1 - 0.3 * 1.7**2)
    assert 0 < 320 + 400 * bent < 640  # the polynomial alone would put it into the picture
    pairs = project(np.array([inside, folded]), frame_of(camera))
    assert pairs.point.tolist() == [0]
    np.testing.assert_allclose(pairs.uv_px[0, 0], u)


def test_a_lens_of_zeros_is_no_lens() -> None:
    cloud = np.random.default_rng(0).uniform(-20, 20, (500, 3))
    plain, zeros = project(cloud, frame_of(view())), project(cloud, frame_of(view(distortion=(0.0,) * 5)))
    np.testing.assert_array_equal(plain.point, zeros.point)
    np.testing.assert_array_equal(plain.uv_px, zeros.uv_px)


# --- occlusion ------------------------------------------------------------------------------------------------------

Boxes = np.ndarray  # (B, 6): lowest corner, highest corner; metres, ego frame, ground at z = 0


def cast(origin: np.ndarray, rays: np.ndarray, boxes: Boxes) -> np.ndarray:
    """Distance along each ray, in lengths of the ray, to the ground or a box; infinite where there is none."""
    with np.errstate(all="ignore"):
        hit = -origin[2] / rays[:, 2]
        hit[~(hit > 0)] = np.inf
        for box in boxes:
            one, other = (box[:3] - origin) / rays, (box[3:] - origin) / rays
            enter, leave = np.minimum(one, other).max(1), np.maximum(one, other).min(1)
            nearer = (enter <= leave) & (enter > 1e-9) & (enter < hit)
            hit[nearer] = enter[nearer]
    return hit


def spin(origin: np.ndarray, boxes: Boxes, rings_deg: np.ndarray, step_deg: float) -> np.ndarray:
    """What a spinning scanner at `origin` sees of the scene, relative to it."""
    elevation, azimuth = np.meshgrid(np.radians(rings_deg), np.radians(np.arange(-180, 180, step_deg)), indexing="ij")
    rays = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    directions = np.stack(rays, -1).reshape(-1, 3)
    distance = cast(origin, directions, boxes)
    seen = (distance > 1.5) & (distance < 100)
    return directions[seen] * distance[seen, None]


@cache
def street_sweep(scanner: str) -> np.ndarray:
    """What `scanner` sees of the street from `LIDAR_M`; cast once, used by several tests."""
    return spin(LIDAR_M, street(), *SCANNERS[scanner])


def box(x: float, y: float, z: float, length: float, width: float, height: float) -> list[float]:
    return [x - length / 2, y - width / 2, z, x + length / 2, y + width / 2, z + height]


@cache
def street() -> Boxes:
    """House fronts, parked cars, people, poles and trees on both sides of the vehicle."""
    rng = np.random.default_rng(0)
    boxes = []
    for side in (-1, 1):
        boxes += [box(x, side * rng.uniform(13, 17), 0, 14, 2, rng.uniform(4, 12)) for x in np.arange(-50, 50, 15)]
        for x in np.arange(-40, 41, 8):
            boxes.append(box(x + rng.uniform(-1, 1), side * rng.uniform(4, 6), 0.25, 4.5, 1.8, rng.uniform(1.1, 1.6)))
            boxes.append(box(x + 4, side * rng.uniform(7, 10), 0, 0.2, 0.2, 6))
        for x in np.arange(-30, 31, 20):
            boxes.append(box(x, side * rng.uniform(7, 10), 0, 0.5, 0.5, 1.7))
            boxes.append(box(x + 9, side * 9, 0, 0.35, 0.35, 2.6))
            boxes.append(box(x + 9, side * 9, 2.6, 3, 3, 2.6))
    return np.array(boxes)


def rig(lidar_m: np.ndarray, cameras_m: np.ndarray, focal: float = 1250.0) -> FrameInfo:
    """Four cameras looking forward, left, back and right."""
    views = []
    for number, place in enumerate(cameras_m):
        rotation = CAM_FROM_EGO_AXES @ turn(2, -number * np.pi / 2)
        views.append(view(1600, 900, focal, cam_SE3_ego=se3(rotation, -rotation @ place)))
    return frame_of(*views, ego_SE3_lidar=se3(np.eye(3), lidar_m))


LIDAR_M = np.array([0.9, 0.0, 1.9])
SCANNERS = {
    "32 rings": (np.linspace(-30.67, 10.67, 32), 0.33),
    "64 rings": (np.r_[np.linspace(2, -8.33, 32), np.linspace(-8.83, -24.33, 32)], 0.18),
    "uneven": (np.r_[np.arange(-25, -6, 1.5), np.arange(-6, 2, 0.167), [3, 5, 8, 11, 15]], 0.2),
}


@pytest.mark.parametrize(
    ("scanner", "least_recall", "least_precision", "most_lost"),
    [("32 rings", 0.55, 0.95, 0.002), ("64 rings", 0.85, 0.93, 0.006), ("uneven", 0.88, 0.92, 0.012)],
)
def test_hidden_points_of_a_street(scanner: str, least_recall: float, least_precision: float, most_lost: float) -> None:
    cameras_m = np.array([[1.7, 0, 1.5], [1.2, 0.5, 1.5], [0, 0, 1.55], [1.2, -0.5, 1.5]])
    points = street_sweep(scanner)
    pairs = project(points.astype(np.float32), rig(LIDAR_M, cameras_m))
    to_point = points[pairs.point] + LIDAR_M - cameras_m[pairs.camera]
    share = np.empty(len(pairs))
    for number, camera_m in enumerate(cameras_m):
        share[pairs.camera == number] = cast(camera_m, to_point[pairs.camera == number], street())
    ahead_m = (1 - share) * np.linalg.norm(to_point, axis=1)  # by how much something is nearer than the point
    hidden, clear = ahead_m > 0.5, ahead_m < 0.05
    assert hidden.sum() > 500
    assert (~pairs.visible)[hidden].mean() > least_recall
    assert hidden[~pairs.visible].mean() > least_precision
    assert (~pairs.visible)[clear].mean() < most_lost


def test_a_wall_hides_the_wall_behind_it() -> None:
    # The sensor on the roof looks over a wall 2 m high, the camera 0.5 m above the road does not.
    boxes = np.array([box(10, 0, 0, 0.5, 16, 2), box(30, 0, 0, 0.5, 200, 8)])
    lidar_m, camera_m = np.array([0.0, 0.0, 3.0]), np.array([0.0, 0.0, 0.5])
    rings, step = SCANNERS["32 rings"]
    points = spin(lidar_m, boxes, rings, step)
    pairs = project(points.astype(np.float32), rig(lidar_m, camera_m[None]))
    at = points[pairs.point] + lidar_m
    # the ray from the camera to the far wall crosses the near one, well away from its outline
    crossing = camera_m + (at - camera_m) * (9.75 / at[:, :1])
    behind = (at[:, 0] > 29) & (np.abs(crossing[:, 1]) < 7.5) & (crossing[:, 2] < 1.7)
    above = (at[:, 0] > 29) & ((crossing[:, 2] > 2.15) | (np.abs(crossing[:, 1]) > 8.2))
    near = at[:, 0] < 11
    assert behind.sum() > 200
    assert above.sum() > 500
    assert near.sum() > 1000
    assert not pairs.visible[behind].any()
    assert pairs.visible[above].all()
    assert pairs.visible[near].all()


@pytest.mark.parametrize("scanner", SCANNERS)
def test_open_ground_hides_nothing(scanner: str) -> None:
    lidar_m, camera_m = np.array([0.0, 0.0, 1.9]), np.array([1.5, 0.0, 1.2])
    points = spin(lidar_m, np.zeros((0, 6)), *SCANNERS[scanner])
    pairs = project(points.astype(np.float32), rig(lidar_m, camera_m[None]))
    assert len(pairs) > 1000
    assert pairs.visible.all()


@pytest.mark.parametrize("scanner", SCANNERS)
def test_without_parallax_hardly_anything_is_hidden(scanner: str) -> None:
    pairs = project(street_sweep(scanner).astype(np.float32), rig(LIDAR_M, np.tile(LIDAR_M, (4, 1))))
    assert (~pairs.visible).mean() < 0.005


def test_the_rule_is_stated_with_its_parameters() -> None:
    for number in (str(CELL_DEG), "10%", "0.5 m"):
        assert number in OCCLUSION


def test_composed_matrix_is_the_chain_of_its_parts() -> None:
    frame = random_frame(np.random.default_rng(1), 100.0)
    camera = frame.cameras[1]
    chain: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda p: frame.ego_SE3_lidar @ p,
        lambda p: frame.world_SE3_ego @ p,
        lambda p: np.linalg.solve(camera.world_SE3_ego, p),
        lambda p: camera.cam_SE3_ego @ p,
    ]
    point = np.array([3.0, -5.0, 0.7, 1.0])
    expected = point
    for change in chain:
        expected = change(expected)
    np.testing.assert_allclose(cam_SE3_lidar(frame, camera) @ point, expected, atol=1e-10)
