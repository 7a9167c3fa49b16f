"""spconv 2 as an engine of our MinkUNet, for `sparse_engine.py` alone: what a MinkUNet costs there.

spconv asks for the current CUDA stream even on a CPU, so a stand-in answers where torch has no CUDA. Its CPU code runs
on one thread; with two its results are wrong (a data race), so nothing is measured there.
"""

from __future__ import annotations

import types
from typing import Any

import spconv.pytorch as spconv
import torch
from torch import nn
from torch.nn import functional as F

from hilda_train.students.engines import Engine
from hilda_train.students.sparse import RowBatchNorm, SparseTensor

CUBE = 16  # the coarsest stride: the grid starts and ends at multiples of it

if not torch.backends.cuda.is_built():
    torch.cuda.current_stream = lambda *_: types.SimpleNamespace(cuda_stream=0)


class Convolution(nn.Module):
    """One of spconv's layers; index lists are shared by name, and the name follows from the grid's shape."""

    def __init__(self, kind: type, name: str, grow: int, *arguments: Any, **options: Any) -> None:
        super().__init__()
        self.conv, self.name, self.grow = kind(*arguments, bias=False, indice_key=name, **options), name, grow

    def forward(self, x: Any) -> Any:
        """Convolve."""
        shape = "x".join(str(self.grow * int(edge)) for edge in x.spatial_shape)
        self.conv.indice_key = f"{self.name} {self.conv.kernel_size} {shape}"
        return self.conv(x)


class BatchNorm(nn.Module):
    """Batch normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = RowBatchNorm(channels)

    def forward(self, x: Any) -> Any:
        """Normalise."""
        return x.replace_feature(self.bn(x.features))


def enter(x: SparseTensor) -> Any:
    """Move the voxels to non-negative coordinates; parents stay parents."""
    indices = x.coords.clone()
    lowest = indices[:, 1:].amin(0).div(CUBE, rounding_mode="floor") * CUBE
    indices[:, 1:] -= lowest
    shape = ((indices[:, 1:].amax(0) // CUBE + 1) * CUBE).tolist()
    return spconv.SparseConvTensor(x.feats, indices, shape, x.geometry.batch_size)


ENGINE = Engine(
    submanifold=lambda i, o, size, bias=False: Convolution(spconv.SubMConv3d, "same", 1, i, o, size),
    strided=lambda i, o: Convolution(spconv.SparseConv3d, "half", 1, i, o, 2, stride=2),
    transposed=lambda i, o: Convolution(spconv.SparseInverseConv3d, "half", 2, i, o, 2),
    batch_norm=BatchNorm,
    relu=lambda x: x.replace_feature(F.relu(x.features, inplace=True)),
    add=lambda a, b: a.replace_feature(a.features + b.features),
    concatenate=lambda a, b: a.replace_feature(torch.cat([a.features, b.features], dim=1)),
    enter=enter,
    leave=lambda x, _: x,
)
