"""Point augmentation: one draw for all frames of a clip.

The cached features belong to pixels and are never augmented; turning the points only asks the student for the same
features of a turned scene. Every frame of a clip is turned alike in its own LiDAR frame, so a pose between two
frames, T, becomes A T A^-1 and the occupancy target turns with the features.

Legend: N points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """What is drawn; the defaults are ScaLR's (arXiv 2310.17504) except the flips' bookkeeping.

    Attributes:
        rotation_deg: rotation about z, uniform in plus or minus this.
        flip: probability with which x, and independently y, changes its sign.
        scale: size change, uniform in 1 plus or minus this.
        dropout: share of points left out, uniform between 0 and this.
    """

    rotation_deg: float = 180.0
    flip: float = 0.5
    scale: float = 0.1
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Augmentation:
    """One draw."""

    matrix: NDArray[np.float64]  # (3, 3)
    dropout: float

    @property
    def homogeneous(self) -> NDArray[np.float64]:
        """(4, 4)."""
        full = np.eye(4)
        full[:3, :3] = self.matrix
        return full

    def points(self, xyz_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, 3) -> (N, 3)."""
        return (xyz_m.astype(np.float64) @ self.matrix.T).astype(np.float32)

    def pose(self, a_SE3_b: NDArray[np.float64]) -> NDArray[np.float64]:
        """A pose between two frames that are both augmented: A T A^-1, (4, 4)."""
        full = self.homogeneous
        return full @ a_SE3_b @ np.linalg.inv(full)


def draw(options: AugmentOptions, rng: np.random.Generator) -> Augmentation:
    """Draw an augmentation; the same generator state gives the same one."""
    angle = np.deg2rad(rng.uniform(-options.rotation_deg, options.rotation_deg))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    signs = np.where(rng.random(2) < options.flip, -1.0, 1.0)
    scale = rng.uniform(1 - options.scale, 1 + options.scale)
    dropout = rng.uniform(0.0, options.dropout)
    return Augmentation(scale * rotation @ np.diag([*signs, 1.0]), dropout)


IDENTITY = Augmentation(np.eye(3), 0.0)
