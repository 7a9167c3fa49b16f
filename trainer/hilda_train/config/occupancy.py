"""The temporal occupancy objective and its control arms."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hilda_train.config.section import Count, NotNegative, Positive, Section


class NoOccupancyConfig(Section):
    """No temporal occupancy objective: neither past nor future frames are read."""

    kind: Literal["none"] = "none"


class _ForecastConfig(Section):
    """What the diffusion and the plain decoder share: the grid, the history map, the network."""

    weight: Positive = 1.0
    range_m: Positive = 51.2
    """The bird's-eye view spans [-range_m, range_m) along x and y of the current LiDAR frame."""
    cell_m: Positive = 0.4
    z_min_m: float = -2.0
    z_max_m: float = 3.0
    """Returns of the future sweep between these heights, ground left out, occupy cells."""
    unseen_is_free: bool = False
    """The published, binary target: cells that no ray reached count as free instead of being left out."""
    history_channels: Count = 64
    """Width of the map that the student's features of the past are collapsed to."""
    base: Count = 64
    """Channels of the network's highest level."""
    multipliers: tuple[Count, ...] = Field(default=(1, 2, 4), min_length=1)
    """Channels of each level, as multiples of base; every level after the first halves the cells."""
    blocks: Count = 2
    """Residual blocks on each level."""
    occupied_weight: Positive = 5.0
    """Weight of occupied cells, which are few (diffusion: in the clean estimate's term)."""

    @model_validator(mode="after")
    def _cells_fit(self) -> _ForecastConfig:
        if self.z_min_m >= self.z_max_m:
            raise ValueError("objectives.occupancy.z_min_m must lie below objectives.occupancy.z_max_m")
        cells = round(2 * self.range_m / self.cell_m)
        if abs(2 * self.range_m / self.cell_m - cells) > 1e-6:
            raise ValueError(
                f"objectives.occupancy.cell_m = {self.cell_m:g} does not divide twice "
                f"objectives.occupancy.range_m = {self.range_m:g}"
            )
        halvings = len(self.multipliers) - 1
        if cells % 2**halvings:
            raise ValueError(
                f"the {cells} cells of objectives.occupancy.range_m and objectives.occupancy.cell_m cannot be halved "
                f"{halvings} times, as objectives.occupancy.multipliers asks"
            )
        return self


class DiffusionConfig(_ForecastConfig):
    """Temporal occupancy diffusion (HilDA): denoise the future's bird's-eye view given the past."""

    kind: Literal["diffusion"] = "diffusion"
    steps: Count = 1000
    """Noise levels T."""
    noise: Literal["linear", "cosine"] = "linear"
    lambda_x0: NotNegative = 1.0
    """Weight of the clean estimate's squared error; 1 lets every noise level teach the same."""
    draws: Count = 1
    """Noise levels for each sample in a step. The history is computed once for all of them; with small batches several
    make the gradient waver less."""

    @model_validator(mode="after")
    def _levels_are_apart(self) -> DiffusionConfig:
        if self.draws > self.steps:
            raise ValueError(
                f"objectives.occupancy.draws = {self.draws} is more than objectives.occupancy.steps = {self.steps}"
            )
        return self


class BceConfig(_ForecastConfig):
    """Control arm: a plain decoder of the future's occupancy, with cross-entropy."""

    kind: Literal["bce"] = "bce"


class AlsoConfig(Section):
    """Control arm: ALSO, the surface of the current sweep."""

    kind: Literal["also"] = "also"
    weight: Positive = 1.0
    queries: Annotated[int, Field(ge=3)] = 2048
    """Per sweep; a third just behind returns, a third just before them, a third along the rays."""
    margin_m: Positive = 0.1
    """How far before and behind a return queries lie."""
    radius_m: Positive = 1.0
    """Points this near to a query predict it."""
    supports: Count = 32
    """Most points that predict one query."""
    hidden: Count = 128
    intensity_weight: NotNegative = 1.0


Occupancy = Annotated[NoOccupancyConfig | DiffusionConfig | BceConfig | AlsoConfig, Field(discriminator="kind")]
