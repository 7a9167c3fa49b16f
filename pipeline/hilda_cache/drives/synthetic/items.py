"""Recipes for the things that drives annotate with boxes: vehicles, people, cones and barriers.

Every recipe draws sizes and colours from the generator it is given. Parts are in the object's own frame (x
forward, y left, z up, origin on the ground below the box's centre) and stay inside the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from hilda_cache.drives.synthetic.primitives import Material, Part, Shape

Colour = tuple[float, float, float]

_TYRE: Colour = (0.06, 0.06, 0.065)
_CAR_COLOURS: tuple[Colour, ...] = (
    (0.85, 0.85, 0.86),
    (0.55, 0.57, 0.60),
    (0.10, 0.10, 0.11),
    (0.60, 0.08, 0.07),
    (0.10, 0.20, 0.48),
    (0.30, 0.33, 0.30),
    (0.72, 0.62, 0.30),
)
_CLOTHES: tuple[Colour, ...] = (
    (0.15, 0.17, 0.30),
    (0.55, 0.12, 0.12),
    (0.75, 0.72, 0.65),
    (0.18, 0.35, 0.22),
    (0.10, 0.10, 0.10),
    (0.80, 0.55, 0.15),
)
STEEL: Colour = (0.45, 0.47, 0.48)


@dataclass(frozen=True, slots=True)
class Item:
    """An object with a box: its parts, the name of its category, and the box's length, width and height."""

    category: str
    size_m: tuple[float, float, float]
    parts: tuple[Part, ...]


def pick(rng: Generator, colours: Sequence[Colour], spread: float = 0.05) -> Colour:
    """One of the colours, each channel shifted by up to `spread`."""
    base = np.array(colours[int(rng.integers(len(colours)))])
    r, g, b = np.clip(base + rng.uniform(-spread, spread), 0.02, 0.98)
    return float(r), float(g), float(b)


def _wheel(x: float, y: float, radius: float, half_width: float) -> Part:
    return Part(Shape.CYLINDER, (x, y, radius), (radius, radius, half_width), Material.TYRE, _TYRE, roll_rad=np.pi / 2)


def _axles(xs: Sequence[float], width: float, radius: float) -> list[Part]:
    side = width / 2 - 0.12  # bodies are 3 cm narrower, so that wheels stand out of them
    return [_wheel(x, y, radius, 0.12) for x in xs for y in (side, -side)]


def car(rng: Generator) -> Item:
    """A saloon, hatchback or van: body, glazed cabin and four wheels."""
    length, width, height = rng.uniform(3.9, 4.9), rng.uniform(1.75, 1.95), rng.uniform(1.42, 1.6)
    van = rng.random() < 0.2
    if van:
        height *= 1.25
    waist = height * (0.5 if van else 0.58)
    colour = pick(rng, _CAR_COLOURS)
    share = 0.46 if van else rng.choice([0.27, 0.34])
    back = length * (-0.49 + share if van else -0.42 + share)
    body = Part(
        Shape.BOX,
        (0.0, 0.0, (waist + 0.2) / 2),
        (length / 2, width / 2 - 0.03, (waist - 0.2) / 2),
        Material.CAR_PAINT,
        colour,
    )
    cabin = Part(
        Shape.BOX,
        (back, 0.0, (waist + height) / 2),
        (length * share, width * 0.44, (height - waist) / 2),
        Material.CABIN,
        colour,
    )
    return Item(
        "vehicle.car",
        (length, width, height),
        (body, cabin, *_axles((length * 0.31, -length * 0.31), width, 0.33)),
    )


def truck(rng: Generator) -> Item:
    """A rigid lorry: cab, cargo box and three axles."""
    length, width, height = rng.uniform(6.5, 9.5), rng.uniform(2.3, 2.55), rng.uniform(2.9, 3.6)
    cab, gap = 1.9, 0.15
    cab_height = min(height, 2.7)
    colour = pick(rng, _CAR_COLOURS)
    cargo = length - cab - gap
    parts = (
        Part(
            Shape.BOX,
            (length / 2 - cab / 2, 0.0, (cab_height + 0.4) / 2),
            (cab / 2, width / 2 - 0.03, (cab_height - 0.4) / 2),
            Material.COACH,
            colour,
        ),
        Part(
            Shape.BOX,
            (-length / 2 + cargo / 2, 0.0, (height + 1.0) / 2),
            (cargo / 2, width / 2, (height - 1.0) / 2),
            Material.CARGO,
            pick(rng, ((0.8, 0.8, 0.78), (0.3, 0.4, 0.55), (0.6, 0.5, 0.35))),
        ),
        Part(
            Shape.BOX,
            (0.0, 0.0, 0.8),
            (length / 2 - 0.1, width * 0.35, 0.2),
            Material.METAL,
            (0.15, 0.15, 0.15),
        ),
        *_axles((length / 2 - 1.0, -length / 2 + 1.2, -length / 2 + 2.4), width, 0.48),
    )
    return Item("vehicle.truck", (length, width, height), parts)


def bus(rng: Generator) -> Item:
    """A rigid city bus with a strip of windows."""
    length, width, height = rng.uniform(10.5, 12.0), 2.55, rng.uniform(3.0, 3.3)
    colour = pick(rng, ((0.75, 0.15, 0.12), (0.15, 0.35, 0.65), (0.90, 0.75, 0.20), (0.2, 0.5, 0.3)))
    body = Part(
        Shape.BOX,
        (0.0, 0.0, (height + 0.35) / 2),
        (length / 2, width / 2 - 0.03, (height - 0.35) / 2),
        Material.COACH,
        colour,
    )
    return Item(
        "vehicle.bus.rigid",
        (length, width, height),
        (body, *_axles((length / 2 - 2.5, -length / 2 + 3.0), width, 0.5)),
    )


def digger(rng: Generator) -> Item:
    """An excavator: tracks, house, cab and a two-part boom."""
    yellow = pick(rng, ((0.85, 0.62, 0.10),), 0.03)
    parts = (
        *(Part(Shape.BOX, (-0.8, y, 0.4), (1.9, 0.3, 0.4), Material.TYRE, _TYRE) for y in (1.0, -1.0)),
        Part(Shape.BOX, (-1.1, 0.0, 1.45), (1.5, 1.2, 0.6), Material.CARGO, yellow),
        Part(Shape.BOX, (0.0, 0.6, 2.05), (0.6, 0.5, 0.75), Material.CABIN, yellow),
        Part(Shape.BOX, (1.5, -0.3, 2.35), (1.5, 0.18, 0.2), Material.CARGO, yellow, pitch_rad=-0.55),
        Part(Shape.BOX, (2.75, -0.3, 2.1), (0.15, 0.15, 1.1), Material.CARGO, yellow),
        Part(Shape.BOX, (2.75, -0.3, 0.75), (0.35, 0.5, 0.3), Material.METAL, STEEL),
    )
    return Item("vehicle.construction", (6.4, 2.6, 3.4), parts)


def _walker(rng: Generator, height: float, top: Colour, stride: float) -> tuple[Part, ...]:
    leg, torso, head = 0.46 * height, 0.38 * height, 0.075 * height
    trousers = pick(rng, ((0.12, 0.14, 0.22), (0.25, 0.22, 0.18), (0.08, 0.08, 0.09)))
    skin = pick(rng, ((0.85, 0.65, 0.52), (0.55, 0.38, 0.28), (0.35, 0.23, 0.17)))
    lean = float(np.arctan2(stride / 2, leg))
    legs = [
        Part(
            Shape.CYLINDER,
            (sign * stride / 4, sign * 0.09, leg / 2),
            (0.075, 0.085, leg / 2),
            Material.CLOTH,
            trousers,
            pitch_rad=-sign * lean,
        )
        for sign in (1, -1)
    ]
    arms = [
        Part(
            Shape.CYLINDER,
            (-sign * stride / 5, sign * 0.25, leg + torso * 0.5),
            (0.05, 0.05, torso * 0.42),
            Material.CLOTH,
            top,
            pitch_rad=sign * lean,
        )
        for sign in (1, -1)
    ]
    body = Part(Shape.ELLIPSOID, (0.0, 0.0, leg + torso * 0.47), (0.15, 0.23, torso * 0.56), Material.CLOTH, top)
    face = Part(Shape.ELLIPSOID, (0.01, 0.0, height - head * 1.3), (head, head, head * 1.3), Material.SKIN, skin)
    return (*legs, *arms, body, face)


def pedestrian(rng: Generator, walking: bool) -> Item:
    """An adult, now and then a child."""
    child = rng.random() < 0.15
    height = rng.uniform(1.05, 1.35) if child else rng.uniform(1.58, 1.88)
    stride = 0.3 * height if walking else 0.06
    name = "human.pedestrian.child" if child else "human.pedestrian.adult"
    return Item(name, (0.75, 0.68, height), _walker(rng, height, pick(rng, _CLOTHES), stride))


def worker(rng: Generator) -> Item:
    """A road worker in a high-visibility vest."""
    height = rng.uniform(1.65, 1.85)
    return Item(
        "human.pedestrian.construction_worker",
        (0.75, 0.68, height),
        _walker(rng, height, pick(rng, ((0.95, 0.55, 0.05), (0.8, 0.9, 0.1)), 0.02), 0.1),
    )


def _two_wheels(base: float, radius: float, colour: Colour) -> list[Part]:
    return [
        *(_wheel(sign * base / 2, 0.0, radius, 0.03) for sign in (1, -1)),
        Part(Shape.BOX, (0.0, 0.0, radius + 0.2), (base * 0.36, 0.035, 0.05), Material.METAL, colour),
        Part(Shape.BOX, (base * 0.42, 0.0, radius + 0.3), (0.04, 0.25, 0.36), Material.METAL, colour),
    ]


def bicycle(rng: Generator, ridden: bool) -> Item:
    """A bicycle, with its rider where it is ridden (one object, as nuScenes annotates them)."""
    parts = _two_wheels(1.05, 0.34, pick(rng, _CAR_COLOURS))
    if not ridden:
        return Item("vehicle.bicycle", (1.8, 0.55, 1.02), tuple(parts))
    rider = [
        Part(Shape.CYLINDER, (0.08, y, 0.66), (0.08, 0.08, 0.36), Material.CLOTH, (0.14, 0.14, 0.2), pitch_rad=-0.25)
        for y in (0.12, -0.12)
    ]
    top = pick(rng, _CLOTHES)
    rider.append(Part(Shape.ELLIPSOID, (0.05, 0.0, 1.22), (0.2, 0.22, 0.38), Material.CLOTH, top, pitch_rad=0.35))
    rider.append(Part(Shape.ELLIPSOID, (0.2, 0.0, 1.66), (0.12, 0.11, 0.14), Material.SKIN, (0.75, 0.57, 0.45)))
    return Item("vehicle.bicycle", (1.8, 0.6, 1.82), (*parts, *rider))


def motorcycle(rng: Generator) -> Item:
    """A parked motorcycle."""
    colour = pick(rng, _CAR_COLOURS)
    tank = Part(Shape.ELLIPSOID, (0.1, 0.0, 0.78), (0.5, 0.18, 0.2), Material.CAR_PAINT, colour)
    engine = Part(Shape.BOX, (0.0, 0.0, 0.45), (0.3, 0.16, 0.22), Material.METAL, STEEL)
    return Item("vehicle.motorcycle", (2.1, 0.7, 1.2), (*_two_wheels(1.4, 0.32, (0.1, 0.1, 0.1)), tank, engine))


def cone(rng: Generator) -> Item:
    """A traffic cone."""
    orange = pick(rng, ((0.95, 0.35, 0.05),), 0.03)
    parts = (
        Part(Shape.BOX, (0.0, 0.0, 0.03), (0.18, 0.18, 0.03), Material.TYRE, _TYRE),
        Part(Shape.CYLINDER, (0.0, 0.0, 0.25), (0.13, 0.13, 0.2), Material.CONE, orange),
        Part(Shape.CYLINDER, (0.0, 0.0, 0.57), (0.07, 0.07, 0.13), Material.CONE, orange),
    )
    return Item("movable_object.trafficcone", (0.4, 0.4, 0.72), parts)


def barrier(rng: Generator) -> Item:
    """A striped road-works barrier across its own x axis."""
    height = rng.uniform(0.95, 1.1)
    parts = (
        Part(Shape.BOX, (0.0, 0.0, height - 0.22), (0.05, 1.0, 0.2), Material.STRIPES, (0.9, 0.88, 0.85)),
        Part(Shape.BOX, (0.0, 0.0, 0.12), (0.22, 1.0, 0.12), Material.CONCRETE, (0.7, 0.68, 0.65)),
        *(
            Part(Shape.BOX, (0.0, y, height / 2 - 0.05), (0.04, 0.05, height / 2 - 0.15), Material.METAL, STEEL)
            for y in (0.8, -0.8)
        ),
    )
    return Item("movable_object.barrier", (0.5, 2.05, height), parts)
