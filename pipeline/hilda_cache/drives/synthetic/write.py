"""Records synthetic scenes into a tree that looks and reads like nuScenes v1.0.

<out>/v1.0-synthetic/*.json                          the tables
<out>/samples/<channel>/*.jpg, *.pcd.bin             images; sweeps of five float32 a point
<out>/lidarseg/v1.0-synthetic/<token>_lidarseg.bin   one byte a point
<out>/maps/*.png                                     where one may drive or walk, 10 pixels a metre
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from hilda_cache.drives.synthetic.lidar import sweep
from hilda_cache.drives.synthetic.render import Picture, render, still_shadow
from hilda_cache.drives.synthetic.rig import Camera
from hilda_cache.drives.synthetic.road import Region
from hilda_cache.drives.synthetic.scene import Scene, draw_scene
from hilda_cache.drives.synthetic.shadow import Shadow
from hilda_cache.drives.synthetic.tables import VERSION, Tables, log_name
from hilda_cache.drives.synthetic.world import World
from hilda_schema.errors import UsageError

JPEG_QUALITY = 92
_MAP_CELL_M, _MAP_PIXELS_PER_CELL = 0.5, 5  # the devkit reads maps at 0.1 m

Progress = Callable[[int, int], None]


def make_drive(
    out: Path,
    scenes: int = 4,
    frames: int = 12,
    seed: int = 0,
    image_size: tuple[int, int] = (704, 396),
    azimuth_steps: int = 1085,
    progress: Progress | None = None,
) -> None:
    """Make a synthetic drive.

    The same arguments give the same bytes. A scene depends on the seed, its own number and the number of frames,
    not on the scenes around it. The tree appears whole or not at all: it is written under a temporary name beside
    `out` and renamed.

    Args:
        out: folder to make; must not exist.
        scenes: how many; the four kinds (urban, residential, park, arterial) take turns.
        frames: keyframes of each scene, two a second.
        seed: not negative.
        image_size: width and height of the six cameras' images in pixels.
        azimuth_steps: LiDAR columns a turn; nuScenes has about 1085.
        progress: called with (frames done, frames in all) after every frame.

    Raises:
        UsageError: `out` exists or cannot be written, or a number is out of range.
    """
    _check(out, scenes, frames, seed, image_size, azimuth_steps)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        try:
            partial.mkdir(parents=True)
            _write_tree(partial, scenes, frames, seed, image_size, azimuth_steps, progress)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"the drive cannot be written to {out}: {error.strerror or error}",
            "free some space or choose another folder",
        ) from error


def _check(out: Path, scenes: int, frames: int, seed: int, image_size: tuple[int, int], azimuth_steps: int) -> None:
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists", "name a new folder; nothing is overwritten")
    least = {"scenes": (scenes, 1), "frames": (frames, 1), "seed": (seed, 0), "azimuth_steps": (azimuth_steps, 16)}
    least |= {"image width": (image_size[0], 16), "image height": (image_size[1], 16)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise UsageError(f"{name} is {value}", f"give at least {bound}")


def _write_tree(
    root: Path,
    scenes: int,
    frames: int,
    seed: int,
    image_size: tuple[int, int],
    azimuth_steps: int,
    progress: Progress | None,
) -> None:
    tables: Tables | None = None
    for index in range(scenes):
        scene = draw_scene(seed, index, frames, image_size, azimuth_steps)
        if tables is None:
            cameras = tuple(camera.name for camera in scene.rig.cameras)
            tables = Tables(seed, cameras)
            for folder in (VERSION, "maps", f"lidarseg/{VERSION}", *(f"samples/{c}" for c in ("LIDAR_TOP", *cameras))):
                (root / folder).mkdir(parents=True)
        map_file = f"maps/{log_name(seed, scene)}.png"
        _write_map(root / map_file, scene.world)
        tables.add_scene(scene, map_file)
        shadow = still_shadow(scene.world)
        seen: dict[int, list[tuple[int, int, float]]] = defaultdict(list)
        for frame in range(frames):
            for agent, points, share in _write_frame(root, tables, scene, frame, shadow):
                seen[agent].append((frame, points, share))
            if progress:
                progress(index * frames + frame + 1, scenes * frames)
        tables.add_boxes(scene, seen)
    if tables:
        tables.write(root / VERSION)


def _write_frame(root: Path, tables: Tables, scene: Scene, frame: int, shadow: Shadow) -> list[tuple[int, int, float]]:
    """Record one keyframe; returns the agents that the LiDAR saw, with its points and their visible share."""
    stamp = scene.stamps_us[frame]
    share = np.zeros(len(scene.world.agents))
    for camera in scene.rig.cameras:
        taken = stamp + camera.offset_us
        picture = render(scene.world, camera, scene.seconds(taken), shadow)
        name = f"samples/{camera.name}/{log_name(tables.seed, scene)}__{camera.name}__{taken}.jpg"
        (root / name).write_bytes(simplejpeg.encode_jpeg(picture.rgb, quality=JPEG_QUALITY, colorspace="RGB"))
        tables.add_reading(scene, frame, camera.name, taken, name, camera)
        share = np.maximum(share, visible_share(scene.world, camera, scene.seconds(taken), picture))
    points = sweep(scene.world, scene.rig.lidar, scene.seconds(stamp), scene.noise)
    name = f"samples/LIDAR_TOP/{log_name(tables.seed, scene)}__LIDAR_TOP__{stamp}.pcd.bin"
    rows = np.column_stack([points.xyz_m, points.intensity, points.ring])
    (root / name).write_bytes(rows.astype("<f4").tobytes())
    own = tables.add_reading(scene, frame, "LIDAR_TOP", stamp, name, None)
    labels = f"lidarseg/{VERSION}/{own}_lidarseg.bin"
    (root / labels).write_bytes(points.category.tobytes())
    tables.add_labels(own, labels)
    count = np.bincount(points.instance[points.instance >= 0], minlength=len(share))
    return [(int(agent), int(count[agent]), float(share[agent])) for agent in np.flatnonzero(count)]


def visible_share(world: World, camera: Camera, t_s: float, picture: Picture) -> NDArray[np.float64]:
    """How much of every agent's box an image shows.

    Of 27 points spread over the box, the share that lies in the image and not behind another object's surface:
    deeper than what the image shows by no more than half the box's diagonal.

    Returns:
        (A,) 0 to 1.
    """
    position, heading = world.agent_poses(t_s)
    size = np.array([agent.item.size_m for agent in world.agents]).reshape(-1, 3)
    steps = np.array([-0.4, 0.0, 0.4])
    grid = np.stack(np.meshgrid(steps, steps, steps + 0.5), axis=-1).reshape(-1, 3)
    x, y, z = np.moveaxis(grid * size[:, None], -1, 0)
    c, s = np.cos(heading)[:, None], np.sin(heading)[:, None]
    points = np.stack([c * x - s * y, s * x + c * y, z], axis=-1) + position[:, None]
    cam_SE3_world = np.linalg.inv(world.world_SE3_ego(t_s) @ camera.ego_SE3_cam)
    uvw = (points @ cam_SE3_world[:3, :3].T + cam_SE3_world[:3, 3]) @ camera.intrinsics.T
    depth = np.maximum(uvw[..., 2], 1e-3)
    u, v = np.rint(uvw[..., 0] / depth), np.rint(uvw[..., 1] / depth)
    inside = (uvw[..., 2] > 0.1) & (u >= 0) & (u < camera.width_px) & (v >= 0) & (v < camera.height_px)
    column, row = np.where(inside, u, 0).astype(int), np.where(inside, v, 0).astype(int)
    slack = np.linalg.norm(size, axis=1)[:, None] / 2
    shown: NDArray[np.float64] = (inside & (depth < picture.depth_m[row, column] + slack)).mean(axis=1)
    return shown


def _write_map(path: Path, world: World) -> None:
    """Where one may drive or walk, white; the first row of pixels is the largest y, as in nuScenes' maps."""
    corners = world.still.corners_m()[..., :2].max(axis=(0, 1))
    columns, rows = np.ceil(corners / _MAP_CELL_M).astype(int)
    x, y = np.meshgrid((np.arange(columns) + 0.5) * _MAP_CELL_M, (np.arange(rows) + 0.5)[::-1] * _MAP_CELL_M)
    kind = world.ground.region(x, y)[0]
    mask = np.where((kind == Region.ROAD) | (kind == Region.SIDEWALK), np.uint8(255), np.uint8(0))
    image = Image.fromarray(mask).resize((columns * _MAP_PIXELS_PER_CELL, rows * _MAP_PIXELS_PER_CELL), 0)
    image.save(path, optimize=False)
