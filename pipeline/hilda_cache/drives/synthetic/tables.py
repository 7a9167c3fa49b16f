"""The thirteen tables of nuScenes v1.0, and lidarseg.json, as rows gathered while a drive is written.

Tokens are 32 hexadecimal digits as in nuScenes, hashed from what the row stands for, so that the same drive has the
same tokens whenever it is made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.categories import ATTRIBUTES, CATEGORIES, VISIBILITY
from hilda_cache.drives.synthetic.rig import Camera, Rig
from hilda_cache.drives.synthetic.scene import Scene
from hilda_cache.drives.synthetic.world import Agent
from hilda_cache.drives.transforms import quaternion_wxyz

VERSION = "v1.0-synthetic"

_TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "lidarseg",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)

Row = dict[str, Any]


def token(*names: object) -> str:
    """32 hexadecimal digits that stand for these names."""
    return hashlib.blake2s("/".join(map(str, names)).encode(), digest_size=16).hexdigest()


class Tables:
    """Rows of all tables of one drive."""

    def __init__(self, seed: int, cameras: tuple[str, ...]) -> None:
        self.seed = seed
        self.rows: dict[str, list[Row]] = {name: [] for name in _TABLES}
        for name in ATTRIBUTES:
            self._add("attribute", token("attribute", name), name=name, description="")
        for index, name in enumerate(CATEGORIES):
            self._add("category", token("category", name), name=name, description="", index=index)
        for level, (name, bound) in enumerate(VISIBILITY, start=1):
            text = f"at least {bound:.0%} of the object is visible"
            self._add("visibility", str(level), level=name, description=text)
        for channel in ("LIDAR_TOP", *cameras):
            modality = "lidar" if channel == "LIDAR_TOP" else "camera"
            self._add("sensor", token("sensor", channel), channel=channel, modality=modality)

    def _add(self, table: str, row_token: str, **fields: Any) -> Row:
        row: Row = {"token": row_token, **fields}
        self.rows[table].append(row)
        return row

    def token(self, scene: Scene, *names: object) -> str:
        """Token of something in a scene of this drive."""
        return token(self.seed, scene.name, *names)

    def add_scene(self, scene: Scene, map_file: str) -> None:
        """A scene, which has a log, a map, a calibration and its samples to itself."""
        samples = [self.token(scene, "sample", stamp) for stamp in scene.stamps_us]
        own, log = self.token(scene, "scene"), self.token(scene, "log")
        self._add(
            "scene",
            own,
            log_token=log,
            nbr_samples=len(samples),
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
            name=scene.name,
            description=scene.world.description,
        )
        self._add(
            "log",
            log,
            logfile=log_name(self.seed, scene),
            vehicle="synthetic",
            date_captured="2020-09-13",
            location=f"synthetic-{scene.world.kind}",
        )
        self._add("map", self.token(scene, "map"), category="semantic_prior", filename=map_file, log_tokens=[log])
        for row, stamp, before, after in zip(
            samples, scene.stamps_us, ["", *samples], [*samples[1:], ""], strict=False
        ):
            self._add("sample", row, timestamp=stamp, prev=before, next=after, scene_token=own)
        self._add_calibration(scene, scene.rig)

    def _add_calibration(self, scene: Scene, rig: Rig) -> None:
        sensors: list[tuple[str, Float64Array, list[Any]]] = [("LIDAR_TOP", rig.lidar.ego_SE3_lidar, [])]
        sensors += [(c.name, c.ego_SE3_cam, c.intrinsics.tolist()) for c in rig.cameras]
        for channel, pose, intrinsics in sensors:
            self._add(
                "calibrated_sensor",
                self.token(scene, "calibrated_sensor", channel),
                sensor_token=token("sensor", channel),
                **_pose(pose),
                camera_intrinsic=intrinsics,
            )

    def add_reading(
        self, scene: Scene, frame: int, channel: str, stamp_us: int, filename: str, camera: Camera | None
    ) -> str:
        """One sensor file and the vehicle's pose at its time stamp; returns the row's token."""
        offset = stamp_us - scene.stamps_us[frame]
        own, before, after = (
            self.token(scene, "sample_data", channel, scene.stamps_us[k] + offset)
            if 0 <= k < len(scene.stamps_us)
            else ""
            for k in (frame, frame - 1, frame + 1)
        )
        pose = scene.world.world_SE3_ego(scene.seconds(stamp_us))
        self._add("ego_pose", own, timestamp=stamp_us, **_pose(pose))
        self._add(
            "sample_data",
            own,
            sample_token=self.token(scene, "sample", scene.stamps_us[frame]),
            ego_pose_token=own,
            calibrated_sensor_token=self.token(scene, "calibrated_sensor", channel),
            timestamp=stamp_us,
            fileformat="jpg" if camera else "pcd",
            is_key_frame=True,
            height=camera.height_px if camera else 0,
            width=camera.width_px if camera else 0,
            filename=filename,
            prev=before,
            next=after,
        )
        return own

    def add_labels(self, sample_data_token: str, filename: str) -> None:
        """The per-point labels of one sweep."""
        self._add("lidarseg", sample_data_token, sample_data_token=sample_data_token, filename=filename)

    def add_boxes(self, scene: Scene, seen: dict[int, list[tuple[int, int, float]]]) -> None:
        """All boxes of a scene.

        Args:
            scene: whose agents were seen.
            seen: agent -> its (frame, LiDAR points, visible share), in time order.
        """
        for index, views in sorted(seen.items()):
            agent = scene.world.agents[index]
            own = self.token(scene, "instance", index)
            boxes = [self.token(scene, "sample_annotation", index, frame) for frame, _, _ in views]
            self._add(
                "instance",
                own,
                category_token=token("category", agent.item.category),
                nbr_annotations=len(boxes),
                first_annotation_token=boxes[0],
                last_annotation_token=boxes[-1],
            )
            for k, (frame, points, share) in enumerate(views):
                self._add(
                    "sample_annotation",
                    boxes[k],
                    sample_token=self.token(scene, "sample", scene.stamps_us[frame]),
                    instance_token=own,
                    visibility_token=_visibility(share),
                    attribute_tokens=[token("attribute", agent.attribute)] if agent.attribute else [],
                    **_box(scene, index, agent, frame),
                    prev=boxes[k - 1] if k else "",
                    next=boxes[k + 1] if k + 1 < len(boxes) else "",
                    num_lidar_pts=points,
                    num_radar_pts=0,
                )

    def write(self, folder: Path) -> None:
        """Write all tables as JSON."""
        for name, rows in self.rows.items():
            (folder / f"{name}.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")


def log_name(seed: int, scene: Scene) -> str:
    """What a scene's files are named after."""
    return f"synthetic-{seed}-{scene.name}"


def _pose(a_SE3_b: Float64Array) -> Row:
    return {"translation": a_SE3_b[:3, 3].tolist(), "rotation": quaternion_wxyz(a_SE3_b[:3, :3])}


def _box(scene: Scene, index: int, agent: Agent, frame: int) -> Row:
    position, heading = scene.world.agent_poses(scene.seconds(scene.stamps_us[frame]))
    length, width, height = agent.item.size_m
    x, y, z = position[index].tolist()
    half = float(heading[index]) / 2
    return {
        "translation": [x, y, z + height / 2],
        "size": [float(width), float(length), float(height)],
        "rotation": [float(np.cos(half)), 0.0, 0.0, float(np.sin(half))],
    }


def _visibility(share: float) -> str:
    bounds: NDArray[np.float64] = np.array([bound for _, bound in VISIBILITY])
    return str(int(np.searchsorted(bounds, share, side="right")))
