"""The diffusion process: how noise grows with the step, and how it is taken away again.

DDPM (arXiv 2006.11239), DDIM (arXiv 2010.02502). Steps tau count from 0 to T - 1, and abar_tau is the product of
(1 - beta) up to and including tau:

    x_tau = sqrt(abar_tau) x_0 + sqrt(1 - abar_tau) eps
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from hilda_schema.errors import UsageError

Schedule = Literal["linear", "cosine"]

# Both from DDPM, section 4, for T = 1000.
_LINEAR_BETAS = (1e-4, 0.02)
# Improved DDPM (arXiv 2102.09672), section 3.2: offset of the cosine, and the cap that keeps the last steps finite.
_COSINE_OFFSET = 0.008
_COSINE_BETA_CAP = 0.999


def noise_betas(kind: Schedule, steps: int) -> Tensor:
    """(steps,) float64 share of noise added at each step.

    Raises:
        UsageError: an unknown kind, or no step.
    """
    if steps < 1:
        raise UsageError(f"a diffusion process cannot have {steps} steps", "give at least 1; DDPM uses 1000")
    if kind == "linear":
        return torch.linspace(*_LINEAR_BETAS, steps, dtype=torch.float64)
    if kind == "cosine":
        time = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = torch.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).square()
        return (1 - abar[1:] / abar[:-1]).clamp(max=_COSINE_BETA_CAP)
    raise UsageError(f"noise schedule {kind!r} is not known", "use linear or cosine")


class NoiseSchedule(nn.Module):
    """A fixed schedule; a module only so that its table follows the model to its device.

    Args:
        kind: "linear" or "cosine".
        steps: T.
    """

    abar: Tensor

    def __init__(self, kind: Schedule = "linear", steps: int = 1000) -> None:
        super().__init__()
        self.steps = steps
        abar = (1 - noise_betas(kind, steps)).cumprod(0)
        # Not saved: it follows from the two arguments.
        self.register_buffer("abar", abar.float(), persistent=False)

    def add_noise(self, clean: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
        """x_tau from (S, ...) x_0, (S, ...) eps and (S,) int64 steps."""
        signal, spread = self._weights(tau, clean)
        return signal * clean + spread * noise

    def predict_clean(self, noised: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
        """The x_0 that (S, ...) noise implies: the inverse of `add_noise`, unclamped."""
        signal, spread = self._weights(tau, noised)
        return (noised - spread * noise) / signal

    def noise_of_velocity(self, noised: Tensor, velocity: Tensor, tau: Tensor) -> Tensor:
        """The eps that (S, ...) v = sqrt(abar) eps - sqrt(1 - abar) x_0 implies (arXiv 2202.00512, appendix D)."""
        signal, spread = self._weights(tau, noised)
        return spread * noised + signal * velocity

    def sampling_steps(self, count: int) -> list[int]:
        """`count` steps from T - 1 downwards, evenly spaced; T - 1 is among them, for sampling begins in pure noise.

        Raises:
            UsageError: not between 1 and T.
        """
        if not 1 <= count <= self.steps:
            raise UsageError(f"cannot sample in {count} of {self.steps} steps", f"give 1 to {self.steps}")
        return [round(self.steps * (count - index) / count) - 1 for index in range(count)]

    @torch.no_grad()
    def sample(self, denoise: Callable[[Tensor, Tensor], Tensor], noise: Tensor, count: int) -> Tensor:
        """Deterministic DDIM (eta = 0), with the clean estimate clamped to [-1, 1] at every step.

        The noise is derived anew from the clamped estimate, so that each step stays on the line between the two.

        Args:
            denoise: (x_tau (S, ...), tau (S,)) -> eps (S, ...).
            noise: (S, ...) where sampling starts.
            count: number of steps.

        Returns:
            (S, ...) clean estimate in [-1, 1].
        """
        steps = self.sampling_steps(count)
        current, clean = noise, noise
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            tau = torch.full((len(noise),), step, dtype=torch.long, device=noise.device)
            predicted = denoise(current, tau).to(noise.dtype)
            clean = self.predict_clean(current, predicted, tau).clamp(-1, 1)
            if following is not None:
                signal, spread = self._weights(tau, noise)
                predicted = (current - signal * clean) / spread
                current = self.add_noise(clean, predicted, torch.full_like(tau, following))
        return clean

    def _weights(self, tau: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.abar[tau].to(like.dtype).view(-1, *[1] * (like.dim() - 1))
        return abar.sqrt(), (1 - abar).sqrt()
