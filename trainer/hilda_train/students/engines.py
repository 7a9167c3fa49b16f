"""Which library runs the sparse layers of a MinkUNet: the one in `sparse/`, or MinkowskiEngine.

An engine brings layers with the same names, parameters and order of kernel offsets, so that a state dict moves from
one to the other as it is. It may keep its own kind of tensor between `enter` and `leave`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from hilda_schema.errors import UsageError
from hilda_train.students.sparse import (
    BatchNorm,
    SparseTensor,
    StridedConv,
    SubmanifoldConv,
    TransposedConv,
    add,
    concatenate,
    relu,
)


@dataclass(frozen=True, slots=True)
class Engine:
    """The layers that a network is made of."""

    submanifold: Callable[..., nn.Module]  # (in_channels, out_channels, kernel_size, bias=False)
    strided: Callable[[int, int], nn.Module]  # (in_channels, out_channels); kernel 2, stride 2
    transposed: Callable[[int, int], nn.Module]  # (in_channels, out_channels); kernel 2, stride 2
    batch_norm: Callable[[int], nn.Module]
    relu: Callable[[Any], Any]
    add: Callable[[Any, Any], Any]
    concatenate: Callable[[Any, Any], Any]
    enter: Callable[[SparseTensor], Any]
    """From our tensor to the engine's."""
    leave: Callable[[Any, SparseTensor], SparseTensor]
    """From the engine's tensor to ours, in our order of rows; the second argument is what `enter` was given."""


NATIVE = Engine(
    submanifold=SubmanifoldConv,
    strided=StridedConv,
    transposed=TransposedConv,
    batch_norm=BatchNorm,
    relu=relu,
    add=add,
    concatenate=concatenate,
    enter=lambda x: x,
    leave=lambda x, _: x,
)


def engine(backend: str) -> Engine:
    """An engine by name.

    Args:
        backend: "native" or "minkowski".

    Raises:
        UsageError: another name, or a library that is not installed or does not work.
    """
    if backend == "native":
        return NATIVE
    if backend != "minkowski":
        raise UsageError(f"there is no sparse engine {backend!r}", "use native or minkowski")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The MinkowskiEngine was compiled with CPU_ONLY", UserWarning)
            found: Engine = import_module("hilda_train.students.minkowski").ENGINE
    except ImportError as error:
        raise UsageError(
            f"the minkowski back end cannot be used: {error}",
            "install MinkowskiEngine with tools/build_minkowski.py (docs/minkowski.md), or set student.backend=native",
        ) from error
    return found
