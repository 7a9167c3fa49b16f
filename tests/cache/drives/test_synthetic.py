"""The synthetic world: ray casting against brute force in float64, and a tree whose parts agree with each other."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from hilda_cache.drives import open_drive
from hilda_cache.drives.synthetic import VERSION, make_drive
from hilda_cache.drives.synthetic.categories import CATEGORIES, INDEX
from hilda_cache.drives.synthetic.lidar import RANGE_NOISE_M, sweep
from hilda_cache.drives.synthetic.primitives import Material, Part, Primitives, Shape, intersect, unit_normals
from hilda_cache.drives.synthetic.raycast import (
    GROUND,
    NOTHING,
    camera_rays,
    camera_windows,
    cast,
    categories_of,
    lidar_rays,
    lidar_windows,
)
from hilda_cache.drives.synthetic.render import render, still_shadow
from hilda_cache.drives.synthetic.road import Ground, Region, Road, SideStreet
from hilda_cache.drives.synthetic.scene import draw_scene
from hilda_cache.drives.transforms import quaternion_wxyz
from hilda_schema.errors import UsageError

TINY_IMAGE = (176, 99)  # of the shared tiny drive
STEPS = 1085


# ---- one primitive


def entry_m(shape, rotation, centre, half, origin, direction):
    """Where rays (N, 3) enter a solid, by geometry in metres: faces, caps and the roots of a quadratic; inf for a miss.

    Also how near the ray passes to where the answer changes (0 at an edge or a silhouette), for leaving out what
    rounding decides.
    """
    d = direction @ rotation
    o = np.broadcast_to((origin - centre) @ rotation, d.shape)
    candidates, margins = [np.full(len(d), np.inf)], [np.full(len(d), np.inf)]

    def offer(t, inside, margin):
        candidates.append(np.where(inside & (t > 0), t, np.inf))
        margins.append(margin)

    with np.errstate(all="ignore"):
        if shape == Shape.BOX:
            for axis in range(3):
                for sign in (-1, 1):
                    t = (sign * half[axis] - o[:, axis]) / d[:, axis]
                    over = np.delete(np.abs(o + t[:, None] * d) / half, axis, axis=1).max(axis=1)
                    offer(t, over <= 1, np.abs(over - 1))
        else:
            axes = [0, 1] if shape == Shape.CYLINDER else [0, 1, 2]
            weight = 1 / half[axes] ** 2
            a = (d[:, axes] ** 2 * weight).sum(axis=1)
            b = 2 * (o[:, axes] * d[:, axes] * weight).sum(axis=1)
            c = (o[:, axes] ** 2 * weight).sum(axis=1) - 1
            root = np.sqrt(b * b - 4 * a * c)
            for t in ((-b - root) / (2 * a), (-b + root) / (2 * a)):
                height = np.abs(o[:, 2] + t * d[:, 2]) / half[2] if shape == Shape.CYLINDER else np.zeros(len(d))
                offer(t, height <= 1, np.minimum(np.abs(height - 1), np.abs(1 - (c - b * b / (4 * a) + 1))))
            if shape == Shape.CYLINDER:
                for sign in (-1, 1):
                    t = (sign * half[2] - o[:, 2]) / d[:, 2]
                    radius = ((o + t[:, None] * d)[:, :2] ** 2 * weight).sum(axis=1)
                    offer(t, radius <= 1, np.abs(radius - 1))
        return np.nanmin(candidates, axis=0), np.nanmin(margins, axis=0)


lengths = st.floats(0.05, 15)
angles = st.floats(-np.pi, np.pi)


@settings(deadline=None)
@given(
    shape=st.sampled_from([Shape.BOX, Shape.CYLINDER, Shape.ELLIPSOID]),
    half=st.tuples(lengths, lengths, lengths),
    turn=st.tuples(angles, angles, angles),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_rays_meet_primitives_where_geometry_says(shape, half, turn, seed, dtype):
    rng = np.random.default_rng(seed)
    part = Part(shape, tuple(rng.uniform(-30, 30, 3)), half, Material.METAL, (1, 1, 1), *turn)
    solid = Primitives.of([part], 0)
    size = float(np.linalg.norm(half))
    origin = solid.centre_m[0] + rng.uniform(1.01, 8) * size * unit(rng.standard_normal(3))
    towards = solid.centre_m[0] + rng.uniform(-1.2, 1.2, (200, 3)) * size - origin
    direction = unit(towards) * rng.uniform(0.5, 2, (200, 1))
    expected, margin = entry_m(shape, part.axes(), solid.centre_m[0], np.array(half), origin, direction)

    linear = solid.unit_from_world()[0]
    local = [(linear[k] @ (origin - solid.centre_m[0])).astype(dtype) for k in range(3)]
    found = intersect(shape, local, list((direction @ linear.T).T.astype(dtype)))
    found = np.where(np.isfinite(found) & (found > 0), found, np.inf)

    clear = margin > (1e-2 if dtype is np.float32 else 1e-9)
    np.testing.assert_array_equal(np.isfinite(found[clear]), np.isfinite(expected[clear]))
    hit = clear & np.isfinite(expected)
    # At a thousandth of the silhouette's margin the entry moves by a hundred times the rounding of the ray.
    tolerance = 2e-3 if dtype is np.float32 else 1e-7
    np.testing.assert_allclose(
        found[hit] / np.linalg.norm(towards, axis=1)[hit],
        expected[hit] / np.linalg.norm(towards, axis=1)[hit],
        atol=tolerance,
    )


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def crown_hits(half, origin, direction):
    """Which rays meet a crown at the origin, and where they meet the ellipsoid it is cut from."""
    linear = Primitives.of([Part(Shape.CROWN, (0, 0, 0), half, Material.LEAF, (0, 1, 0))], 0).unit_from_world()[0]
    local, rays = list(linear @ origin), list((direction @ linear.T).T)
    return intersect(Shape.CROWN, local, rays), intersect(Shape.ELLIPSOID, local, rays)


@settings(deadline=None)
@given(half=st.tuples(*[st.floats(0.5, 5)] * 3), seed=st.integers(0, 2**32 - 1))
def test_crowns_are_ellipsoids_with_gaps_at_the_rim(half, seed):
    rng = np.random.default_rng(seed)
    origin = unit(rng.standard_normal(3)) * 40
    surface = unit(rng.standard_normal((2000, 3))) * half
    crown, solid = crown_hits(half, origin, surface - origin)
    kept = np.isfinite(crown)
    np.testing.assert_array_equal(crown[kept], solid[kept])
    assert 0.6 < kept.mean() < 0.999
    # Met squarely there is no gap.
    assert np.isfinite(crown_hits(half, origin, -origin[None])[0]).all()
    # A sensor half a metre beside sees the same gaps.
    front = np.abs(solid - 1) < 1e-9
    beside = origin + 0.5 * unit(rng.standard_normal(3))
    again = np.isfinite(crown_hits(half, beside, surface - beside)[0])
    assert (again == kept)[front].mean() > 0.95


def test_normals_point_out_of_their_solids():
    rng = np.random.default_rng(0)
    for shape in (Shape.BOX, Shape.CYLINDER, Shape.ELLIPSOID):
        origin = (unit(rng.standard_normal((500, 3))) * 4).T
        direction = rng.uniform(-0.8, 0.8, (3, 500)) - origin
        t = intersect(shape, list(origin), list(direction))
        hit = np.isfinite(t)
        point = origin[:, hit] + t[hit] * direction[:, hit]
        normal = unit_normals(np.full(hit.sum(), shape, np.uint8), point)
        assert ((normal * direction[:, hit]).sum(axis=0) < 1e-9).all()
        step = 1e-3 * normal
        outside = intersect(shape, list(point + step), list(normal))
        assert not (outside[np.isfinite(outside)] > 0).any()  # from just outside, outwards: nothing is met again


# ---- a whole world


@pytest.fixture(scope="module", params=[0, 3], ids=["urban", "arterial"])
def scene(request):
    return draw_scene(5, request.param, 3, (64, 36), 90)


def brute_force(scene, grid, pose_s, far):
    """Nearest entry of every ray over all primitives, in float64, and over the ground."""
    primitives = scene.world.at(pose_s)
    solid = np.where(primitives.shape == Shape.CROWN, Shape.ELLIPSOID, primitives.shape).astype(np.uint8)
    primitives = replace(primitives, shape=solid)
    direction = np.stack(replace(grid, dtype=np.float64).directions(np.eye(3)), axis=-1).reshape(-1, 3)
    ground = scene.world.ground.enter(grid.origin_m, tuple(direction.T), far)
    nearest, second = ground.copy(), np.full(len(direction), np.inf)
    margin = np.full(len(direction), np.inf)
    owner = np.where(np.isfinite(ground), GROUND, NOTHING)
    for k in range(len(primitives)):
        t, near = entry_m(
            primitives.shape[k],
            primitives.axes[k],
            primitives.centre_m[k],
            primitives.half_m[k],
            grid.origin_m,
            direction,
        )
        margin = np.minimum(margin, near)
        closer = t < nearest
        second = np.where(closer, nearest, np.minimum(second, t))
        nearest, owner = np.where(closer, t, nearest), np.where(closer, k, owner)
    return primitives, nearest, second, owner, margin


@pytest.mark.parametrize("sensor", ["CAM_FRONT", "CAM_BACK_LEFT", "LIDAR_TOP"])
def test_casting_a_world_misses_nothing(scene, sensor):
    """Culling, windows and the order of primitives change nothing: every ray meets what brute force finds."""
    time_s, far = 1.0, 95.0
    pose = scene.world.world_SE3_ego(time_s)
    if sensor == "LIDAR_TOP":
        grid, far = lidar_rays(scene.rig.lidar, pose), scene.rig.lidar.max_range_m
    else:
        camera = next(camera for camera in scene.rig.cameras if camera.name == sensor)
        grid = camera_rays(camera, pose)
    primitives, nearest, second, owner, margin = brute_force(scene, grid, time_s, far)
    windows = (
        lidar_windows(scene.rig.lidar, pose, primitives)
        if sensor == "LIDAR_TOP"
        else camera_windows(camera, pose, primitives)
    )
    hits = cast(grid, primitives, windows, scene.world.ground, far)
    t, met = hits.t.ravel(), hits.primitive.ravel()
    nearest = np.where(nearest > far, np.inf, nearest)
    t = np.where(t > far, np.inf, t)
    # Left out: rays that graze an edge, and rays at which two surfaces coincide.
    clear = (margin > 1e-3) & ~(second < nearest + 1e-2)
    assert clear.mean() > 0.8
    np.testing.assert_allclose(t[clear], nearest[clear], rtol=1e-3)
    solid = clear & np.isfinite(nearest)
    np.testing.assert_array_equal(met[solid], owner[solid])
    assert len(np.unique(met[solid])) > 20


def test_rays_through_pixels_project_back_onto_them(scene):
    camera = scene.rig.cameras[2]
    pose = scene.world.world_SE3_ego(0.4)
    grid = camera_rays(camera, pose)
    direction = np.stack(replace(grid, dtype=np.float64).directions(np.eye(3)), axis=-1)
    points = grid.origin_m + 17.0 * direction
    cam = (
        np.linalg.inv(pose @ camera.ego_SE3_cam)
        @ np.concatenate([points, np.ones((*points.shape[:2], 1))], -1)[..., None]
    )[..., :3, 0]
    np.testing.assert_allclose(cam[..., 2], 17.0)  # the ray parameter is depth
    uvw = cam @ camera.intrinsics.T
    v, u = np.mgrid[: camera.height_px, : camera.width_px]
    np.testing.assert_allclose(uvw[..., 0] / uvw[..., 2], u, atol=1e-9)
    np.testing.assert_allclose(uvw[..., 1] / uvw[..., 2], v, atol=1e-9)


# ---- road and ground


@settings(deadline=None)
@given(
    heading=angles,
    curvature=st.one_of(st.just(0.0), st.floats(1e-4, 1 / 100), st.floats(-1 / 100, -1e-4)),
    s=st.floats(-100, 250),
    left=st.floats(-60, 60),
)
def test_road_coordinates_round_trip(heading, curvature, s, left):
    road = Road(300.0, 200.0, heading, curvature)
    x, y = road.to_world(s, left)
    back_s, back_l = road.to_road(np.asarray(x), np.asarray(y))
    np.testing.assert_allclose([back_s, back_l], [s, left], atol=1e-6)
    ahead_x, ahead_y = road.to_world(s + 1e-5, 0.0)
    here_x, here_y = road.to_world(s, 0.0)
    course = np.arctan2(ahead_y - here_y, ahead_x - here_x)
    assert abs(np.angle(np.exp(1j * (course - road.heading_at(s))))) < 1e-4


def test_rays_meet_the_ground_and_nothing_before():
    bands = ((4.0, Region.ROAD), (7.0, Region.SIDEWALK), (np.inf, Region.TERRAIN))
    ground = Ground(Road(50.0, 60.0, 0.7, 1 / 90), bands, (SideStreet(20.0, 3.5),), (), 0.15)
    rng = np.random.default_rng(2)
    origin = np.array([52.0, 61.0, 1.8])
    direction = unit(np.column_stack([rng.standard_normal((3000, 2)), rng.uniform(-0.6, 0.05, 3000)]))
    t = ground.enter(origin, tuple(direction.T), 80.0)
    hit = np.isfinite(t)
    assert not hit[direction[:, 2] >= 0].any()
    assert hit[-1.8 / np.minimum(direction[:, 2], -1e-9) < 80].all()
    x, y, z = (origin + t[hit, None] * direction[hit]).T
    # On the road, on the kerb's height, or at a kerb's face: then the ground rises within a few centimetres.
    on_plane = np.isclose(z, ground.height_m(x, y), atol=1e-9)
    flat = direction[hit, :2] * 0.05
    rises = ground.height_m(x + flat[:, 0], y + flat[:, 1]) > ground.height_m(x - flat[:, 0], y - flat[:, 1])
    assert (on_plane | rises).all()
    assert np.count_nonzero(~on_plane) > 10
    for share in np.linspace(0, 0.995, 60):
        x, y, z = (origin + share * t[hit, None] * direction[hit]).T
        assert (z > ground.height_m(x, y) - 0.15 * (share > 0.98)).all()


# ---- a sweep


def test_sweep_is_the_world_with_noise_along_the_ray():
    scene = draw_scene(1, 0, 1, TINY_IMAGE, STEPS)
    lidar, pose = scene.rig.lidar, scene.world.world_SE3_ego(0.0)
    points = sweep(scene.world, lidar, 0.0, np.random.default_rng(0))
    range_m = np.linalg.norm(points.xyz_m.astype(np.float64), axis=1)
    elevation = np.arcsin(points.xyz_m[:, 2] / range_m)
    np.testing.assert_allclose(elevation, lidar.elevations_rad[points.ring], atol=1e-5)
    column = (
        np.rint(-np.arctan2(points.xyz_m[:, 1], points.xyz_m[:, 0]) * STEPS / (2 * np.pi) - 0.5).astype(int) % STEPS
    )
    assert (np.diff(column) >= 0).all()  # as the sensor turns
    grid = lidar_rays(lidar, pose)
    primitives = scene.world.at(0.0)
    hits = cast(grid, primitives, lidar_windows(lidar, pose, primitives), scene.world.ground, lidar.max_range_m)
    label = categories_of(grid, hits, primitives, scene.world.ground)[points.ring, column]
    others = points.category != INDEX["vehicle.ego"]
    np.testing.assert_array_equal(points.category[others], label[others])
    residual = range_m - hits.t[points.ring, column]
    firm = others & (points.category != INDEX["static.vegetation"])
    assert abs(residual[firm].mean()) < 1e-3
    assert residual[firm].std() == pytest.approx(RANGE_NOISE_M, rel=0.05)
    assert 20_000 < len(points.xyz_m) < 34_000
    assert 0.15 < 1 - others.mean() < 0.3  # the vehicle's own roof
    assert ((points.intensity >= 0) & (points.intensity <= 255) & (points.intensity % 1 == 0)).all()
    bright = points.intensity[points.category == INDEX["static.manmade"]].mean()
    assert bright > 1.5 * points.intensity[points.category == INDEX["flat.driveable_surface"]].mean()


# ---- a tree


def tables(root):
    return {path.stem: json.loads(path.read_text()) for path in (root / VERSION).glob("*.json")}


def test_lidar_and_images_agree(tiny_drive):
    """A point that is not hidden carries the class of the pixel it projects on, read through the reader's own chain."""
    drive = open_drive("nuscenes", tiny_drive)
    agreed = unhidden = projected = 0
    for index, name in enumerate(drive.scenes()):
        scene = draw_scene(0, index, 3, TINY_IMAGE, STEPS)
        shadow = still_shadow(scene.world)
        info = drive.frames(name)[1]
        points = drive.read(info).points
        lidar = np.column_stack([points.xyz_m.astype(np.float64), np.ones(len(points))])
        for view in info.cameras:
            camera = next(camera for camera in scene.rig.cameras if camera.name == view.name)
            picture = render(scene.world, camera, scene.seconds(view.stamp_ns // 1000), shadow)
            with Image.open(view.image_path) as image:
                difference = np.asarray(image, float) - picture.rgb
            assert np.sqrt((difference**2).mean()) < 12  # JPEG, no more: the image is of this time and place
            chain = view.cam_SE3_ego @ np.linalg.inv(view.world_SE3_ego) @ info.world_SE3_lidar
            cam = (lidar @ chain.T)[:, :3]
            uvw = cam @ view.intrinsics.T
            with np.errstate(divide="ignore", invalid="ignore"):
                u, v = np.rint(uvw[:, 0] / uvw[:, 2]), np.rint(uvw[:, 1] / uvw[:, 2])
            seen = (cam[:, 2] > 0.5) & (u >= 0) & (u < TINY_IMAGE[0]) & (v >= 0) & (v < TINY_IMAGE[1])
            row, column = v[seen].astype(int), u[seen].astype(int)
            near = np.abs(cam[seen, 2] / picture.depth_m[row, column] - 1) < 0.03
            agreed += np.count_nonzero(points.label[seen][near] == picture.category[row, column][near])
            unhidden += np.count_nonzero(near)
            projected += np.count_nonzero(seen)
    assert agreed / unhidden > 0.97
    assert unhidden / projected > 0.85
    assert unhidden > 10_000


def test_boxes_hold_the_points_of_their_objects(tiny_drive):
    drive, rows = open_drive("nuscenes", tiny_drive), tables(tiny_drive)
    category = {row["token"]: row for row in rows["category"]}
    instance = {row["token"]: category[row["category_token"]]["index"] for row in rows["instance"]}
    held = total = 0
    for name in drive.scenes():
        for info in drive.frames(name):
            points = drive.read(info).points
            world = points.xyz_m.astype(np.float64) @ info.world_SE3_lidar[:3, :3].T + info.world_SE3_lidar[:3, 3]
            sample = next(row["sample_token"] for row in rows["sample_data"] if row["token"] == info.key.frame)
            boxes = [row for row in rows["sample_annotation"] if row["sample_token"] == sample]
            inside = np.zeros(len(points), bool)
            for box in boxes:
                rotation = Rotation.from_quat(np.roll(box["rotation"], -1)).as_matrix()
                local = (world - box["translation"]) @ rotation
                width, length, height = box["size"]
                fits = (np.abs(local) < np.array([length, width, height]) / 2 + 3 * RANGE_NOISE_M).all(axis=1)
                inside |= fits & (points.label == instance[box["instance_token"]])
            things = (points.label >= 1) & (points.label < INDEX["flat.driveable_surface"])
            assert sum(box["num_lidar_pts"] for box in boxes) == np.count_nonzero(things)
            held += np.count_nonzero(inside & things)
            total += np.count_nonzero(things)
    assert total > 3_000
    assert held / total > 0.98


def test_boxes_move_as_their_objects_do(tiny_drive):
    rows = tables(tiny_drive)
    stamp = {row["token"]: row["timestamp"] / 1e6 for row in rows["sample"]}
    attribute = {row["token"]: row["name"] for row in rows["attribute"]}
    boxes = {row["token"]: row for row in rows["sample_annotation"]}
    moving = standing = 0
    for first in boxes.values():
        second = boxes.get(first["next"])
        third = boxes.get(second["next"]) if second else None
        if not third or not first["attribute_tokens"]:
            continue
        places = np.array([box["translation"][:2] for box in (first, second, third)])
        times = np.array([stamp[box["sample_token"]] for box in (first, second, third)])
        if not np.allclose(np.diff(times), 0.5, atol=0.02):
            continue  # unseen in between
        velocity = np.diff(places, axis=0) / np.diff(times)[:, None]
        # Constant along the road, whose bends turn it by a degree or two in half a second.
        np.testing.assert_allclose(velocity[0], velocity[1], atol=0.06 * np.linalg.norm(velocity[0]) + 1e-9)
        name = attribute[first["attribute_tokens"][0]]
        moves = name.endswith(".moving") or name == "cycle.with_rider"
        assert moves == (np.linalg.norm(velocity[0]) > 0.3), name
        moving, standing = moving + moves, standing + (not moves)
    assert moving > 10
    assert standing > 10


def test_references_resolve(tiny_drive):
    rows = tables(tiny_drive)
    assert len(rows) == 14
    tokens = {name: {row["token"] for row in table} for name, table in rows.items()}
    assert all(len(tokens[name]) == len(table) for name, table in rows.items())
    checked = set()
    for name, table in rows.items():
        for field in (field for field in table[0] if field.endswith(("_token", "_tokens"))):
            target = field.removesuffix("s").removesuffix("_token").removeprefix("first_").removeprefix("last_")
            target = "sample_annotation" if target == "annotation" else target
            named = [row[field] if field.endswith("s") else [row[field]] for row in table]
            assert set().union(*named) <= tokens[target], (name, field)
            checked.add(field)
    assert len(checked) == 16


@pytest.mark.parametrize("name", ["sample", "sample_data", "sample_annotation"])
def test_links_make_chains_that_hold_every_row_once(tiny_drive, name):
    rows = {row["token"]: row for row in tables(tiny_drive)[name]}
    walked = []
    for row in (row for row in rows.values() if not row["prev"]):
        while row:
            walked.append(row["token"])
            after = rows.get(row["next"])
            assert after is None or after["prev"] == row["token"]
            row = after
    assert sorted(walked) == sorted(rows)


def test_categories_are_in_the_order_of_the_labels(tiny_drive):
    rows = tables(tiny_drive)["category"]
    assert [row["name"] for row in sorted(rows, key=lambda row: row["index"])] == list(CATEGORIES)


def test_every_file_is_named_once(tiny_drive):
    rows = tables(tiny_drive)
    named = [row["filename"] for name in ("sample_data", "lidarseg", "map") for row in rows[name]]
    found = {path.relative_to(tiny_drive).as_posix() for path in tiny_drive.rglob("*") if path.is_file()}
    assert sorted(named) == sorted(found - {f"{VERSION}/{name}.json" for name in rows})


def test_the_vehicle_stays_on_the_road_of_the_map(tiny_drive):
    drive, rows = open_drive("nuscenes", tiny_drive), tables(tiny_drive)
    log = {row["name"]: row["log_token"] for row in rows["scene"]}
    for name in drive.scenes():
        (file,) = (row["filename"] for row in rows["map"] if log[name] in row["log_tokens"])
        with Image.open(tiny_drive / file) as image:
            mask = np.asarray(image)
        for info in drive.frames(name):
            column, row = (info.world_SE3_ego[:2, 3] * 10).astype(int)
            assert mask[len(mask) - 1 - row, column] == 255
        assert 0.05 < (mask > 0).mean() < 0.6


def test_scenes_differ_in_what_they_show(tiny_drive):
    drive = open_drive("nuscenes", tiny_drive)
    shares = []
    for name in drive.scenes():
        labels = np.concatenate([drive.read(info).points.label for info in drive.frames(name)])
        shares.append(np.bincount(labels, minlength=len(CATEGORIES)) / len(labels))
    both = [CATEGORIES[k] for k in np.flatnonzero((shares[0] > 0) & (shares[1] > 0))]
    assert {"vehicle.car", "human.pedestrian.adult", "flat.driveable_surface", "flat.sidewalk"} <= set(both)
    assert {"static.manmade", "static.vegetation", "vehicle.ego"} <= set(both)
    terrain = INDEX["flat.terrain"]
    assert shares[0][terrain] < 0.01 < 0.05 < shares[1][terrain]  # a city street, then gardens


def test_nobody_runs_into_anybody():
    for index in range(4):
        world = draw_scene(3, index, 8, TINY_IMAGE, STEPS).world
        size = np.array([agent.item.size_m for agent in world.agents])
        least = np.minimum(size[:, 0], size[:, 1]) / 2
        apart = least[:, None] + least
        np.fill_diagonal(apart, 0)
        for time_s in np.arange(0, 4, 0.25):
            place = world.agent_poses(time_s)[0][:, :2]
            assert (np.linalg.norm(place[:, None] - place, axis=-1) >= 0.8 * apart).all()
            ego = world.world_SE3_ego(time_s)[:2, 3]
            assert (np.linalg.norm(place - ego, axis=1) >= 0.95 + least - 0.1).all()


# ---- making one


def digest(root):
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


SMALL = {"frames": 2, "image_size": (48, 27), "azimuth_steps": 120}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "drive"
    make_drive(out, scenes=2, seed=4, **SMALL)
    return out


def test_the_same_seed_makes_the_same_bytes(small, tmp_path):
    make_drive(tmp_path / "again", scenes=2, seed=4, **SMALL)
    assert digest(tmp_path / "again") == digest(small)


def test_a_scene_does_not_depend_on_how_many_follow(small, tmp_path):
    make_drive(tmp_path / "one", scenes=1, seed=4, **SMALL)
    alone, among = digest(tmp_path / "one"), digest(small)
    sensors = {name for name in alone if not name.startswith(VERSION)}
    assert {name: alone[name] for name in sensors} == {name: among[name] for name in sensors}
    first, both = tables(tmp_path / "one"), tables(small)
    for name, rows in first.items():
        assert both[name][: len(rows)] == rows


def test_another_seed_makes_another_drive(small, tmp_path):
    make_drive(tmp_path / "other", scenes=1, seed=5, **SMALL)
    assert not set(digest(tmp_path / "other").values()) & {
        value for name, value in digest(small).items() if name.startswith("samples")
    }


def test_progress_counts_frames(tmp_path):
    seen = []
    make_drive(tmp_path / "a", scenes=2, progress=lambda done, total: seen.append((done, total)), **SMALL)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_nothing_is_overwritten(small, tmp_path):
    before = digest(small)
    with pytest.raises(UsageError, match="exists"):
        make_drive(small, scenes=1, **SMALL)
    assert digest(small) == before
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists"):
        make_drive(tmp_path / "link", scenes=1, **SMALL)


def test_a_drive_that_fails_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_drive(tmp_path / "drive", scenes=1, progress=stop, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/drive"):
        make_drive(tmp_path / "file" / "drive", scenes=1, **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"scenes": 0},
        {"frames": 0},
        {"seed": -1},
        {"image_size": (8, 99)},
        {"image_size": (99, 0)},
        {"azimuth_steps": 3},
    ],
)
def test_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(UsageError, match="give at least"):
        make_drive(tmp_path / "drive", **wrong)
    assert not (tmp_path / "drive").exists()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), special=st.booleans())
def test_quaternions_are_scipys(seed, special):
    rotation = Rotation.random(rng=np.random.default_rng(seed))
    if special:  # half turns, where formulas that divide by the scalar part break down
        rotation = Rotation.from_rotvec(np.pi * unit(rotation.as_rotvec()))
    found = np.array(quaternion_wxyz(rotation.as_matrix()))
    expected = np.roll(rotation.as_quat(), 1)
    assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 1e-12
    assert found[0] >= 0
