"""What stands between convolutions: all of it acts on the rows of a sparse tensor and needs no geometry.

Legend: N voxels, C channels, B batch items.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_train.students.sparse.tensor import SparseTensor


class RowBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over the rows of a matrix that may have no rows, or one.

    Statistics of fewer than two values are undefined and PyTorch refuses them in training; an empty sweep, or one
    that a coarse level shrinks to a single voxel, must not end a run. Such a matrix is normalised with the running
    statistics, which it leaves alone.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise (N, C) over N."""
        if self.training and len(rows) < 2:
            return F.batch_norm(
                rows, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(rows)


class BatchNorm(nn.Module):
    """Batch normalisation of a sparse tensor, over all voxels of all batch items.

    The parameters sit one level down, in `bn`, where MinkowskiEngine has them.

    Args:
        channels: C.
        momentum: weight of a new batch in the running statistics.
    """

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.bn = RowBatchNorm(channels, momentum=momentum)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Normalise."""
        return x.with_feats(self.bn(x.feats))


def relu(x: SparseTensor) -> SparseTensor:
    """Rectify, overwriting the features: use it on the result of a layer that does not keep its output."""
    return x.with_feats(F.relu(x.feats, inplace=True))


def add(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """Residual connection: the sum of two tensors of one geometry and stride."""
    return a.with_feats(a.feats + b.feats)


def concatenate(a: SparseTensor, b: SparseTensor) -> SparseTensor:
    """Skip connection: the channels of `a`, then those of `b`, at voxels of one geometry and stride."""
    return a.with_feats(torch.cat([a.feats, b.feats], dim=1))


def global_max(x: SparseTensor) -> tuple[Tensor, Tensor]:
    """Largest value of each channel in each batch item.

    Returns:
        (B, C) maxima and (B,) bool, False for an item without voxels: it has no maximum, its row holds zeros and is
        to be left out.
    """
    return _pool(x, lambda rows: rows.amax(0))


def global_mean(x: SparseTensor) -> tuple[Tensor, Tensor]:
    """Mean of each channel in each batch item; as `global_max`."""
    return _pool(x, lambda rows: rows.mean(0))


def _pool(x: SparseTensor, reduce: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    sizes = x.geometry.item_sizes(x.stride)
    empty = x.feats.new_zeros(x.feats.shape[1])
    pooled = [reduce(rows) if len(rows) else empty for rows in torch.split(x.feats, sizes)]
    return torch.stack(pooled), torch.tensor(sizes, device=x.feats.device) > 0
