"""Four kinds of scene as tables: what stands where along each kind of road, who drives and who walks.

A row is something repeated along both sides of the road at a lateral position: trees, lamps, buildings, parked
cars. `layout` draws a world from a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from hilda_cache.drives.synthetic import items, scenery
from hilda_cache.drives.synthetic.items import Item
from hilda_cache.drives.synthetic.primitives import Part
from hilda_cache.drives.synthetic.road import Region

Recipe = Callable[[Generator, float], "list[Part] | Item"]


@dataclass(frozen=True, slots=True)
class Row:
    """Something repeated along the road.

    Attributes:
        recipe: draws one of them, given the generator and the room along the road.
        l_m: distance from the centre line; both sides have the row.
        every_m: least and largest room along the road for one.
        share: how often a place is taken.
        category: lidarseg category of scenery; unused for annotated items.
        jitter_m: largest shift across the road.
        yaw_rad: largest turn from the road's direction.
    """

    recipe: Recipe
    l_m: float
    every_m: tuple[float, float]
    share: float = 1.0
    category: str = "static.manmade"
    jitter_m: float = 0.0
    yaw_rad: float = 0.0


@dataclass(frozen=True, slots=True)
class Style:
    """One kind of scene."""

    name: str
    description: str
    bands: tuple[tuple[float, Region], ...]
    stripes_m: tuple[tuple[float, bool], ...]
    kerb_m: float
    lanes_m: tuple[float, ...]  # |l| of the lanes of one direction; the first is the recording vehicle's
    ego_speed_mps: tuple[float, float]
    traffic_speed_mps: tuple[float, float]
    traffic_every_m: tuple[float, float]
    walkers_m: tuple[float, ...]  # |l| of the lines that people walk on
    walkers_every_m: tuple[float, float]
    cyclist_m: float  # |l| of cyclists; 0 for none
    curvature_per_m: float  # largest
    side_streets_every_m: tuple[float, float] | None
    works: float  # how often there are road works
    signals: bool  # traffic lights at side streets
    rows: tuple[Row, ...]


def _car(rng: Generator, room_m: float) -> Item:
    return items.car(rng)


def _parked(rng: Generator, room_m: float) -> Item:
    kinds = (items.car, items.truck, items.motorcycle, lambda r: items.bicycle(r, ridden=False))
    return kinds[int(rng.choice(4, p=[0.86, 0.04, 0.05, 0.05]))](rng)


def _block(rng: Generator, room_m: float) -> list[Part]:
    return scenery.block(rng, room_m - rng.choice([0.0, 0.0, 2.5]), rng.uniform(10, 14))


def _house(rng: Generator, room_m: float) -> list[Part]:
    return scenery.house(rng, room_m * rng.uniform(0.5, 0.75), rng.uniform(7, 9))


def _alone(recipe: Callable[[Generator], list[Part]]) -> Recipe:
    return lambda rng, room_m: recipe(rng)


_TREE, _BUSH, _LAMP, _SIGN = map(_alone, (scenery.tree, scenery.bush, scenery.lamp, scenery.sign))
_GREEN = "static.vegetation"

URBAN = Style(
    name="urban",
    description="City street: shop fronts, parked cars, crossings, many people",
    bands=((7.0, Region.ROAD), (11.5, Region.SIDEWALK), (np.inf, Region.OTHER)),
    stripes_m=((0.0, True), (4.7, False), (-4.7, False)),
    kerb_m=0.14,
    lanes_m=(1.9,),
    ego_speed_mps=(5.0, 8.0),
    traffic_speed_mps=(5.0, 9.0),
    traffic_every_m=(16.0, 45.0),
    walkers_m=(8.9, 9.6, 10.3, 10.9),
    walkers_every_m=(9.0, 45.0),
    cyclist_m=4.0,
    curvature_per_m=1 / 400,
    side_streets_every_m=(55.0, 85.0),
    works=0.5,
    signals=True,
    rows=(
        Row(_block, 11.8, (14.0, 24.0)),
        Row(_block, 34.0, (18.0, 34.0), share=0.7, jitter_m=4.0),
        Row(_parked, 5.9, (6.6, 13.0), share=0.75, jitter_m=0.1),
        Row(_TREE, 8.0, (9.0, 18.0), share=0.5, category=_GREEN),
        Row(_LAMP, 7.5, (24.0, 30.0)),
        Row(_SIGN, 7.4, (18.0, 45.0), share=0.7),
    ),
)

RESIDENTIAL = Style(
    name="residential",
    description="Residential street: houses with pitched roofs, gardens, hedges, parked cars",
    bands=((4.7, Region.ROAD), (6.2, Region.TERRAIN), (8.0, Region.SIDEWALK), (np.inf, Region.TERRAIN)),
    stripes_m=(),
    kerb_m=0.1,
    lanes_m=(1.3,),
    ego_speed_mps=(5.0, 7.0),
    traffic_speed_mps=(5.0, 8.0),
    traffic_every_m=(30.0, 90.0),
    walkers_m=(6.8, 7.4),
    walkers_every_m=(25.0, 80.0),
    cyclist_m=0.0,
    curvature_per_m=1 / 150,
    side_streets_every_m=(70.0, 120.0),
    works=0.0,
    signals=False,
    rows=(
        Row(_house, 14.0, (13.0, 20.0), jitter_m=2.0, yaw_rad=0.08),
        Row(_car, 3.65, (8.0, 30.0), share=0.55),
        Row(_TREE, 5.4, (8.0, 22.0), share=0.5, category=_GREEN),
        Row(_TREE, 26.0, (8.0, 14.0), share=0.8, category=_GREEN, jitter_m=3.0),
        Row(_TREE, 11.2, (14.0, 40.0), share=0.5, category=_GREEN, jitter_m=0.8),
        Row(lambda r, room: scenery.hedge(r, room * 0.8), 8.8, (9.0, 18.0), share=0.45, category=_GREEN),
        Row(lambda r, room: scenery.fence(r, room * 0.9), 8.4, (10.0, 20.0), share=0.4),
        Row(_BUSH, 10.2, (5.0, 14.0), share=0.5, category=_GREEN, jitter_m=0.6),
        Row(_LAMP, 5.9, (30.0, 40.0)),
    ),
)

PARK = Style(
    name="park",
    description="Road through a park: many trees, bushes, cyclists and strollers, few buildings",
    bands=((3.7, Region.ROAD), (6.0, Region.TERRAIN), (9.0, Region.SIDEWALK), (np.inf, Region.TERRAIN)),
    stripes_m=((0.0, True),),
    kerb_m=0.06,
    lanes_m=(1.8,),
    ego_speed_mps=(6.0, 9.0),
    traffic_speed_mps=(6.0, 10.0),
    traffic_every_m=(30.0, 80.0),
    walkers_m=(6.6, 7.4, 8.3),
    walkers_every_m=(15.0, 50.0),
    cyclist_m=7.9,
    curvature_per_m=1 / 120,
    side_streets_every_m=None,
    works=0.0,
    signals=False,
    rows=(
        Row(_TREE, 5.2, (6.0, 14.0), share=0.7, category=_GREEN, jitter_m=0.3),
        Row(_TREE, 12.5, (5.0, 10.0), share=0.8, category=_GREEN, jitter_m=2.0),
        Row(_TREE, 19.0, (5.0, 9.0), share=0.9, category=_GREEN, jitter_m=3.0),
        Row(_TREE, 30.0, (5.0, 9.0), category=_GREEN, jitter_m=4.0),
        Row(_BUSH, 10.4, (4.0, 10.0), share=0.7, category=_GREEN, jitter_m=0.8),
        Row(lambda r, room: scenery.fence(r, room * 0.95), 9.5, (10.0, 20.0), share=0.25),
        Row(_house, 40.0, (60.0, 120.0), share=0.5),
        Row(_LAMP, 4.3, (35.0, 45.0), share=0.7),
    ),
)

_CARRIAGEWAY_M = ((1.2, False), (4.6, True), (8.2, True), (12.0, False))
ARTERIAL = Style(
    name="arterial",
    description="Dual carriageway: guard rails, noise walls, sign gantries, fast traffic with lorries",
    bands=((0.9, Region.OTHER), (12.4, Region.ROAD), (np.inf, Region.TERRAIN)),
    stripes_m=tuple((side * l_m, dashed) for side in (1, -1) for l_m, dashed in _CARRIAGEWAY_M),
    kerb_m=0.0,
    lanes_m=(6.4, 2.9, 10.0),
    ego_speed_mps=(9.0, 10.0),
    traffic_speed_mps=(8.0, 14.0),
    traffic_every_m=(18.0, 60.0),
    walkers_m=(),
    walkers_every_m=(0.0, 0.0),
    cyclist_m=0.0,
    curvature_per_m=1 / 350,
    side_streets_every_m=None,
    works=0.5,
    signals=False,
    rows=(
        Row(lambda r, room: scenery.guard_rail(r, room), 0.35, (20.0, 20.0)),
        Row(lambda r, room: scenery.guard_rail(r, room), 13.0, (20.0, 20.0), share=0.8),
        Row(lambda r, room: scenery.wall(r, room), 19.0, (16.0, 30.0), share=0.4),
        Row(lambda r, room: scenery.gantry(r, 14.0), 0.0, (70.0, 120.0), share=0.5),
        Row(_TREE, 23.5, (5.0, 12.0), share=0.7, category=_GREEN, jitter_m=2.0),
        Row(_BUSH, 15.5, (4.0, 12.0), share=0.5, category=_GREEN, jitter_m=1.0),
        Row(_block, 38.0, (25.0, 45.0), share=0.6, jitter_m=4.0),
        Row(_LAMP, 13.8, (32.0, 40.0)),
    ),
)

STYLES = (URBAN, RESIDENTIAL, PARK, ARTERIAL)
