"""Sweeps as bad weather, a shaken mount or a failing sensor would have left them.

The eight corruptions of Robo3D (Kong et al., ICCV 2023; nuScenes-C and SemanticKITTI-C), at its three severities,
written from the published descriptions and needing nothing but points: no label, no box, no table of another sensor.
So the numbers are not those of the published sets, and mCE compares models with each other on ours only. What each
one simplifies stands in its docstring.

    corrupted = corrupt(sweep, "fog", severity=2, seed=0, key="nuscenes/scene-0001/7")
    label[corrupted.source]                 # where corrupted.source >= 0

A corruption is a function of sweep, severity and generator, and changes none of what it is given.
"""

from __future__ import annotations

import hashlib

import numpy as np

from hilda_schema.errors import UsageError
from hilda_train.evaluate.corruptions.sensor import beam_missing, cross_sensor, crosstalk, incomplete_echo, motion_blur
from hilda_train.evaluate.corruptions.sweep import Corrupted, Corruption, Sweep, beams_of
from hilda_train.evaluate.corruptions.weather import fog, snow, wet_ground

__all__ = ["CORRUPTIONS", "SEVERITIES", "Corrupted", "Sweep", "beams_of", "corrupt"]

SEVERITIES = (1, 2, 3)  # light, moderate, heavy
CORRUPTIONS: dict[str, Corruption] = {
    "fog": fog,
    "wet_ground": wet_ground,
    "snow": snow,
    "motion_blur": motion_blur,
    "beam_missing": beam_missing,
    "crosstalk": crosstalk,
    "incomplete_echo": incomplete_echo,
    "cross_sensor": cross_sensor,
}


def corrupt(sweep: Sweep, name: str, severity: int, seed: int, key: str) -> Corrupted:
    """Corrupt one sweep.

    Args:
        sweep: as recorded; not changed.
        name: one of `CORRUPTIONS`.
        severity: 1, 2 or 3.
        seed: of the whole evaluation.
        key: the frame's: what is drawn follows from seed, name, severity and key, not from the order of the frames.

    Raises:
        UsageError: an unknown name or severity.
    """
    if name not in CORRUPTIONS:
        raise UsageError(f"corruption {name!r} is not known", f"use one of {', '.join(CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UsageError(f"severity {severity} is not known", "use 1 (light), 2 (moderate) or 3 (heavy)")
    if not len(sweep.xyz_m):
        return Corrupted.kept(sweep, np.zeros(0, np.int64))
    digest = hashlib.sha256(f"{seed}\0{name}\0{severity}\0{key}".encode()).digest()
    return CORRUPTIONS[name](sweep, severity, np.random.default_rng(np.frombuffer(digest, np.uint32)))
