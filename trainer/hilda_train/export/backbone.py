"""A trained backbone by itself, and how its modules are renamed for others.

Legend: C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hilda_schema.errors import UsageError
from hilda_train.config.student import MinkUNetConfig, Student, WaffleIronConfig
from hilda_train.export.kernels import identity

State = dict[str, Tensor]

ENCODER_STAGES = 4
NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
EPS = 1e-5  # of batch normalisation, here and in every target


@dataclass(frozen=True, slots=True, eq=False)
class Backbone:
    """What is exported."""

    state: Mapping[str, Tensor]
    """The student's `state_dict`."""
    student: Student
    facts: Mapping[str, Any]
    """Where it comes from, as JSON: run, step, caches, teachers."""

    def minkunet(
        self, target: str, depths: tuple[int, ...] = (14, 18, 34, 50), stem_kernel_size: int | None = None
    ) -> MinkUNetConfig:
        """The student's config, for targets that are MinkUNets.

        Args:
            target: for messages.
            depths: that the target has.
            stem_kernel_size: that the target is bound to; None takes any.

        Raises:
            UsageError: another student, or one that the target cannot express.
        """
        if not isinstance(self.student, MinkUNetConfig):
            raise UsageError(
                f"{target} takes a MinkUNet, this run trained a {self.student.arch}", "use --to safetensors"
            )
        if self.student.depth not in depths:
            raise UsageError(
                f"{target} has no MinkUNet{self.student.depth}: its bottleneck blocks are others",
                "use --to minkowski or safetensors",
            )
        if stem_kernel_size not in (None, self.student.stem_kernel_size):
            raise UsageError(
                f"{target}'s first kernel spans {stem_kernel_size} voxels, "
                f"this student's {self.student.stem_kernel_size}",
                "use --to minkowski, pointcept or safetensors",
            )
        return self.student

    def waffleiron(self, target: str) -> WaffleIronConfig:
        """The student's config, for targets that are WaffleIrons; see `minkunet`."""
        if not isinstance(self.student, WaffleIronConfig):
            raise UsageError(
                f"{target} takes a WaffleIron, this run trained a {self.student.arch}", "use --to minkowski"
            )
        return self.student


def blocks_of(state: Mapping[str, Tensor], stage: int) -> int:
    """Residual blocks of `block{stage}` in a MinkUNet's state, by names: the tensors may have any shape."""
    prefix = f"block{stage}."
    return 1 + max(int(name[len(prefix) :].split(".")[0]) for name in state if name.startswith(prefix))


def planes_of(state: Mapping[str, Tensor]) -> list[int]:
    """Output channels of block1 .. block8, from kernels (..., Cout), without the factor of bottleneck blocks."""
    return [state[f"block{stage}.0.conv1.kernel"].shape[-1] for stage in range(1, 2 * ENCODER_STAGES + 1)]


def conv_names(stage: int) -> tuple[str, str]:
    """Module names of the convolution that leads into `block{stage}`, and of its normalisation."""
    if stage <= ENCODER_STAGES:
        return f"conv{stage}p{2 ** (stage - 1)}s2", f"bn{stage}"
    before = stage - 1
    return f"convtr{before}p{2 ** (2 * ENCODER_STAGES - before)}s2", f"bntr{before}"


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], kernel: Callable[[Tensor], Tensor], kernel_name: str
) -> State:
    """Rename modules and reorder kernels.

    Args:
        state: of a MinkUNet; kernels (K^3, Cin, Cout) or (Cin, Cout).
        names: our module -> theirs, for every module that holds tensors.
        kernel: layout change.
        kernel_name: what they call a kernel.

    Raises:
        UsageError: a tensor of a module that `names` does not have, such as a final layer.
    """
    result = {}
    for key, tensor in state.items():
        module, _, part = key.rpartition(".")
        is_norm = module.endswith(".bn")
        theirs = names.get(module.removesuffix(".bn") if is_norm else module)
        if theirs is None:
            raise UsageError(f"{key} has no place in this target")
        if is_norm:
            result[f"{theirs}.{part}"] = tensor
        else:
            result[f"{theirs}.{kernel_name}"] = kernel(tensor)
    return result


def with_second_stem(state: Mapping[str, Tensor]) -> State:
    """Add the second stem layer that torchsparse's and mmdetection3d's MinkUNets have and MinkowskiEngine's lack.

    It changes nothing: its input is rectified, its kernel is the identity, and its normalisation undoes itself. In
    training mode a normalisation uses the batch's statistics; so that it is close to nothing there too, it is given
    the moments of a rectified Gaussian, which is what a rectified, normalised layer puts out (mean b, deviation |w|):

        E = b P(b/|w|) + |w| p(b/|w|),   E2 = (b^2 + w^2) P(b/|w|) + b |w| p(b/|w|)

    with P and p the standard normal's distribution and density. The modules are called `conv_extra`, a kernel
    (27, C, C), and `bn_extra`, (C,).
    """
    mean = state["bn0.bn.bias"].double()
    deviation = state["bn0.bn.weight"].double().abs().clamp(min=1e-12)
    ratio = mean / deviation
    below = torch.special.ndtr(ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    first = mean * below + deviation * density
    second = (mean.square() + deviation.square()) * below + mean * deviation * density
    variance = (second - first.square()).clamp(min=0)
    moments = (torch.sqrt(variance + EPS), first, first, variance)
    extra = {f"bn_extra.bn.{part}": moment.float() for part, moment in zip(NORM_PARTS[:4], moments, strict=True)}
    extra["bn_extra.bn.num_batches_tracked"] = state["bn0.bn.num_batches_tracked"].clone()
    return {**state, "conv_extra.kernel": identity(len(mean), 3), **extra}
