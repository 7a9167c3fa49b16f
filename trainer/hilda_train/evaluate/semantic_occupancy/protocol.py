"""What an occupancy protocol says beside what all heads' say."""

from __future__ import annotations

from pydantic import model_validator

from hilda_train.config.section import Count, NotNegative, Positive
from hilda_train.evaluate.heads.protocol import HeadProtocol


class OccupancyProtocol(HeadProtocol):
    """A protocol."""

    gap_s: Positive = 0.5
    """Time between the sweeps; the nearest within 30 % of it counts."""
    horizon: Count = 4
    """Steps of `gap_s` into the future, beside the present."""
    z_min_m: float = -3.0
    z_max_m: float = 3.0
    """Height band, LiDAR frame of t0."""
    layers: Count = 8
    """Cells of the band."""
    occupied_weight: Positive = 3.0
    """Of occupied cells in the loss; most cells are free."""
    min_range_m: NotNegative = 2.5
    """Returns nearer to the sensor than this are the vehicle's own body."""

    @model_validator(mode="after")
    def _band(self) -> OccupancyProtocol:
        if self.z_min_m >= self.z_max_m:
            raise ValueError("z_min_m must be below z_max_m")
        return self
