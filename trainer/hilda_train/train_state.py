"""What a run is between two steps, as tensors and JSON: model, optimiser, moving average, random generators.

`capture` and `restore` are inverse to the bit: a run that is restored computes what it would have computed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hilda_schema.errors import TrainError
from hilda_train.checkpoint import Checkpoint, Snapshot, TensorSpec
from hilda_train.optim import MovingAverage

MAX_RANDOM_WORDS = 2**16

# What the optimisers of `optim.build_optimizer` keep of a parameter; all but the count of steps has its shape.
_KEPT: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
    torch.optim.SGD: ("momentum_buffer",),
}
_SCALAR = TensorSpec((), torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class RandomState:
    """Every global generator of one process."""

    tensors: Mapping[str, Tensor]
    rest: Mapping[str, Any]


def seed_random(seed: int) -> None:
    """Seed every global generator of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_random() -> RandomState:
    """The state of Python's, NumPy's and torch's generators, those of all GPUs included."""
    version, words, gauss_next = random.getstate()
    state: Any = np.random.get_state(legacy=False)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(state["state"]["key"].astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda-{index}": each for index, each in enumerate(torch.cuda.get_rng_state_all())}
    rest = {
        "python": [version, gauss_next],
        "numpy": [state["bit_generator"], state["state"]["pos"], state["has_gauss"], state["gauss"]],
    }
    return RandomState(tensors, rest)


def restore_random(state: RandomState) -> None:
    """Set the generators; those of GPUs that this machine does not have are left out."""
    tensors = state.tensors
    version, gauss_next = state.rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss_next))
    kind, position, has_gauss, gauss = state.rest["numpy"]
    key = tensors["numpy"].numpy().astype(np.uint32)
    numpy_state = {
        "bit_generator": kind,
        "state": {"key": key, "pos": position},
        "has_gauss": has_gauss,
        "gauss": gauss,
    }
    np.random.set_state(numpy_state)
    torch.set_rng_state(tensors["torch"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda-{index}" in tensors:
                torch.cuda.set_rng_state(tensors[f"cuda-{index}"], index)


def capture(
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    randoms: Sequence[RandomState],
    state: Mapping[str, Any],
) -> Snapshot:
    """Collect everything between two steps.

    Args:
        step: steps done.
        module: everything that learns.
        optimizer: of the module's parameters, built by `optim.build_optimizer`.
        average: the moving average, where there is one.
        randoms: one for each process of the run, in the order of ranks.
        state: the caller's own, as JSON: config digest, cache hashes, the loader's place.
    """
    tensors = {"model": module.state_dict(), "optimizer": optimizer_tensors(optimizer)}
    if average is not None:
        tensors["average"] = average.tensors()
    tensors |= {f"random-{rank}": dict(each.tensors) for rank, each in enumerate(randoms)}
    return Snapshot(step, tensors, {"run": dict(state), "random": [dict(each.rest) for each in randoms]})


def restore(
    checkpoint: Checkpoint,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage | None,
    rank: int = 0,
) -> None:
    """Put a checkpoint's content back in place.

    Args:
        checkpoint: opened, so checked.
        module: built from the same config.
        optimizer: built from the same config; its options stay, its state is replaced.
        average: as in `capture`.
        rank: of this process.

    Raises:
        TrainError: the checkpoint is of another model, or of a run with fewer processes.
    """
    ranks = checkpoint.state.get("random")
    if not isinstance(ranks, list):
        raise TrainError(f"{checkpoint.path} is not the checkpoint of a training run")
    module.load_state_dict(checkpoint.read("model", module.state_dict()))
    load_optimizer(optimizer, checkpoint)
    if average is not None:
        average.load(checkpoint.read("average", average.tensors()))
    _restore_random_of(checkpoint, ranks, rank)


def run_state(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The caller's own state, as it was given to `capture`.

    Raises:
        TrainError: it is not there.
    """
    run = checkpoint.state.get("run")
    if not isinstance(run, dict):
        raise TrainError(f"{checkpoint.path} is not the checkpoint of a training run")
    return run


def _restore_random_of(checkpoint: Checkpoint, ranks: list[Any], rank: int) -> None:
    if rank >= len(ranks):
        raise TrainError(
            f"{checkpoint.path} was saved by {len(ranks)} processes, this is number {rank + 1}",
            "resume with as many processes as before",
        )
    stem = f"random-{rank}"
    specs = checkpoint.specs(stem)
    try:
        if any(math.prod(spec.shape) > MAX_RANDOM_WORDS for spec in specs.values()):
            raise ValueError
        restore_random(RandomState(checkpoint.read(stem, specs), ranks[rank]))
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise TrainError(f"{checkpoint.path / stem}.safetensors holds no state of random generators") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state by parameter: "exp_avg/student.conv0p1s1.kernel" -> tensor, shaped like it, or a scalar.

    Raises:
        TrainError: the optimiser keeps something else than tensors.
    """
    names = _parameter_names(optimizer)
    found = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for kind, value in entries.items():
            if isinstance(value, Tensor):
                found[f"{kind}/{names[index]}"] = value
            elif value is not None:  # SGD without momentum keeps a None
                raise TrainError(
                    f"the optimiser keeps {kind} of {names[index]} as {type(value).__name__}, not a tensor"
                )
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Replace an optimiser's state by a checkpoint's.

    Raises:
        TrainError: it speaks of another parameter, or keeps of one what this optimiser does not, or not all of it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index_of = {name: index for index, name in enumerate(_parameter_names(optimizer))}
    # A parameter that never had a gradient has no state.
    stepped = {name.partition("/")[2] for name in checkpoint.specs("optimizer")} & index_of.keys()
    expected = {
        f"{kind}/{name}": _SCALAR if kind == "step" else _spec_of(parameters[index_of[name]])
        for name in stepped
        for kind in _KEPT[type(optimizer)]
    }
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.read("optimizer", expected).items():
        kind, _, parameter = name.partition("/")
        state.setdefault(index_of[parameter], {})[kind] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _spec_of(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def _parameter_names(optimizer: torch.optim.Optimizer) -> list[str]:
    return [name for group in optimizer.param_groups for name in group["param_names"]]
