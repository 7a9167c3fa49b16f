"""MinkowskiEngine as a back end: its convolutions behind the names that `engines.Engine` asks for.

Importing this module imports MinkowskiEngine 0.5, which is not on PyPI for today's PyTorch; tools/build_minkowski.py
builds it. Its parameters have the names, shapes and kernel order of `sparse/`, which took them from it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from MinkowskiEngine import MinkowskiConvolution, MinkowskiConvolutionTranspose, cat
from MinkowskiEngine import SparseTensor as MinkowskiTensor
from torch import nn
from torch.nn import functional as F

from hilda_schema.errors import TrainError
from hilda_train.students.engines import Engine
from hilda_train.students.sparse import RowBatchNorm, SparseTensor
from hilda_train.students.sparse.coordinates import pack


class BatchNorm(nn.Module):
    """`sparse.BatchNorm` on MinkowskiEngine's tensors; the parameters sit in `bn` in both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = RowBatchNorm(channels)

    def forward(self, x: Any) -> Any:
        """Normalise."""
        return _with_feats(x, self.bn(x.F))


def _submanifold(in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> nn.Module:
    layer: nn.Module = MinkowskiConvolution(in_channels, out_channels, kernel_size=kernel_size, bias=bias, dimension=3)
    return layer


def _enter(x: SparseTensor) -> Any:
    if not len(x.feats):
        raise TrainError(
            "MinkowskiEngine takes no batch without a voxel", "set student.backend=native, which takes empty sweeps"
        )
    return MinkowskiTensor(x.feats, coordinates=x.coords, tensor_stride=x.stride)


def _leave(x: Any, entered: SparseTensor) -> SparseTensor:
    """MinkowskiEngine orders rows as it met them; ours ascend."""
    stride = int(x.tensor_stride[0])
    keys, order = pack(x.C).sort()
    if not torch.equal(keys, entered.geometry.keys(stride)):
        raise TrainError(f"MinkowskiEngine's voxels of stride {stride} are not those of the geometry")
    return SparseTensor(x.F.index_select(0, order), entered.geometry, stride)


def _with_feats(x: Any, feats: torch.Tensor) -> Any:
    return MinkowskiTensor(feats, coordinate_map_key=x.coordinate_map_key, coordinate_manager=x.coordinate_manager)


ENGINE = Engine(
    submanifold=_submanifold,
    strided=partial(MinkowskiConvolution, kernel_size=2, stride=2, dimension=3),
    transposed=partial(MinkowskiConvolutionTranspose, kernel_size=2, stride=2, dimension=3),
    batch_norm=BatchNorm,
    relu=lambda x: _with_feats(x, F.relu(x.F, inplace=True)),
    add=lambda a, b: _with_feats(a, a.F + b.F),
    concatenate=cat,
    enter=_enter,
    leave=_leave,
)
