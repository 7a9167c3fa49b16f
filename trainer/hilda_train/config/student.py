"""Which LiDAR backbone learns, what it sees of a sweep, and which of its levels are taught."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hilda_train.config.section import Count, Positive, Section

Channel = Literal["intensity", "xyz", "range", "height"]
CHANNEL_WIDTH: dict[Channel, int] = {"intensity": 1, "xyz": 3, "range": 1, "height": 1}
Point = tuple[float, float, float]
Box = tuple[Point, Point]


class VoxelConfig(Section):
    """How a sweep becomes voxels; see `data.voxelise`."""

    shape: Literal["cartesian", "cylindrical"] = "cartesian"
    """Cubes, or distance x azimuth x height."""
    size: tuple[Positive, Positive, Positive] = (0.1, 0.1, 0.1)
    """Cell edges: x, y, z in metres; cylindrical: distance in metres, azimuth in degrees, z in metres."""
    range_m: Box | None = None
    """Lowest and highest x, y, z, LiDAR frame; points outside are left out."""
    reduction: Literal["mean", "first", "random"] = "mean"
    """A voxel's feature: the mean of its points', or that of one point."""


class MinkUNetConfig(Section):
    """Sparse residual U-Net."""

    arch: Literal["minkunet"] = "minkunet"
    depth: Literal[14, 18, 34, 50] = 34
    width: Annotated[float, Field(gt=0, le=8)] = 1.0
    """Factor on the channels of every layer."""
    channels: tuple[Channel, ...] = Field(default=("intensity", "xyz", "range"), min_length=1)
    """Input of a point, in this order."""
    voxels: VoxelConfig = VoxelConfig()
    stem_kernel_size: Literal[3, 5] = 3
    levels: tuple[Literal["block5", "block6", "block7", "block8"], ...] = Field(
        default=("block7", "block8"), min_length=1
    )
    """Decoder outputs that learn, from the earliest to the last; the last one also feeds the other objectives."""
    interpolation: Literal["nearest", "trilinear"] = "nearest"
    """How a level is read at points."""
    weights: str | None = None
    """A file to start from: an exported backbone, or a checkpoint of the SLidR family; null starts anew."""
    backend: Literal["native", "minkowski"] = "native"
    """What runs the sparse layers: our engine, or MinkowskiEngine where it is installed (docs/minkowski.md)."""

    def options(self) -> dict[str, Any]:
        """What `students.build_student` takes."""
        names = {"depth", "width", "stem_kernel_size", "levels", "interpolation", "backend"}
        return {"name": self.arch, "in_channels": input_width(self.channels), **self.model_dump(include=names)}


class WaffleIronConfig(Section):
    """2D convolutions on three planes and linear layers; no sparse convolution."""

    arch: Literal["waffleiron"] = "waffleiron"
    depth: Count = 48
    width: Count = 768
    channels: tuple[Channel, ...] = Field(default=("intensity", "xyz", "range"), min_length=1)
    """Input of a point, in this order."""
    levels: tuple[Count, ...] = Field(default=(36, 48), min_length=1)
    """Layers that learn, counted from 1."""
    thin_m: Positive | None = 0.1
    """Keep one random point per cube of this edge; null keeps all."""
    range_m: Box = ((-64.0, -64.0, -8.0), (64.0, 64.0, 8.0))
    """Lowest and highest x, y, z of the planes, LiDAR frame; points outside are left out."""
    cell_m: Positive = 0.5
    neighbours: Count = 16
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    activation: Literal["relu", "gelu"] = "relu"
    weights: str | None = None
    """A file to start from: an exported backbone; null starts anew."""

    @model_validator(mode="after")
    def _levels_exist(self) -> WaffleIronConfig:
        if max(self.levels) > self.depth:
            raise ValueError(f"student.levels asks for layer {max(self.levels)}, but student.depth = {self.depth}")
        return self

    def options(self) -> dict[str, Any]:
        """What `students.build_student` takes."""
        names = {"depth", "width", "levels", "range_m", "cell_m", "neighbours", "drop_path", "activation"}
        return {"name": self.arch, "in_channels": input_width(self.channels), **self.model_dump(include=names)}


def input_width(channels: tuple[Channel, ...]) -> int:
    """Numbers that a point brings."""
    return sum(CHANNEL_WIDTH[name] for name in channels)


Student = Annotated[MinkUNetConfig | WaffleIronConfig, Field(discriminator="arch")]
