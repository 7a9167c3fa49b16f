"""Draws a synthetic scene from a style: the road, what lines it, who is on it, and the light.

Traffic drives in lanes, one speed a lane, so that nobody runs into anybody; whoever crosses the road or stands
in it is put there only where the way stays free for the whole scene.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.random import Generator

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic import items, scenery
from hilda_cache.drives.synthetic.categories import INDEX
from hilda_cache.drives.synthetic.items import Item
from hilda_cache.drives.synthetic.primitives import Primitives, rotation_z
from hilda_cache.drives.synthetic.road import FOOTWAY_WIDTH_M, Ground, Road, SideStreet
from hilda_cache.drives.synthetic.styles import Row, Style
from hilda_cache.drives.synthetic.world import Agent, Light, Track, World, is_free

SIGHT_M = 110.0  # scenes are furnished this far before the first and behind the last pose
MARGIN_M = 80.0  # of the world's coordinates around the road, which keeps them positive

_EGO = Item("vehicle.car", (4.6, 1.9, 1.6), ())
_LIGHTS = (
    # clear noon, low evening sun, overcast
    Light(0, 1.0, (1.05, 1.0, 0.92), (0.42, 0.46, 0.52), (0.25, 0.45, 0.78), (0.75, 0.84, 0.92), 0.35, 350),
    Light(0, 0.35, (1.05, 0.78, 0.5), (0.40, 0.38, 0.42), (0.38, 0.48, 0.68), (0.95, 0.8, 0.62), 0.25, 260),
    Light(0, 0.9, (0.2, 0.2, 0.2), (0.68, 0.7, 0.74), (0.62, 0.65, 0.69), (0.8, 0.82, 0.84), 0.9, 180),
)


class _Draw:
    """One scene in the making: the style, the chance, the span of road, and the agents placed so far."""

    def __init__(self, style: Style, rng: Generator, duration_s: float) -> None:
        self.style = style
        self.rng = rng
        self.duration_s = duration_s
        self.speed_mps = float(rng.uniform(*style.ego_speed_mps))
        self.ego = Track(0.0, -style.lanes_m[0], self.speed_mps)
        self.span_m = (-SIGHT_M, self.speed_mps * duration_s + SIGHT_M)
        self.times_s = np.arange(-0.4, duration_s + 0.6, 0.2)
        self.agents: list[Agent] = [Agent(_EGO, self.ego, "")]
        self.ground = self._ground()

    def add(self, item: Item, track: Track, attribute: str, margin_m: float = 0.4) -> None:
        """Place an agent, if its way is free."""
        length, width, _ = item.size_m
        if abs(np.sin(track.yaw_rad)) > 0.5:
            length, width = width, length
        if is_free(track, (length / 2 + margin_m, width / 2 + 0.1), self.agents, self.times_s):
            self.agents.append(Agent(item, track, attribute))

    def positions(self, every_m: tuple[float, float], span_m: tuple[float, float]) -> Iterator[tuple[float, float]]:
        """Middles and lengths of consecutive stretches of the road."""
        s = span_m[0] + self.rng.uniform(0, every_m[0])
        while s < span_m[1]:
            room = float(self.rng.uniform(*every_m))
            yield float(s + room / 2), room
            s += room

    def _ground(self) -> Ground:
        style, rng = self.style, self.rng
        streets: tuple[SideStreet, ...] = ()
        if style.side_streets_every_m:
            middles = [s for s, _ in self.positions(style.side_streets_every_m, self.span_m)]
            streets = tuple(SideStreet(s, float(rng.uniform(3.5, 5.0))) for s in middles)
        road = Road(0.0, 0.0, float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(-1, 1)) * style.curvature_per_m)
        s, left = np.meshgrid(np.linspace(*self.span_m, 200), (-MARGIN_M, MARGIN_M))
        x, y = road.to_world(s, left)
        road = Road(float(-x.min()), float(-y.min()), road.heading_rad, road.curvature_per_m)
        return Ground(road, style.bands, streets, style.stripes_m, style.kerb_m)


def build_world(style: Style, rng: Generator, duration_s: float) -> World:
    """Draw one scene.

    Args:
        style: its kind.
        rng: the only source of chance.
        duration_s: time from the first to the last pose.
    """
    draw = _Draw(style, rng, duration_s)
    _works(draw)
    still = [group for row in style.rows for group in _furnish(draw, row)]
    still += _signals(draw)
    _waiting(draw)
    _traffic(draw)
    _cyclists(draw)
    _crossing(draw)
    _walkers(draw)
    agents = tuple(draw.agents[1:])
    bodies = []
    for index, agent in enumerate(agents):
        parts = Primitives.of(agent.item.parts, INDEX[agent.item.category], index)
        if agent.track.moves:
            bodies.append(parts)
        else:
            still.append(_stand(draw.ground, parts, agent.track.s_m, agent.track.l_m, agent.track.yaw_rad))
    return World(
        kind=style.name,
        description=style.description,
        ground=draw.ground,
        light=_light(rng),
        still=Primitives.concatenate(still),
        agents=agents,
        ego=draw.ego,
        bodies=Primitives.concatenate(bodies),
        phase_rad=float(rng.uniform(0, 2 * np.pi)),
    )


def _furnish(draw: _Draw, row: Row) -> list[Primitives]:
    """One row on both sides; annotated items become agents, the rest is returned as scenery."""
    rng, ground = draw.rng, draw.ground
    placed = []
    for side in (1, -1) if row.l_m else (-1,):
        for s, room in draw.positions(row.every_m, draw.span_m):
            reach = room / 2 + FOOTWAY_WIDTH_M
            if rng.random() > row.share or any(
                abs(s - street.s_m) < street.half_width_m + reach for street in ground.side_streets
            ):
                continue
            left = side * (row.l_m + rng.uniform(-row.jitter_m, row.jitter_m))
            turn = (np.pi if side > 0 else 0.0) + rng.uniform(-row.yaw_rad, row.yaw_rad)
            thing = row.recipe(rng, room * (1 - ground.road.curvature_per_m * left))
            if isinstance(thing, Item):
                draw.add(thing, Track(s, left, yaw_rad=turn), _parked_attribute(thing))
            else:
                placed.append(_stand(ground, Primitives.of(thing, INDEX[row.category]), s, left, turn))
    return placed


def _stand(ground: Ground, parts: Primitives, s: float, left: float, turn: float) -> Primitives:
    x, y = ground.road.to_world(s, left)
    z = ground.height_m(x, y)
    rotation: Float64Array = rotation_z(float(ground.road.heading_at(s)) + turn)
    return parts.posed(rotation, np.array([x, y, z]))


def _signals(draw: _Draw) -> list[Primitives]:
    if not draw.style.signals:
        return []
    left = draw.ground.half_width_m + 0.5
    return [
        _stand(
            draw.ground,
            Primitives.of(scenery.traffic_light(draw.rng), INDEX["static.manmade"]),
            street.s_m - side * (street.half_width_m + FOOTWAY_WIDTH_M + 0.5),
            -side * left,
            0.0 if side > 0 else np.pi,
        )
        for street in draw.ground.side_streets
        for side in (1, -1)
    ]


def _works(draw: _Draw) -> None:
    """Now and then a closed stretch at the road's edge: barriers, cones, an excavator, workers."""
    rng, style = draw.rng, draw.style
    if rng.random() > style.works:
        return
    start, length = rng.uniform(15, 30), rng.uniform(13, 20)
    left = -(style.lanes_m[-1] if len(style.lanes_m) > 1 else draw.ground.half_width_m - 1.2)
    if any(start - 10 < street.s_m < start + length + 10 for street in draw.ground.side_streets):
        return
    for s in (start, start + length):
        draw.add(items.barrier(rng), Track(s, left), "")
    for s in np.arange(start + 1.5, start + length, 2.5):
        draw.add(items.cone(rng), Track(float(s), left + 1.7), "")
    draw.add(items.digger(rng), Track(start + length * 0.6, left, yaw_rad=np.pi), "vehicle.stopped")
    for s in (start + 1.5, start + 2.8):
        yaw = float(rng.uniform(0, 2 * np.pi))
        draw.add(items.worker(rng), Track(s, left + rng.uniform(-0.7, 0.7), yaw_rad=yaw), "pedestrian.standing")


def _waiting(draw: _Draw) -> None:
    """Cars that wait in the side streets, on their right-hand side."""
    for street in draw.ground.side_streets:
        for side in (1, -1):
            if draw.rng.random() < 0.6:
                s = street.s_m + side * street.half_width_m / 2
                yaw = -side * np.pi / 2
                left = side * (draw.ground.half_width_m + FOOTWAY_WIDTH_M + 4.0)
                draw.add(items.car(draw.rng), Track(s, left, yaw_rad=yaw), "vehicle.stopped")


def _traffic(draw: _Draw) -> None:
    rng, style = draw.rng, draw.style
    for direction in (1, -1):
        for lane, left in enumerate(style.lanes_m):
            mine = direction == 1 and lane == 0
            speed = draw.speed_mps if mine else float(rng.uniform(*style.traffic_speed_mps))
            travelled = direction * speed * draw.duration_s
            span = (draw.span_m[0] - max(travelled, 0), draw.span_m[1] - min(travelled, 0))
            for s, _ in draw.positions(style.traffic_every_m, span):
                kind = (items.car, items.truck, items.bus)[int(rng.choice(3, p=[0.8, 0.13, 0.07]))]
                track = Track(s, -direction * left, direction * speed, yaw_rad=0.0 if direction > 0 else np.pi)
                draw.add(kind(rng), track, "vehicle.moving", margin_m=2.0)


def _cyclists(draw: _Draw) -> None:
    rng, style = draw.rng, draw.style
    if not style.cyclist_m:
        return
    for direction in (1, -1):
        speed = float(rng.uniform(3.5, 5.5))
        for s, _ in draw.positions((25.0, 70.0), draw.span_m):
            yaw = 0.0 if direction > 0 else np.pi
            track = Track(s, -direction * style.cyclist_m, direction * speed, yaw_rad=yaw)
            draw.add(items.bicycle(rng, ridden=True), track, "cycle.with_rider")


def _crossing(draw: _Draw) -> None:
    """People on the crossings, and cars that come out of the side streets."""
    rng, style = draw.rng, draw.style
    for street in draw.ground.side_streets:
        for _ in range(4 if style.signals else 1):
            side, direction = rng.choice([1, -1]), rng.choice([1, -1])
            s = street.s_m + side * (street.half_width_m + rng.uniform(0.8, 2.4))
            start = -direction * rng.uniform(2.0, draw.ground.half_width_m + 3)
            speed = direction * rng.uniform(0.9, 1.5)
            track = Track(s, start, 0.0, speed, yaw_rad=direction * np.pi / 2)
            draw.add(items.pedestrian(rng, walking=True), track, "pedestrian.moving", margin_m=0.8)
        direction = rng.choice([1, -1])
        start = -direction * rng.uniform(15, 60)
        speed = direction * rng.uniform(5, 8)
        s = street.s_m + direction * street.half_width_m / 2
        track = Track(s, start, 0.0, speed, yaw_rad=direction * np.pi / 2)
        draw.add(items.car(rng), track, "vehicle.moving", margin_m=2.0)


def _walkers(draw: _Draw) -> None:
    rng, style = draw.rng, draw.style
    for line in style.walkers_m:
        for side in (1, -1):
            for s, _ in draw.positions(style.walkers_every_m, draw.span_m):
                walking = rng.random() < 0.8
                direction = rng.choice([1, -1])
                yaw = (0.0 if direction > 0 else np.pi) if walking else rng.uniform(0, 2 * np.pi)
                speed = direction * rng.uniform(0.8, 1.6) if walking else 0.0
                track = Track(s, side * line, float(speed), yaw_rad=float(yaw))
                attribute = "pedestrian.moving" if walking else "pedestrian.standing"
                draw.add(items.pedestrian(rng, walking=walking), track, attribute)


def _parked_attribute(item: Item) -> str:
    two_wheeled = item.category in {"vehicle.bicycle", "vehicle.motorcycle"}
    return "cycle.without_rider" if two_wheeled else "vehicle.parked"


def _light(rng: Generator) -> Light:
    base = _LIGHTS[int(rng.integers(len(_LIGHTS)))]
    return Light(
        sun_azimuth_rad=float(rng.uniform(0, 2 * np.pi)),
        sun_elevation_rad=base.sun_elevation_rad * float(rng.uniform(0.85, 1.15)),
        sun=base.sun,
        ambient=base.ambient,
        zenith=base.zenith,
        horizon=base.horizon,
        clouds=base.clouds,
        haze_m=base.haze_m * float(rng.uniform(0.8, 1.3)),
    )
