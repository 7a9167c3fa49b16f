"""A shaken mount, dead lasers, other sensors: what goes wrong between the air and the point cloud.

Legend: N points.
"""

from __future__ import annotations

import numpy as np

from hilda_train.evaluate.corruptions.sweep import Corrupted, Sweep, beams_of

SHAKE_M = (0.2, 0.3, 0.4)
MISSING = (0.25, 0.5, 0.75)  # share of the beams
FOREIGN = (0.03, 0.07, 0.12)  # share of the points
FOREIGN_M = 3.0
LOST = (0.75, 0.85, 0.95)  # share of the dark points
KEPT = (0.75, 0.5, 0.25)  # share of the beams of the other sensor


def motion_blur(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """A mount that shakes (Robo3D): the sweep is moved as a whole, and every point by itself.

    The sweep's offset is normal with a deviation of 0.2, 0.3 or 0.4 m on each axis, a point's own with a tenth of that,
    a twentieth along z. Simplified as there: a shake is no smooth motion over the sweep.
    """
    shake_m = SHAKE_M[severity - 1]
    offset = rng.normal(size=3) + rng.normal(size=(len(sweep.xyz_m), 3)) * (0.1, 0.1, 0.05)
    xyz_m = (sweep.xyz_m + shake_m * offset).astype(np.float32)
    return Corrupted(xyz_m, sweep.intensity.copy(), np.arange(len(xyz_m)))


def beam_missing(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """Lasers that fail (Robo3D): a quarter, half or three quarters of the beams, drawn at random, are gone whole."""
    beam, count = beams_of(sweep)
    dead = rng.permutation(count)[: round(MISSING[severity - 1] * count)]
    return Corrupted.kept(sweep, np.flatnonzero(~np.isin(beam, dead)))


def crosstalk(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """Another LiDAR's pulses (Robo3D): 3, 7 or 12 % of the points are thrown off by a normal offset of 3 m an axis.

    Simplified: Robo3D also adds noise in the intensity's own unit; here the intensity stays.
    """
    count = len(sweep.xyz_m)
    hit = rng.permutation(count)[: round(FOREIGN[severity - 1] * count)]
    xyz_m, source = sweep.xyz_m.copy(), np.arange(count)
    xyz_m[hit] += rng.normal(scale=FOREIGN_M, size=(len(hit), 3)).astype(np.float32)
    source[hit] = -1
    return Corrupted(xyz_m, sweep.intensity.copy(), source)


def incomplete_echo(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """Echoes too weak to be seen (Robo3D): 75, 85 or 95 % of the dark points that are not ground are gone.

    Simplified: Robo3D takes them from vehicles and cycles, by their labels. Here no label is asked for: dark is what
    is not brighter than the median of the points off the ground, whatever it belongs to.
    """
    standing = np.flatnonzero(~sweep.ground)
    dark = standing[sweep.intensity[standing] <= np.median(sweep.intensity[standing])] if len(standing) else standing
    lost = rng.permutation(dark)[: round(LOST[severity - 1] * len(dark))]
    return Corrupted.kept(sweep, np.delete(np.arange(len(sweep.xyz_m)), lost))


def cross_sensor(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """A cheaper sensor (Robo3D): three, two or one of four beams, spread evenly, and every second point of each.

    Points of a beam are counted in the order of their azimuth. Nothing is drawn.
    """
    beam, count = beams_of(sweep)
    kept = max(1, round(KEPT[severity - 1] * count))
    chosen = np.arange(kept) * count // kept
    azimuth = np.arctan2(sweep.xyz_m[:, 1], sweep.xyz_m[:, 0])
    order = np.lexsort((azimuth, beam))
    first_of_beam = np.searchsorted(beam[order], np.arange(count))
    turn = np.arange(len(order)) - first_of_beam[beam[order]]
    rows = np.sort(order[(turn % 2 == 0) & np.isin(beam[order], chosen)])
    return Corrupted.kept(sweep, rows)
