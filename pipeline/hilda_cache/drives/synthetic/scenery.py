"""Recipes for what lines a road and is never annotated: buildings, trees, poles, fences.

Parts are in the object's own frame, origin on the ground. Where it matters, +y looks at the road and -x at the
traffic that drives along +x.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from hilda_cache.drives.synthetic.items import STEEL, Colour, pick
from hilda_cache.drives.synthetic.primitives import Material, Part, Shape

_WALLS: tuple[Colour, ...] = (
    (0.62, 0.38, 0.29),
    (0.72, 0.66, 0.56),
    (0.58, 0.58, 0.58),
    (0.80, 0.74, 0.62),
    (0.50, 0.44, 0.40),
    (0.66, 0.56, 0.48),
)


def block(rng: Generator, width: float, depth: float) -> list[Part]:
    """A city building whose front stands at y = 0 and looks along +y: storeys, a roof edge, now and then a setback."""
    height = 3.2 * int(rng.integers(2, 8)) + 1.0
    wall = pick(rng, _WALLS)
    main = Part(Shape.BOX, (0.0, -depth / 2, height / 2), (width / 2, depth / 2, height / 2), Material.FACADE, wall)
    edge = Part(
        Shape.BOX,
        (0.0, -depth / 2, height + 0.2),
        (width / 2 + 0.25, depth / 2 + 0.25, 0.25),
        Material.PLASTER,
        (wall[0] * 0.75, wall[1] * 0.75, wall[2] * 0.75),
    )
    parts = [main, edge]
    if rng.random() < 0.35:
        top = 3.2 * int(rng.integers(1, 3))
        parts.append(
            Part(
                Shape.BOX,
                (0.0, -depth / 2, height + top / 2),
                (width * 0.32, depth * 0.32, top / 2),
                Material.FACADE,
                pick(rng, _WALLS),
            )
        )
    return parts


def house(rng: Generator, width: float, depth: float) -> list[Part]:
    """A dwelling whose front stands at y = 0 and looks along +y: two storeys, a pitched roof, a chimney."""
    height = float(rng.choice([3.4, 5.8]))
    roof = pick(rng, ((0.50, 0.22, 0.16), (0.30, 0.28, 0.30), (0.42, 0.30, 0.22)))
    # A square prism lying on its edge, half sunk into the house, is a roof of 45 degrees.
    half = depth / 2 / np.sqrt(2) + 0.3
    return [
        Part(
            Shape.BOX,
            (0.0, -depth / 2, height / 2),
            (width / 2, depth / 2, height / 2),
            Material.FACADE,
            pick(rng, _WALLS),
        ),
        Part(
            Shape.BOX,
            (0.0, -depth / 2, height),
            (width / 2 - 0.01, half, half),
            Material.ROOF,
            roof,
            roll_rad=np.pi / 4,
        ),
        Part(
            Shape.BOX,
            (width * 0.3, -depth * 0.6, height + depth * 0.45),
            (0.35, 0.35, depth * 0.22),
            Material.PLASTER,
            (0.5, 0.3, 0.25),
        ),
    ]


def tree(rng: Generator) -> list[Part]:
    """A broad-leaved tree, or a slender conifer."""
    green = pick(rng, ((0.20, 0.36, 0.12), (0.28, 0.42, 0.14), (0.15, 0.30, 0.13), (0.42, 0.40, 0.14)), 0.04)
    bark = pick(rng, ((0.32, 0.24, 0.18), (0.42, 0.38, 0.33)))
    if rng.random() < 0.2:
        height, girth = rng.uniform(6, 11), rng.uniform(1.1, 1.7)
        return [
            Part(Shape.CYLINDER, (0, 0, 0.8), (0.16, 0.16, 0.8), Material.BARK, bark),
            Part(Shape.CROWN, (0, 0, height * 0.55), (girth, girth, height * 0.45), Material.LEAF, green),
        ]
    trunk, girth, radius = rng.uniform(2.2, 3.6), rng.uniform(0.12, 0.26), rng.uniform(1.3, 2.6)
    crown = [
        Part(
            Shape.CROWN,
            tuple(offset + np.array([0, 0, trunk + 0.75 * radius])),
            (radius * scale, radius * scale, radius * 0.8 * scale),
            Material.LEAF,
            green,
            yaw_rad=rng.uniform(0, np.pi),
        )
        for scale, offset in (
            (1.0, np.zeros(3)),
            (0.72, np.array([*rng.uniform(-0.6, 0.6, 2), 0.6]) * radius),
            (0.7, np.array([*rng.uniform(-0.7, 0.7, 2), 0.1]) * radius),
        )
    ]
    return [
        Part(Shape.CYLINDER, (0, 0, trunk / 2), (girth, girth, trunk / 2 + 0.2), Material.BARK, bark),
        *crown,
    ]


def bush(rng: Generator) -> list[Part]:
    """One or two low mounds of leaves."""
    green = pick(rng, ((0.20, 0.34, 0.12), (0.30, 0.36, 0.15)), 0.04)
    size = rng.uniform(0.5, 1.1)
    return [
        Part(
            Shape.CROWN,
            (shift, shift * 0.4, size * 0.55),
            (size, size * 0.9, size * 0.75),
            Material.LEAF,
            green,
        )
        for shift in ((0.0,) if rng.random() < 0.5 else (-0.5, 0.5))
    ]


def hedge(rng: Generator, length: float) -> list[Part]:
    """A clipped hedge along x."""
    height = rng.uniform(0.9, 1.6)
    return [Part(Shape.BOX, (0, 0, height / 2), (length / 2, 0.4, height / 2), Material.LEAF, (0.18, 0.32, 0.13))]


def fence(rng: Generator, length: float) -> list[Part]:
    """A wooden or concrete fence along x."""
    height = rng.uniform(0.9, 1.7)
    wooden = rng.random() < 0.6
    material, colour = (Material.WOOD, (0.48, 0.36, 0.25)) if wooden else (Material.CONCRETE, (0.6, 0.6, 0.58))
    return [Part(Shape.BOX, (0, 0, height / 2), (length / 2, 0.07, height / 2), material, colour)]


def lamp(rng: Generator) -> list[Part]:
    """A street lamp whose arm reaches along +y."""
    height = rng.uniform(6.5, 8.5)
    return [
        Part(Shape.CYLINDER, (0, 0, height / 2), (0.09, 0.09, height / 2), Material.METAL, STEEL),
        Part(Shape.BOX, (0, 0.9, height), (0.06, 0.9, 0.05), Material.METAL, STEEL),
        Part(Shape.BOX, (0, 1.7, height - 0.08), (0.12, 0.3, 0.06), Material.SIGN, (0.9, 0.9, 0.82)),
    ]


def traffic_light(rng: Generator) -> list[Part]:
    """A signal head on a pole, facing -x."""
    height = rng.uniform(3.0, 3.4)
    lamps: tuple[Colour, ...] = ((0.9, 0.1, 0.08), (0.25, 0.2, 0.05), (0.05, 0.2, 0.08))
    return [
        Part(Shape.CYLINDER, (0, 0, height / 2), (0.07, 0.07, height / 2), Material.METAL, (0.2, 0.2, 0.2)),
        Part(Shape.BOX, (0, 0, height - 0.35), (0.14, 0.17, 0.5), Material.METAL, (0.08, 0.09, 0.08)),
        *(
            Part(Shape.ELLIPSOID, (-0.13, 0, height - 0.05 - 0.3 * k), (0.06, 0.1, 0.1), Material.SIGN, colour)
            for k, colour in enumerate(lamps)
        ),
    ]


def sign(rng: Generator) -> list[Part]:
    """A road sign on a pole, facing -x."""
    height = rng.uniform(2.3, 2.8)
    face = pick(rng, ((0.15, 0.30, 0.65), (0.80, 0.12, 0.10), (0.92, 0.85, 0.2), (0.9, 0.9, 0.9)), 0.02)
    return [
        Part(Shape.CYLINDER, (0, 0, height / 2), (0.04, 0.04, height / 2), Material.METAL, STEEL),
        Part(Shape.BOX, (-0.05, 0, height - 0.3), (0.02, 0.35, 0.35), Material.SIGN, face),
    ]


def gantry(rng: Generator, half_span: float) -> list[Part]:
    """A sign gantry over a road along x: two posts, a beam, two panels facing -x."""
    return [
        *(Part(Shape.CYLINDER, (0, y, 3.2), (0.18, 0.18, 3.2), Material.METAL, STEEL) for y in (half_span, -half_span)),
        Part(Shape.BOX, (0, 0, 6.2), (0.15, half_span, 0.2), Material.METAL, STEEL),
        *(
            Part(Shape.BOX, (-0.25, y * half_span, 6.1), (0.05, 2.2, 1.1), Material.SIGN, (0.06, 0.30, 0.16))
            for y in (-0.45 + rng.uniform(-0.1, 0.1), 0.45)
        ),
    ]


def wall(rng: Generator, length: float) -> list[Part]:
    """A noise wall along x."""
    height = rng.uniform(2.8, 4.0)
    colour = pick(rng, ((0.62, 0.60, 0.55), (0.45, 0.5, 0.42)))
    return [Part(Shape.BOX, (0, 0, height / 2), (length / 2, 0.12, height / 2), Material.CONCRETE, colour)]


def guard_rail(rng: Generator, length: float) -> list[Part]:
    """A steel rail along x on short posts."""
    posts = np.arange(-length / 2 + 1, length / 2, 4.0) + rng.uniform(-0.2, 0.2)
    return [
        Part(Shape.BOX, (0, 0, 0.62), (length / 2, 0.05, 0.16), Material.METAL, (0.62, 0.64, 0.66)),
        *(Part(Shape.BOX, (float(x), 0, 0.25), (0.05, 0.06, 0.25), Material.METAL, (0.4, 0.41, 0.42)) for x in posts),
    ]
