"""What a step sees: which clips, cameras and points, and how they are augmented."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hilda_train.config.section import FREE, Count, Fraction, Positive, Section


class AugmentConfig(Section):
    """One draw per clip, for all of its frames; points only."""

    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 180.0
    """About z, uniform in plus or minus this."""
    flip: Fraction = 0.5
    """Probability with which x, and independently y, changes its sign."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Size, uniform in 1 plus or minus this."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of points left out, uniform between 0 and this."""


class IntensityConfig(Section):
    """What standardises a sensor's intensity."""

    mean: float
    std: Positive


class DataConfig(Section):
    """What a step sees."""

    caches: tuple[str, ...] = Field(default=(), json_schema_extra=FREE)
    """Folders or URLs of teacher caches; the command line may give them instead."""
    scenes: tuple[str, ...] = ("*",)
    """Patterns of the scenes trained on, e.g. ["scene-00*"]."""
    held_out: tuple[str, ...] = ()
    """Patterns of scenes that are left out whatever `scenes` says."""
    gap_s: Positive = 0.5
    """Time between the frames of a clip."""
    batch_size: Count = 8
    """Clips per optimiser step, over all processes and accumulated parts."""
    workers: Annotated[int, Field(ge=0)] = Field(default=2, json_schema_extra=FREE)
    """Loader processes per training process."""
    cameras: Count | None = None
    """Cameras drawn per sweep, of those that see a point; null takes all."""
    frustum_only: bool = False
    """Leave out points that no drawn camera sees; with cameras = 1 this is ScaLR's view of a sweep."""
    visible_only: bool = False
    """Leave out pairs whose point is hidden by a nearer one."""
    max_points: Count | None = None
    """Keep the points nearest to a random one."""
    intensity: dict[str, IntensityConfig] = Field(default_factory=dict)
    """Per dataset, or per LiDAR of it (pandaset_pandargt); those with published numbers need none."""
    augment: AugmentConfig = AugmentConfig()
