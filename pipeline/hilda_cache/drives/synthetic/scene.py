"""A synthetic scene as it will be recorded: its world, its sensors and its time stamps, all from two numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from hilda_cache.drives.synthetic.layout import build_world
from hilda_cache.drives.synthetic.rig import Rig, build_rig
from hilda_cache.drives.synthetic.styles import STYLES
from hilda_cache.drives.synthetic.world import World

KEYFRAME_PERIOD_US = 500_000
_KEYFRAME_JITTER_US = 8_000  # real keyframes are never exactly half a second apart
_EPOCH_US = 1_600_000_000_000_000
_SCENE_PERIOD_US = 3_600_000_000  # scenes of a drive lie an hour apart


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """Everything about a scene but its sensor data."""

    name: str
    world: World
    rig: Rig
    start_us: int  # time 0 of the world
    stamps_us: tuple[int, ...]  # of the sweeps
    noise: Generator  # for the LiDAR, sweep after sweep

    def seconds(self, stamp_us: int) -> float:
        """The world's time at a time stamp."""
        return (stamp_us - self.start_us) / 1e6


def draw_scene(seed: int, index: int, frames: int, image_size_px: tuple[int, int], azimuth_steps: int) -> Scene:
    """Draw scene number `index` of a drive; it depends on no other scene.

    Args:
        seed: of the drive.
        index: from 0; the kinds of scene take turns.
        frames: keyframes.
        image_size_px: width and height of all images.
        azimuth_steps: LiDAR columns a turn.
    """
    chance, noise = np.random.default_rng([seed, index]).spawn(2)
    start = _EPOCH_US + index * _SCENE_PERIOD_US
    jitter = chance.integers(-_KEYFRAME_JITTER_US, _KEYFRAME_JITTER_US, frames)
    stamps = tuple(start + k * KEYFRAME_PERIOD_US + int(jitter[k]) for k in range(frames))
    rig = build_rig(chance, image_size_px, azimuth_steps)
    world = build_world(STYLES[index % len(STYLES)], chance, frames * KEYFRAME_PERIOD_US / 1e6)
    return Scene(f"scene-{index + 1:04d}", world, rig, start, stamps, noise)
