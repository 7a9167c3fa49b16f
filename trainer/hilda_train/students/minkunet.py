"""MinkUNet: the sparse residual U-Net that camera-to-LiDAR distillation is usually measured on.

Choy, Gwak, Savarese, "4D Spatio-Temporal ConvNets: Minkowski Convolutional Neural Networks", CVPR 2019; the variant
with 16-fold downsampling that PointContrast introduced (Res16UNet) and SLidR, Seal, SuperFlow, ScaLR's re-runs and
HilDA use. Modules carry the names and parameters the shapes of that family, so that its checkpoints load unchanged:

    conv0p1s1 bn0                                           stride 1 -----------------------------+
      conv1p1s2 bn1 block1                                    stride 2 ---------------------+     |
        conv2p2s2 bn2 block2                                    stride 4 -------------+     |     |
          conv3p4s2 bn3 block3                                    stride 8 -----+     |     |     |
            conv4p8s2 bn4 block4                                    stride 16   |     |     |     |
          convtr4p16s2 bntr4 block5                               stride 8   <--+     |     |     |
        convtr5p8s2 bntr5 block6                                stride 4   <----------+     |     |
      convtr6p4s2 bntr6 block7                                stride 2   <------------------+     |
    convtr7p2s2 bntr7 block8                                stride 1   <--------------------------+
    final                                                   stride 1, a linear layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hilda_schema.errors import TrainError, UsageError
from hilda_train.students.engines import Engine, engine
from hilda_train.students.points import Interpolation, PointBatch, Voxels, point_rows, read_at_points
from hilda_train.students.sparse import Geometry, SparseTensor
from hilda_train.students.student import Level, Student

ENCODER_DEPTH = 4
DECODER_LEVELS = ("block5", "block6", "block7", "block8", "final")
STEM_CHANNELS = 32
PLANES = (32, 64, 128, 256, 256, 128, 96, 96)  # of block1 .. block8, the "C" variant


class BasicBlock(nn.Module):
    """Two 3^3 convolutions and a residual (He et al., CVPR 2016, figure 5 left), as in ResNet-18 and -34."""

    expansion = 1

    def __init__(self, use: Engine, in_channels: int, planes: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = use.submanifold(in_channels, planes, 3)
        self.norm1 = use.batch_norm(planes)
        self.conv2 = use.submanifold(planes, planes, 3)
        self.norm2 = use.batch_norm(planes)
        self.downsample = downsample
        self.engine = use

    def forward(self, x: Any) -> Any:
        """Refine features; the stride stays."""
        out = self.engine.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return self.engine.relu(self.engine.add(out, x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1^3, 3^3 and 1^3 convolutions and a residual (He et al., figure 5 right), as in ResNet-50."""

    expansion = 4

    def __init__(self, use: Engine, in_channels: int, planes: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = use.submanifold(in_channels, planes, 1)
        self.norm1 = use.batch_norm(planes)
        self.conv2 = use.submanifold(planes, planes, 3)
        self.norm2 = use.batch_norm(planes)
        self.conv3 = use.submanifold(planes, planes * self.expansion, 1)
        self.norm3 = use.batch_norm(planes * self.expansion)
        self.downsample = downsample
        self.engine = use

    def forward(self, x: Any) -> Any:
        """Refine features; the stride stays."""
        out = self.engine.relu(self.norm1(self.conv1(x)))
        out = self.engine.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        return self.engine.relu(self.engine.add(out, x if self.downsample is None else self.downsample(x)))


@dataclass(frozen=True, slots=True)
class Architecture:
    """What distinguishes the members of the family."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, ...]  # residual blocks in block1 .. block8


ARCHITECTURES = {
    14: Architecture(BasicBlock, (1, 1, 1, 1, 1, 1, 1, 1)),
    18: Architecture(BasicBlock, (2, 2, 2, 2, 2, 2, 2, 2)),
    34: Architecture(BasicBlock, (2, 3, 4, 6, 2, 2, 2, 2)),
    50: Architecture(Bottleneck, (2, 3, 4, 6, 2, 2, 2, 2)),
}


class MinkUNet(Student):
    """A MinkUNet, read at points.

    Args:
        depth: 14, 18, 34 or 50; 34 is SLidR's MinkUNet34 (Res16UNet34C).
        in_channels: channels of the voxel features (SLidR: 1, the intensity).
        width: factor on every layer's channels.
        stem_kernel_size: of the first convolution; 3 as in SLidR, 5 as in PointContrast.
        levels: which decoder outputs to return, in this order: "block5" (stride 8) to "block8" (stride 1), and
            "final". HilDA's default, the last two layers, is ("block7", "block8").
        out_channels: channels of the linear layer `final`, which exists only where `levels` asks for it.
        interpolation: how levels are read at points, see `read_at_points`.
        backend: which library runs the sparse layers, see `engines`.

    Raises:
        UsageError: an unknown depth, level or back end, or `final` without its channels.
    """

    def __init__(
        self,
        depth: int = 34,
        in_channels: int = 4,
        width: float = 1.0,
        stem_kernel_size: int = 3,
        levels: Sequence[str] = ("block7", "block8"),
        out_channels: int | None = None,
        interpolation: Interpolation = "nearest",
        backend: str = "native",
    ) -> None:
        super().__init__()
        _check(depth, levels, out_channels)
        self.engine = engine(backend)
        self.architecture = ARCHITECTURES[depth]
        self.levels = tuple(levels)
        self.interpolation: Interpolation = interpolation
        stem, *planes = (max(1, round(width * channels)) for channels in (STEM_CHANNELS, *PLANES))

        self.conv0p1s1 = self.engine.submanifold(in_channels, stem, stem_kernel_size)
        self.bn0 = self.engine.batch_norm(stem)
        width_of = {"stem": stem}
        self._add_encoder(width_of, planes)
        self._add_decoder(width_of, planes)
        if "final" in levels and out_channels is not None:
            self.final = self.engine.submanifold(width_of["block8"], out_channels, 1, bias=True)
            width_of["final"] = out_channels
        self.channels = tuple(width_of[level] for level in self.levels)

    def encode(self, batch: PointBatch) -> list[Level]:
        """See `Student.encode`; the batch needs voxels."""
        voxels = batch.voxels
        if voxels is None:
            raise TrainError("MinkUNet was given points without voxels", "voxelise every sweep before batching it")
        x = SparseTensor(voxels.feats, Geometry(voxels.coords, batch.batch_size))
        outputs = self.decode(self.engine.enter(x))
        return [self._read(self.engine.leave(outputs[level], x), batch, voxels) for level in self.levels]

    def _read(self, x: SparseTensor, batch: PointBatch, voxels: Voxels) -> Level:
        if self.interpolation == "nearest":
            return Level(x.feats, x.coords[:, 0].long(), point_rows(x, voxels))
        return Level.of_points(read_at_points(x, voxels, self.interpolation), batch)

    def decode(self, x: Any) -> dict[str, Any]:
        """Run the U-Net on voxels of stride 1, a tensor of the engine in use.

        Returns:
            The outputs of block5 .. block8, and of `final` where it exists, by name.
        """
        use = self.engine
        x = use.relu(self.bn0(self.conv0p1s1(x)))
        skips = [x]
        for i in range(1, ENCODER_DEPTH + 1):
            x = use.relu(self._layer("bn", i)(self._layer("conv", i)(x)))
            x = self._layer("block", i)(x)
            skips.append(x)
        skips.pop()
        outputs = {}
        for i in range(ENCODER_DEPTH, 2 * ENCODER_DEPTH):
            x = use.relu(self._layer("bntr", i)(self._layer("convtr", i)(x)))
            x = self._layer("block", i + 1)(use.concatenate(x, skips.pop()))
            outputs[f"block{i + 1}"] = x
        if "final" in self.levels:
            outputs["final"] = self.final(x)
        return outputs

    def _add_encoder(self, width_of: dict[str, int], planes: Sequence[int]) -> None:
        channels = width_of["stem"]
        for i in range(1, ENCODER_DEPTH + 1):
            self.add_module(_name("conv", i), self.engine.strided(channels, channels))
            self.add_module(_name("bn", i), self.engine.batch_norm(channels))
            channels = width_of[f"block{i}"] = self._add_blocks(i, channels, planes[i - 1])

    def _add_decoder(self, width_of: dict[str, int], planes: Sequence[int]) -> None:
        channels = width_of[f"block{ENCODER_DEPTH}"]
        skips = ["stem", *(f"block{i}" for i in range(1, ENCODER_DEPTH))]
        for i in range(ENCODER_DEPTH, 2 * ENCODER_DEPTH):
            self.add_module(_name("convtr", i), self.engine.transposed(channels, planes[i]))
            self.add_module(_name("bntr", i), self.engine.batch_norm(planes[i]))
            joined = planes[i] + width_of[skips.pop()]
            channels = width_of[f"block{i + 1}"] = self._add_blocks(i + 1, joined, planes[i])

    def _add_blocks(self, i: int, in_channels: int, planes: int) -> int:
        """Add the residual blocks `block{i}` and return their width."""
        block = self.architecture.block
        out_channels = planes * block.expansion
        downsample = None
        if in_channels != out_channels:
            shortcut = self.engine.submanifold(in_channels, out_channels, 1)
            downsample = nn.Sequential(shortcut, self.engine.batch_norm(out_channels))
        first = block(self.engine, in_channels, planes, downsample)
        rest = [block(self.engine, out_channels, planes, None) for _ in range(self.architecture.blocks[i - 1] - 1)]
        self.add_module(_name("block", i), nn.Sequential(first, *rest))
        return out_channels

    def _layer(self, kind: str, i: int) -> nn.Module:
        return self.get_submodule(_name(kind, i))


def _name(kind: str, i: int) -> str:
    """MinkowskiEngine's names: a convolution's also tells the stride of its input (p) and its own stride (s)."""
    if kind == "conv":
        return f"conv{i}p{2 ** (i - 1)}s2"
    if kind == "convtr":
        return f"convtr{i}p{2 ** (2 * ENCODER_DEPTH - i)}s2"
    return f"{kind}{i}"


def _check(depth: int, levels: Sequence[str], out_channels: int | None) -> None:
    if depth not in ARCHITECTURES:
        raise UsageError(f"there is no MinkUNet{depth}", f"use one of {', '.join(map(str, ARCHITECTURES))}")
    if unknown := sorted(set(levels) - set(DECODER_LEVELS)):
        raise UsageError(f"MinkUNet has no level {unknown[0]!r}", f"use any of {', '.join(DECODER_LEVELS)}")
    if not levels:
        raise UsageError("MinkUNet was asked for no level", f"use any of {', '.join(DECODER_LEVELS)}")
    if ("final" in levels) != (out_channels is not None):
        raise UsageError("the level 'final' and out_channels belong together", "give both or neither")
