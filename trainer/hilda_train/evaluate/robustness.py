"""How much a model loses when sweeps are corrupted, as Robo3D counts it (Kong et al., ICCV 2023).

With the mIoU of a model and of a baseline under corruption i at severities 1 to 3, and of the model on clean sweeps:

    CE_i = sum over severities of (1 - mIoU)  /  the same sum of the baseline        mCE = mean over i, lower is better
    RR_i = sum over severities of mIoU  /  (3 clean mIoU)                            mRR = mean over i, higher is better

mCE compares with another model, mRR with the model itself: one that is poor everywhere is perfectly resilient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hilda_schema.errors import UsageError
from hilda_train.evaluate.corruptions import CORRUPTIONS, SEVERITIES, Corrupted, Sweep, corrupt

Corrupt = Callable[[Sweep, str], Corrupted]
"""(sweep, frame's key) -> corrupted sweep; can be sent to another process."""
Evaluate = Callable[[Corrupt | None], float]
"""A model's mIoU, 0 to 1, on test sweeps that are corrupted so; as recorded for None."""
Table = Mapping[str, Sequence[float]]
"""Corruption -> mIoU, 0 to 1, at each severity."""


@dataclass(frozen=True, slots=True)
class Resilience:
    """What a model reaches."""

    clean: float  # mIoU, 0 to 1
    corrupted: dict[str, tuple[float, ...]]  # corruption -> at each severity


def measure(evaluate: Evaluate, names: Sequence[str] = tuple(CORRUPTIONS), seed: int = 0) -> Resilience:
    """Evaluate a model on clean sweeps and under every corruption at every severity.

    Args:
        evaluate: the model.
        names: of the corruptions.
        seed: of what they draw; the same sweeps for every model.

    Raises:
        UsageError: a corruption that is not known.
    """
    require_known(names)
    clean = evaluate(None)
    corrupted = {
        name: tuple(evaluate(partial(_corrupt, name=name, severity=severity, seed=seed)) for severity in SEVERITIES)
        for name in names
    }
    return Resilience(clean, corrupted)


def require_known(names: Sequence[str]) -> None:
    """Refuse what is no corruption, before hours are spent on the others.

    Raises:
        UsageError: naming it.
    """
    for name in names:
        if name not in CORRUPTIONS:
            raise UsageError(f"corruption {name!r} is not known", f"use one of {', '.join(CORRUPTIONS)}")


def _corrupt(sweep: Sweep, key: str, *, name: str, severity: int, seed: int) -> Corrupted:
    return corrupt(sweep, name, severity, seed, key)


def corruption_errors(model: Table, baseline: Table) -> dict[str, float]:
    """CE of each corruption, 1 for the baseline itself.

    Raises:
        UsageError: the baseline was measured on other corruptions.
    """
    if model.keys() != baseline.keys():
        raise UsageError("model and baseline were measured on different corruptions", "measure both alike")
    return {name: float(np.sum(1 - np.array(model[name])) / np.sum(1 - np.array(baseline[name]))) for name in model}


def resilience_rates(model: Table, clean: float) -> dict[str, float]:
    """RR of each corruption, 1 where nothing is lost; NaN of a model that scores nothing on clean sweeps."""
    return {name: float(np.mean(values)) / clean if clean else float("nan") for name, values in model.items()}


def mean_corruption_error(model: Table, baseline: Table) -> float:
    """The mCE, 1 for the baseline itself; published in per cent."""
    return float(np.mean(list(corruption_errors(model, baseline).values())))


def mean_resilience_rate(model: Table, clean: float) -> float:
    """The mRR; published in per cent."""
    return float(np.mean(list(resilience_rates(model, clean).values())))
