"""What a detection protocol says beside what all heads' say."""

from __future__ import annotations

from pydantic import Field

from hilda_train.config.section import Count, Fraction, NotNegative
from hilda_train.evaluate.heads.protocol import HeadProtocol


class DetectionProtocol(HeadProtocol):
    """A protocol; defaults are CenterPoint's (Yin et al., CVPR 2021)."""

    box_weight: NotNegative = 0.25
    """Of the error of offset, height, size and direction, beside the heat map's 1."""
    velocity_weight: NotNegative = 0.2
    """Of the velocity's error within that of the box."""
    min_overlap: Fraction = Field(default=0.1, gt=0)
    """A heat map's Gaussian reaches as far as a box may be moved and still overlap its true self by so much."""
    min_radius_cells: Count = 2
    min_points: Count = 1
    """Boxes with fewer LiDAR points are neither learned nor looked for."""
    max_boxes: Count = 200
    """Predictions of a frame."""
