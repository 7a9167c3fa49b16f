"""One synthetic scene: its ground, its light, what stands in it, and what moves through it.

Everything that moves does so at constant speed in road coordinates, the recording vehicle too, so a pose is a
closed expression of time: images can be rendered at their own time stamps, and boxes move as their objects do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.items import Item
from hilda_cache.drives.synthetic.noise import Array
from hilda_cache.drives.synthetic.primitives import Primitives, rotation_x, rotation_y, rotation_z
from hilda_cache.drives.synthetic.road import Ground, Road


@dataclass(frozen=True, slots=True)
class Track:
    """Constant speed in road coordinates; at time t an object is at (s + t vs, l + t vl)."""

    s_m: float
    l_m: float
    s_speed_mps: float = 0.0
    l_speed_mps: float = 0.0
    yaw_rad: float = 0.0  # where the object looks, relative to the road's direction

    def at(self, t_s: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Road coordinates [m] at times; shaped like `t_s`."""
        t = np.asarray(t_s, np.float64)
        return self.s_m + self.s_speed_mps * t, self.l_m + self.l_speed_mps * t

    @property
    def moves(self) -> bool:
        """Whether the object ever leaves its place."""
        return bool(self.s_speed_mps or self.l_speed_mps)


@dataclass(frozen=True, slots=True)
class Agent:
    """An annotated object and how it moves."""

    item: Item
    track: Track
    attribute: str  # of `categories.ATTRIBUTES`; empty for things without


@dataclass(frozen=True, slots=True)
class Light:
    """Sun, sky and air. Colours are RGB, 0 to 1."""

    sun_azimuth_rad: float
    sun_elevation_rad: float
    sun: tuple[float, float, float]
    ambient: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    clouds: float  # share of the sky, 0 to 1
    haze_m: float  # distance over which contrast falls to 1/e

    @property
    def towards_sun(self) -> Float64Array:
        """(3,) unit vector, world."""
        flat = np.cos(self.sun_elevation_rad)
        azimuth = self.sun_azimuth_rad
        return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(self.sun_elevation_rad)])


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A scene ready to be sensed."""

    kind: str
    description: str
    ground: Ground
    light: Light
    still: Primitives  # everything that stays where it is, parked cars too; world
    agents: tuple[Agent, ...]
    ego: Track
    bodies: Primitives  # parts of the agents that move, in their own frames; `instance` is the agent's index
    phase_rad: float  # of the recording vehicle's small pitch and roll

    @property
    def road(self) -> Road:
        """The road that the recording vehicle follows."""
        return self.ground.road

    def agent_poses(self, t_s: float) -> tuple[Float64Array, Float64Array]:
        """Positions (A, 3) and headings (A,) of all agents, world, at a time."""
        if not self.agents:
            return np.zeros((0, 3)), np.zeros(0)
        road_s, road_l = np.array([agent.track.at(t_s) for agent in self.agents]).T
        x, y = self.road.to_world(road_s, road_l)
        z = self.ground.height_m(x, y)
        yaw = np.array([agent.track.yaw_rad for agent in self.agents])
        return np.stack([x, y, z], axis=1), self.road.heading_at(road_s) + yaw

    def moving_at(self, t_s: float) -> Primitives:
        """Parts of the agents that move, where they are at a time, world."""
        position, heading = self.agent_poses(t_s)
        owner = self.bodies.instance
        c, s = np.cos(heading[owner]), np.sin(heading[owner])
        rotation = np.zeros((len(owner), 3, 3))
        rotation[:, 0, 0] = rotation[:, 1, 1] = c
        rotation[:, 0, 1], rotation[:, 1, 0] = -s, s
        rotation[:, 2, 2] = 1
        return self.bodies.posed(rotation, position[owner])

    def at(self, t_s: float) -> Primitives:
        """Everything that stands or moves, at a time, world."""
        return Primitives.concatenate([self.still, self.moving_at(t_s)])

    def world_SE3_ego(self, t_s: float) -> Float64Array:
        """(4, 4) pose of the recording vehicle: on its lane, pitching and rolling a little like a sprung car."""
        s, left = self.ego.at(t_s)
        pose = np.eye(4)
        x, y = self.road.to_world(s, left)
        pose[:2, 3] = x, y
        pitch = np.deg2rad(0.25) * np.sin(5.1 * t_s + self.phase_rad)
        roll = np.deg2rad(0.3) * np.sin(3.7 * t_s + 2 * self.phase_rad)
        yaw = float(self.road.heading_at(s))
        pose[:3, :3] = rotation_z(yaw) @ rotation_y(float(pitch)) @ rotation_x(float(roll))
        return pose


def is_free(track: Track, half_m: tuple[float, float], others: list[Agent], times_s: Array) -> bool:
    """Whether an object keeps clear of others.

    Args:
        track: its motion.
        half_m: half its extent along and across the road, with the margin wanted.
        others: agents already there.
        times_s: (T,) when to look.
    """
    s, left = track.at(times_s)
    for other in others:
        other_s, other_l = other.track.at(times_s)
        length, width, _ = other.item.size_m
        across = abs(np.sin(other.track.yaw_rad)) > 0.5
        along_m, across_m = (width, length) if across else (length, width)
        near = np.abs(s - other_s) < half_m[0] + along_m / 2
        near &= np.abs(left - other_l) < half_m[1] + across_m / 2
        if near.any():
            return False
    return True
