"""Optimisers from the config, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hilda_schema.errors import TrainError
from hilda_train.config.training import AdamWConfig, Optim


def build_optimizer(module: nn.Module, config: Optim) -> torch.optim.Optimizer:
    """An optimiser over the parameters that learn.

    Args:
        module: everything that learns: student, heads, denoiser.
        config: `optim`.
    """
    return optimizer_of(parameter_groups(module, config.weight_decay, config.decay_all), config)


def optimizer_of(groups: list[dict[str, Any]], config: Optim) -> torch.optim.Optimizer:
    """An optimiser over parameter groups, see `parameter_groups`.

    Args:
        groups: each may say by how much its rate differs from the others', `rate_factor`.
        config: `optim`.
    """
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, dampening=config.dampening)


def parameter_groups(module: nn.Module, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """Parameters that decay, and those that do not.

    Biases and one-dimensional parameters (scales and shifts of normalisation, LayerScale) do not, unless `decay_all`.

    Args:
        module: whose parameters, in the order of `named_parameters`.
        weight_decay: of the first group.
        decay_all: one group with every parameter.

    Returns:
        Groups of (name, parameter) for a torch optimiser, without empty ones.
    """
    decaying: dict[str, nn.Parameter] = {}
    free: dict[str, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_bias = parameter.ndim <= 1 or name.rpartition(".")[2] == "bias"
            (free if is_bias and not decay_all else decaying)[name] = parameter
    return [
        {"params": list(group.items()), "weight_decay": decay}
        for group, decay in ((decaying, weight_decay), (free, 0.0))
        if group
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use a rate from the next step on, in all groups, times a group's own `rate_factor` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


class MovingAverage:
    """Exponential moving average of a module's parameters: average += (1 - decay) (parameter - average).

    Buffers (running statistics, counters) are averages already, or no numbers to average: they are copied.

    Args:
        module: the module whose state is followed; the average starts as a copy of it.
        decay: share of the old average that a step keeps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self._average = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Follow the module, after an optimiser step."""
        for name, tensor in module.state_dict().items():
            if name in self._parameters:
                self._average[name].lerp_(tensor, 1 - self.decay)
            else:
                self._average[name].copy_(tensor)

    def tensors(self) -> dict[str, Tensor]:
        """The average, under the module's own names and shaped like its tensors; not copies."""
        return dict(self._average)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a saved average, of tensors shaped like the module's.

        Raises:
            TrainError: other names than the module's.
        """
        if tensors.keys() != self._average.keys():
            odd = sorted(tensors.keys() ^ self._average.keys())
            raise TrainError(f"the saved moving average and the model differ in {len(odd)} tensors, e.g. {odd[0]}")
        for name, tensor in tensors.items():
            self._average[name].copy_(tensor)
