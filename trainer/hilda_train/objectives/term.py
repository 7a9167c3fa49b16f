"""What every objective returns, and the one check that a step makes before it trusts the sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hilda_schema.errors import TrainError


class Term(NamedTuple):
    """One objective's share of the loss.

    A non-finite input makes a non-finite loss: no objective drops or replaces such a value.
    """

    loss: Tensor
    """() at least float32, differentiable; zero, with zero gradients, where there was nothing to compare."""
    logs: dict[str, Tensor]
    """() detached numbers worth a curve; still on the device, so that reading them is the caller's choice."""


def require_finite(terms: Mapping[str, Term], where: str) -> None:
    """Stop before a NaN reaches the weights. Waits for the device once, however many terms there are.

    Args:
        terms: the step's terms by name.
        where: step and frames, for the message.

    Raises:
        TrainError: a loss is NaN or infinite; names every such term.
    """
    finite = torch.stack([term.loss.detach().isfinite() for term in terms.values()]).tolist()
    broken = [name for name, good in zip(terms, finite, strict=True) if not good]
    if broken:
        raise TrainError(
            f"the loss of {', '.join(broken)} is not finite at {where}",
            "check these frames with `hilda-cache verify --deep`; if they are clean, lower the learning rate",
        )
