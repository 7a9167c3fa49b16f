"""Projection heads: small networks that take student features to a teacher's width and are thrown away afterwards."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from hilda_schema.errors import UsageError

_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


class ProjectionHead(nn.Sequential):
    """An MLP of `layers` linear layers with an activation between them.

    Three layers are CleverDistiller's head (arXiv 2503.09878) and HilDA's; `layers=1` is ScaLR's linear head
    (arXiv 2310.17504), `layers=2, hidden=2048, activation="relu"` that of its later recipe. No normalisation layer:
    a head must give the same answer for one row as for many.

    Args:
        in_channels: width of the student's features.
        out_channels: width of the teacher's features.
        hidden: width between the layers; unused with one layer.
        layers: number of linear layers, at least 1.
        activation: "gelu" or "relu".

    Raises:
        UsageError: fewer than one layer, or an unknown activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int = 2048,
        layers: int = 3,
        activation: Literal["gelu", "relu"] = "gelu",
    ) -> None:
        if layers < 1:
            raise UsageError(f"a projection head cannot have {layers} layers", "give 1 (linear) or more")
        if activation not in _ACTIVATIONS:
            raise UsageError(f"activation {activation!r} is not known", f"use one of {', '.join(_ACTIVATIONS)}")
        widths = [in_channels, *[hidden] * (layers - 1), out_channels]
        modules: list[nn.Module] = []
        for before, after in pairwise(widths):
            modules += [nn.Linear(before, after), _ACTIVATIONS[activation]()]
        super().__init__(*modules[:-1])


def project_rows(head: nn.Module, features: Tensor, rows: Tensor) -> Tensor:
    """`head(features[rows])`, running the head once for each distinct row.

    A point that two cameras see, and the points that share a voxel, ask for the same row; the head is the most
    expensive part of distillation, so it must not see a row twice.

    Args:
        head: (M, C) -> (M, D), row by row.
        features: (N, C).
        rows: (P,) int64 rows of the features.

    Returns:
        (P, D).
    """
    used = features.new_zeros(len(features), dtype=rows.dtype).index_fill(0, rows, 1)
    position = used.cumsum(0) - 1
    projected: Tensor = head(features[used.bool()])
    return projected.index_select(0, position.index_select(0, rows))
