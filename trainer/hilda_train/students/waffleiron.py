"""WaffleIron: a LiDAR backbone of plain 2D convolutions and linear layers, and no sparse ones.

Puy, Boulch, Marlet, "Using a Waffle Iron for Automotive Point Cloud Semantic Segmentation", ICCV 2023; with
48 layers of width 768 and layer normalisation it is the student of ScaLR (Puy et al., "Three Pillars Improving
Vision Foundation Model Distillation for Lidar", CVPR 2024).

Every point is a token. A layer mixes tokens in space, by averaging them into the cells of a 2D plane, convolving
the plane, and reading it back at the points; then it mixes channels, token by token. Planes alternate: seen from
above (x, y), from the side (x, z), from the front (y, z).

Parameters have the names of the authors' code under `embed`, `spatial_mix` and `channel_mix`; their 1x1 convolutions
are linear layers here, without the trailing axes of length one.

Legend: N points, C width, K neighbours, B batch items, H x W cells of a plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import torch
from torch import Tensor, nn

from hilda_schema.errors import TrainError, UsageError
from hilda_train.students.neighbours import nearest_neighbours
from hilda_train.students.points import PointBatch
from hilda_train.students.sparse import RowBatchNorm
from hilda_train.students.student import Level, Student

PLANES = ((0, 1), (0, 2), (1, 2))  # axes of the plane seen along z, y, x
AXES = "xyz"
Activation = Literal["relu", "gelu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}
Box = tuple[tuple[float, float, float], tuple[float, float, float]]


class LayerScale(nn.Module):
    """A learnt factor per channel (Touvron et al., "Going deeper with Image Transformers", ICCV 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The authors write it as a depthwise 1x1 convolution, whose default initialisation is this one.
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-1, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scale (N, C)."""
        return tokens * self.weight


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training, drop a residual branch for whole batch items.

    What is kept is divided by the probability of keeping it, so that the expectation stays.

    Args:
        probability: of dropping, below one.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, tokens: Tensor, batch_index: Tensor, batch_size: int) -> Tensor:
        """Drop rows of (N, C) by batch item."""
        if not self.training or self.probability == 0:
            return tokens
        keep = 1 - self.probability
        factor = torch.bernoulli(tokens.new_full((batch_size, 1), keep)) / keep
        return tokens * factor[batch_index]


class Embedding(nn.Module):
    """Tokens from points: each point by itself, joined with the largest response to its neighbours.

    Args:
        in_channels: of the point features.
        channels: C.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.norm = RowBatchNorm(in_channels)
        self.conv1 = nn.Linear(in_channels, channels)
        self.conv2 = nn.Sequential(
            RowBatchNorm(in_channels),
            nn.Linear(in_channels, channels, bias=False),
            RowBatchNorm(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, channels, bias=False),
        )
        self.final = nn.Linear(2 * channels, channels)

    def forward(self, feats: Tensor, neighbours: Tensor) -> Tensor:
        """Embed points.

        Args:
            feats: (N, in_channels).
            neighbours: (N, K) int64 rows.

        Returns:
            (N, C).
        """
        feats = self.norm(feats)
        relative = feats[neighbours] - feats[:, None]
        responses: Tensor = self.conv2(relative.flatten(0, 1))
        strongest = responses.view(*neighbours.shape, responses.shape[-1]).max(1).values
        embedded: Tensor = self.final(torch.cat([self.conv1(feats), strongest], dim=1))
        return embedded


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """In which cell of a plane each point lies, over all batch items."""

    cell: Tensor  # (N,) int64 in B * H * W
    points_per_cell: Tensor  # (B * H * W, 1) float32, at least 1
    batch_size: int
    height: int
    width: int

    @classmethod
    def of(cls, cell: Tensor, batch_size: int, height: int, width: int) -> Projection:
        """Count the points of each cell; `cell` is (N,) int64 in B * H * W."""
        count = torch.bincount(cell, minlength=batch_size * height * width)
        return cls(cell, count.clamp_(min=1)[:, None].float(), batch_size, height, width)

    def flatten(self, tokens: Tensor) -> Tensor:
        """Mean of the tokens (N, C) in each cell, zero in empty ones: (B, C, H, W), channels last in memory."""
        # Cells of a dense street hold many points: their sum is kept in float32 under mixed precision.
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        grid = tokens.new_zeros((len(self.points_per_cell), tokens.shape[1])).index_add(0, self.cell, tokens)
        mean = grid / self.points_per_cell
        return mean.view(self.batch_size, self.height, self.width, -1).permute(0, 3, 1, 2)

    def inflate(self, plane: Tensor) -> Tensor:
        """Read (B, C, H, W) at the points: (N, C)."""
        return plane.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.cell)


class SpatialMix(nn.Module):
    """Mix tokens within a plane: flatten, two depthwise 3x3 convolutions, inflate; with a residual."""

    def __init__(self, channels: int, drop_path: float, activation: Activation) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.ffn = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        )
        self.scale = LayerScale(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, projection: Projection, batch_index: Tensor) -> Tensor:
        """Mix (N, C)."""
        mixed = projection.inflate(self.ffn(projection.flatten(self.norm(tokens))))
        kept: Tensor = self.drop_path(self.scale(mixed), batch_index, projection.batch_size)
        return tokens + kept


class ChannelMix(nn.Module):
    """Mix the channels of each token: a two-layer perceptron; with a residual."""

    def __init__(self, channels: int, drop_path: float, activation: Activation) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, channels), ACTIVATIONS[activation](), nn.Linear(channels, channels)
        )
        self.scale = LayerScale(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, batch_index: Tensor, batch_size: int) -> Tensor:
        """Mix (N, C)."""
        kept: Tensor = self.drop_path(self.scale(self.mlp(self.norm(tokens))), batch_index, batch_size)
        return tokens + kept


class WaffleIron(Student):
    """A WaffleIron, read after chosen layers.

    Args:
        depth: layers; ScaLR has 48.
        width: C; ScaLR has 768.
        in_channels: channels of the point features; ScaLR has 5 (intensity, x, y, z, distance).
        levels: layers to return, counted from 1; HilDA's "last two" for this backbone is read as (36, 48). Empty:
            the layers at three quarters of the depth and at its end.
        range_m: lowest and highest x, y and z of the planes, LiDAR frame; points must lie inside.
        cell_m: edge of a plane's cells.
        neighbours: K, for the embedding.
        drop_path: probability of dropping a layer's residual; 0 in ScaLR, 0.2 in ScaLR+.
        activation: "relu" in ScaLR, "gelu" in ScaLR+.

    Raises:
        UsageError: a level that the depth does not have, or a range that cells do not divide.
    """

    low_m: Tensor  # (3,)
    high_m: Tensor  # (3,)

    def __init__(
        self,
        depth: int = 48,
        width: int = 768,
        in_channels: int = 5,
        levels: Sequence[int] = (),
        range_m: Box = ((-64.0, -64.0, -8.0), (64.0, 64.0, 8.0)),
        cell_m: float = 0.5,
        neighbours: int = 16,
        drop_path: float = 0.0,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.levels = tuple(levels) or (max(1, 3 * depth // 4), depth)
        if wrong := [level for level in self.levels if not 1 <= level <= depth]:
            raise UsageError(f"WaffleIron of depth {depth} has no level {wrong[0]}", f"levels are 1 to {depth}")
        self.register_buffer("low_m", torch.tensor(range_m[0]), persistent=False)
        self.register_buffer("high_m", torch.tensor(range_m[1]), persistent=False)
        self.cell_m = cell_m
        self.cells = _cells(range_m, cell_m)
        self.neighbours = neighbours
        self.channels = (width,) * len(self.levels)
        self.embed = Embedding(in_channels, width)
        self.spatial_mix = nn.ModuleList(SpatialMix(width, drop_path, activation) for _ in range(depth))
        self.channel_mix = nn.ModuleList(ChannelMix(width, drop_path, activation) for _ in range(depth))

    def encode(self, batch: PointBatch) -> list[Level]:
        """See `Student.encode`; neighbours are found here where the batch has none."""
        neighbours = batch.neighbours
        if neighbours is None:
            neighbours = nearest_neighbours(batch.xyz_m, batch.batch_index, self.neighbours)
        projections = self.project(batch)
        tokens = self.embed(batch.feats, neighbours)
        outputs = {}
        layers = zip(self.spatial_mix, self.channel_mix, cycle(projections), strict=False)
        for depth, (spatial_mix, channel_mix, projection) in enumerate(layers, start=1):
            tokens = spatial_mix(tokens, projection, batch.batch_index)
            tokens = channel_mix(tokens, batch.batch_index, batch.batch_size)
            if depth in self.levels:
                outputs[depth] = tokens
        return [Level.of_points(outputs[level], batch) for level in self.levels]

    def project(self, batch: PointBatch) -> list[Projection]:
        """Find the cells of all points on the three planes.

        Raises:
            TrainError: a point outside the range.
        """
        self._check_range(batch.xyz_m)
        index = ((batch.xyz_m - self.low_m) / self.cell_m).long()
        # Just below the upper end, the float32 quotient may round up to one cell too many.
        index = index.minimum(torch.tensor(self.cells, device=index.device) - 1)
        projections = []
        for a, b in PLANES:
            height, width = self.cells[a], self.cells[b]
            cell = (batch.batch_index * height + index[:, a]) * width + index[:, b]
            projections.append(Projection.of(cell, batch.batch_size, height, width))
        return projections

    def _check_range(self, xyz_m: Tensor) -> None:
        inside = (xyz_m >= self.low_m) & (xyz_m < self.high_m)  # False for NaN
        outside = (~inside).any(0).tolist()
        if any(outside):
            axis = outside.index(True)
            low, high = float(self.low_m[axis]), float(self.high_m[axis])
            raise TrainError(
                f"a point has {AXES[axis]} outside {low:g}..{high:g} m, the range of this WaffleIron",
                "crop the points to that range, or build the student with a larger range_m",
            )


def _cells(range_m: Box, cell_m: float) -> tuple[int, ...]:
    """Cells along x, y and z."""
    counts = []
    for name, low, high in zip(AXES, *range_m, strict=True):
        count = round((high - low) / cell_m)
        if count < 1 or abs(count * cell_m - (high - low)) > 1e-6 * abs(high - low):
            raise UsageError(f"cells of {cell_m:g} m do not divide the {name} range {low:g}..{high:g} m")
        counts.append(count)
    return tuple(counts)
