"""What the synthetic world is made of: boxes, cylinders and ellipsoids, and where rays meet them.

A primitive is the affine image of a unit solid: the cube [-1, 1]^3, the sphere of radius 1, or the upright
cylinder of radius 1 between z = -1 and z = 1. A ray is taken into that unit frame once; an affine map keeps the
ray parameter t, so t found there is t in metres (or whatever unit the ray's direction has) in the world.

Legend: P primitives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from hilda_cache.drives.frame import Float64Array
from hilda_cache.drives.synthetic.noise import Array, noise


class Shape(IntEnum):
    """Unit solids."""

    BOX = 0
    CYLINDER = 1
    ELLIPSOID = 2
    CROWN = 3  # an ellipsoid of leaves: rays that graze it slip through gaps


class Material(IntEnum):
    """What a surface looks like and how strongly it reflects; `shading` and `lidar` say how."""

    FACADE = 0
    PLASTER = 1
    ROOF = 2
    BARK = 3
    LEAF = 4
    METAL = 5
    SIGN = 6
    CAR_PAINT = 7
    CABIN = 8
    COACH = 9
    CARGO = 10
    TYRE = 11
    CLOTH = 12
    SKIN = 13
    STRIPES = 14
    CONE = 15
    CONCRETE = 16
    WOOD = 17


@dataclass(frozen=True, slots=True)
class Part:
    """One primitive of an object, in the object's frame: x forward, y left, z up, origin on the ground."""

    shape: Shape
    centre_m: tuple[float, float, float]
    half_m: tuple[float, float, float]  # half extents along the part's own axes
    material: Material
    colour: tuple[float, float, float]  # RGB, 0 to 1
    yaw_rad: float = 0.0
    roll_rad: float = 0.0  # about the part's own x axis, before the yaw
    pitch_rad: float = 0.0  # about the part's own y axis, before roll and yaw

    def axes(self) -> Float64Array:
        """(3, 3) rotation whose columns are the part's axes in the object's frame."""
        return rotation_z(self.yaw_rad) @ rotation_x(self.roll_rad) @ rotation_y(self.pitch_rad)


@dataclass(frozen=True, slots=True, eq=False)
class Primitives:
    """P primitives as columns, so that culling and posing are single array expressions."""

    shape: NDArray[np.uint8]  # (P,)
    centre_m: Float64Array  # (P, 3)
    axes: Float64Array  # (P, 3, 3), columns are the primitive's axes
    half_m: Float64Array  # (P, 3)
    material: NDArray[np.uint8]  # (P,)
    colour: NDArray[np.float32]  # (P, 3)
    category: NDArray[np.uint8]  # (P,) index in `categories.CATEGORIES`
    instance: NDArray[np.int32]  # (P,) which object of the scene it belongs to; -1 for scenery

    def __len__(self) -> int:
        return len(self.shape)

    @classmethod
    def of(cls, parts: Sequence[Part], category: int, instance: int = -1) -> Primitives:
        """Columns of one object's parts."""
        count = len(parts)
        return cls(
            shape=np.array([part.shape for part in parts], np.uint8),
            centre_m=np.array([part.centre_m for part in parts], np.float64).reshape(count, 3),
            axes=np.array([part.axes() for part in parts], np.float64).reshape(count, 3, 3),
            half_m=np.array([part.half_m for part in parts], np.float64).reshape(count, 3),
            material=np.array([part.material for part in parts], np.uint8),
            colour=np.array([part.colour for part in parts], np.float32).reshape(count, 3),
            category=np.full(count, category, np.uint8),
            instance=np.full(count, instance, np.int32),
        )

    @classmethod
    def concatenate(cls, groups: Iterable[Primitives]) -> Primitives:
        """All primitives of all groups, in order."""
        members = [cls.of([], 0), *groups]
        return cls(*(np.concatenate([getattr(g, f.name) for g in members]) for f in fields(cls)))

    def posed(self, rotation: Float64Array, translation_m: Float64Array) -> Primitives:
        """Take the primitives from their object's frame to the world.

        Args:
            rotation: (3, 3), or (P, 3, 3) where every primitive has its own.
            translation_m: (3,) or (P, 3).
        """
        centre = np.matmul(rotation, self.centre_m[..., None])[..., 0] + translation_m
        return Primitives(
            self.shape,
            centre,
            np.matmul(rotation, self.axes),
            self.half_m,
            self.material,
            self.colour,
            self.category,
            self.instance,
        )

    def unit_from_world(self) -> Float64Array:
        """(P, 3, 3) linear part of the map from the world to each unit frame."""
        unit: Float64Array = np.swapaxes(self.axes, 1, 2) / self.half_m[:, :, None]
        return unit

    def corners_m(self) -> Float64Array:
        """(P, 8, 3) corners of the boxes around the primitives, world; bit k of a corner's index is axis k."""
        signs = np.array([[1 if corner >> axis & 1 else -1 for axis in range(3)] for corner in range(8)])
        offsets = np.einsum("pij,pcj->pci", self.axes, signs[None] * self.half_m[:, None, :])
        corners: Float64Array = self.centre_m[:, None, :] + offsets
        return corners


def intersect(shape: int, origin: Sequence[Array], direction: Sequence[Array]) -> Array:
    """Where rays enter a unit solid.

    Args:
        shape: one of `Shape`.
        origin: x, y, z of the rays' origins in the unit frame; broadcast against the directions.
        direction: x, y, z of their directions, not normalised.

    Returns:
        Ray parameter t of the entry, NaN or infinite where the ray's line misses the solid; negative where
        the solid lies behind. Rays start outside: a ray from within has its entry behind it.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _INTERSECT[Shape(shape)](origin, direction)


def _enter_box(origin: Sequence[Array], direction: Sequence[Array]) -> Array:
    # The slab test of Kay and Kajiya (1986): inside while between all three pairs of planes.
    slabs = [_between(o, d) for o, d in zip(origin, direction, strict=True)]
    entry = np.maximum(np.maximum(slabs[0][0], slabs[1][0]), slabs[2][0])
    leave = np.minimum(np.minimum(slabs[0][1], slabs[1][1]), slabs[2][1])
    return np.where(entry <= leave, entry, np.inf)


def _between(origin: Array, direction: Array) -> tuple[Array, Array]:
    """Ray parameters at which one coordinate enters and leaves [-1, 1]."""
    inverse = 1 / direction
    middle, half = -origin * inverse, np.abs(inverse)
    return middle - half, middle + half


def _enter_ellipsoid(origin: Sequence[Array], direction: Sequence[Array]) -> Array:
    return _enter_round(origin, direction)[0]


def _enter_cylinder(origin: Sequence[Array], direction: Sequence[Array]) -> Array:
    side, exit_side = _enter_round(origin[:2], direction[:2])
    cap, exit_cap = _between(origin[2], direction[2])
    entry = np.maximum(side, cap)
    return np.where(entry <= np.minimum(exit_side, exit_cap), entry, np.inf)


def _enter_round(origin: Sequence[Array], direction: Sequence[Array]) -> tuple[Array, Array]:
    """Entry and exit of the unit circle or sphere, NaN for a miss.

    The squared distance of the line from the centre is computed at the foot of the perpendicular: the
    textbook discriminant b^2 - ac cancels in float32 for a thin pole 2,000 radii away.
    """
    squared = sum(d * d for d in direction)
    foot = -sum(o * d for o, d in zip(origin, direction, strict=True)) / squared
    distance = sum((o + foot * d) ** 2 for o, d in zip(origin, direction, strict=True))
    reach = np.sqrt((1 - distance) / squared)
    return foot - reach, foot + reach


def _enter_crown(origin: Sequence[Array], direction: Sequence[Array]) -> Array:
    # The pattern of gaps is anchored to the surface, so sensors beside each other see the same ones.
    entry = _enter_ellipsoid(origin, direction)
    x, y, z = (o + np.nan_to_num(entry) * d for o, d in zip(origin, direction, strict=True))
    facing = -(x * direction[0] + y * direction[1] + z * direction[2])
    facing = facing / np.sqrt(sum(d * d for d in direction))
    gap = noise(x + 0.6 * z, y - 0.6 * z, 60) > 0.4 + 0.9 * facing
    return np.where(gap, np.inf, entry)


_INTERSECT = {
    Shape.BOX: _enter_box,
    Shape.CYLINDER: _enter_cylinder,
    Shape.ELLIPSOID: _enter_ellipsoid,
    Shape.CROWN: _enter_crown,
}


def unit_normals(shape: NDArray[np.uint8], unit: NDArray[np.floating]) -> Array:
    """Outward directions at surface points, in unit frames (not yet divided by the half extents).

    Args:
        shape: (M,) of `Shape`.
        unit: (3, M) surface points in unit frames.

    Returns:
        (3, M): for boxes a signed axis, for ellipsoids the point itself, for cylinders side or cap.
    """
    x, y, z = unit
    normal = unit.copy()
    box = shape == Shape.BOX
    size = np.abs(unit)
    for axis in range(3):
        face = (size[axis] >= size).all(axis=0)
        normal[axis] = np.where(box, np.where(face, np.sign(unit[axis]), 0), normal[axis])
    cylinder = shape == Shape.CYLINDER
    side = x * x + y * y >= z * z
    normal[:2] = np.where(cylinder & ~side, 0, normal[:2])
    normal[2] = np.where(cylinder, np.where(side, 0, np.sign(z)), normal[2])
    return normal


def rotation_x(angle_rad: float) -> Float64Array:
    """(3, 3) rotation about x, right-handed."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=np.float64)


def rotation_y(angle_rad: float) -> Float64Array:
    """(3, 3) rotation about y, right-handed."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=np.float64)


def rotation_z(angle_rad: float) -> Float64Array:
    """(3, 3) rotation about z, right-handed."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=np.float64)
