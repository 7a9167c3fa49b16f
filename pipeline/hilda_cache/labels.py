"""`hilda-cache labels`: a drive's boxes in one file for stage two, which opens no drive (`hilda_schema.boxes`).

Velocities are made alike for all datasets, as the nuScenes devkit makes them: from the centres before and after, in
the world. Points are the publisher's count where there is one, and are counted here where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hilda_cache.drives import Drive, FrameInfo
from hilda_cache.drives.frame import Annotation, Float64Array
from hilda_cache.drives.transforms import quaternion_wxyz
from hilda_schema import __version__
from hilda_schema.boxes import Boxes, BoxesInfo, points_inside, write_boxes
from hilda_schema.errors import DriveError
from hilda_schema.keys import Key

MAX_GAP_S = 1.5  # between the two centres that a velocity is made of, for each of the steps between them; the devkit's


def write_labels(
    drive: Drive,
    options: dict[str, str],
    scenes: Sequence[str],
    out: Path,
    on_scene: Callable[[], None] = lambda: None,
) -> tuple[int, int]:
    """Write the boxes of some scenes; how many frames and boxes there are.

    Args:
        drive: read.
        options: its reader's, for the file's metadata.
        scenes: names, in the order in which they are written.
        out: the file.
        on_scene: called after each scene.

    Raises:
        UsageError: the dataset has no boxes, or there is no such scene.
        DriveError: annotations are missing or damaged, or no frame is annotated.
        LabelError: the file cannot be written.
    """
    frames: list[tuple[Key, Boxes]] = []
    for scene in scenes:
        frames += boxes_of_scene(drive, scene)
        on_scene()
    if not frames:
        raise DriveError("no frame of these scenes is annotated", "choose scenes with boxes")
    about = BoxesInfo(
        dataset=drive.dataset, version=drive.version, options=options, written_by=f"hilda-lidar {__version__}"
    )
    write_boxes(out, frames, about)
    return len(frames), sum(len(boxes) for _, boxes in frames)


def boxes_of_scene(drive: Drive, scene: str) -> Iterator[tuple[Key, Boxes]]:
    """The annotated frames of a scene in time order."""
    annotations = drive.annotations(scene)
    infos = [info for info in drive.frames(scene) if info.key.frame in annotations]
    velocities = _velocities([annotations[info.key.frame] for info in infos], infos)
    for info, velocity_mps in zip(infos, velocities, strict=True):
        each = annotations[info.key.frame]
        rotations = [quaternion_wxyz(pose[:3, :3]) for pose in each.lidar_SE3_box]
        boxes = Boxes(
            centre_m=each.lidar_SE3_box[:, :3, 3],
            size_m=each.size_m,
            lidar_q_box=np.array(rotations).reshape(-1, 4),
            velocity_mps=velocity_mps,
            points=np.zeros(len(each.track), np.int64) if each.points is None else each.points,
            category=np.array(each.category, dtype=object),
            track=np.array(each.track, dtype=object),
        )
        yield info.key, boxes if each.points is not None else _counted(boxes, drive, info)


def _counted(boxes: Boxes, drive: Drive, info: FrameInfo) -> Boxes:
    found = [len(rows) for rows in points_inside(drive.read(info).points.xyz_m, boxes)]
    boxes.points[:] = found
    return boxes


def _velocities(annotations: Sequence[Annotation], infos: Sequence[FrameInfo]) -> list[Float64Array]:
    """Of every frame's boxes: (M, 2) x and y in its LiDAR frame, NaN where a track has no other frame near in time.

    The devkit's rule: from the track's frame before to the one after; at either end of a track from the one that there
    is. Not over more than `MAX_GAP_S` a step.
    """
    places: dict[str, list[tuple[int, int]]] = {}  # track -> (frame, row) in time order
    for frame, each in enumerate(annotations):
        for row, track in enumerate(each.track):
            places.setdefault(track, []).append((frame, row))
    velocities = [np.full((len(each.track), 2), np.nan) for each in annotations]

    def world_m(place: tuple[int, int]) -> Float64Array:
        frame, row = place
        centre: Float64Array = (infos[frame].world_SE3_lidar @ annotations[frame].lidar_SE3_box[row])[:3, 3]
        return centre

    for seen in places.values():
        for k, (frame, row) in enumerate(seen):
            first, last = max(k - 1, 0), min(k + 1, len(seen) - 1)
            gap_s = (infos[seen[last][0]].stamp_ns - infos[seen[first][0]].stamp_ns) / 1e9
            if first < last and gap_s <= MAX_GAP_S * (last - first):
                world_mps = (world_m(seen[last]) - world_m(seen[first])) / gap_s
                velocities[frame][row] = (world_mps @ infos[frame].world_SE3_lidar[:3, :3])[:2]
    return velocities
