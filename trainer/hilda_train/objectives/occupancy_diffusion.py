"""Temporal occupancy diffusion: from two sweeps, denoise the bird's-eye occupancy half a second later.

HilDA (arXiv 2606.20189), with x_occ the occupancy of t1 in the frame of t0, ground removed, and C_history the
collapsed student features of t-1 and t0 (`bev.BevHistory`), concatenated to the noised map along the channels:

    x_tau = sqrt(abar_tau) x_occ + sqrt(1 - abar_tau) eps
    L = E_{tau,eps} || eps - eps_theta(x_tau, tau, C_history) ||_2^2 + lambda || x_occ - xhat_occ ||_2^2

Not published, our choices: occupancy is -1 (free) and +1 (occupied), and occupied cells, which are few, weigh more in
the second term. The network's raw output is v = sqrt(abar) eps - sqrt(1 - abar) x_occ (arXiv 2202.00512), from which
eps_theta follows. With e the error of v, that of eps is sqrt(abar) e and that of xhat is -sqrt(1 - abar) e, so that

    L = (abar + lambda (1 - abar)) || e ||_2^2        (where all cells weigh the same)

The first term teaches only where the noised map still shows the occupancy, which can be read off it without a glance at
the history; the second teaches where nothing but the history can tell, and so the student. lambda = 1 weighs every
noise level the same. docs/design-notes/0002-denoiser-output.md has the curves.

Unobserved cells enter the noised map as 0, half-way between free and occupied, and are left out of both terms:
the student is never told that what the LiDAR could not see was free.

Gradients reach the student through C_history; nothing is detached.

Legend: S samples, R draws for each, H x W grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hilda_train.objectives.bev import OCCUPIED, UNOBSERVED, BevHistory, SweepFeatures
from hilda_train.objectives.reductions import at_least_float32, shared_count
from hilda_train.objectives.schedule import NoiseSchedule
from hilda_train.objectives.term import Term


def encode_target(target: Tensor) -> Tensor:
    """(S, H, W) float32 map: -1 free, +1 occupied, 0 unobserved."""
    signed = torch.where(target == OCCUPIED, 1.0, -1.0)
    return signed.masked_fill(target == UNOBSERVED, 0.0)


def occupancy_diffusion_loss(
    predicted_noise: Tensor,
    noise: Tensor,
    tau: Tensor,
    target: Tensor,
    schedule: NoiseSchedule,
    *,
    lambda_x0: float,
    occupied_weight: float,
) -> Term:
    """Both terms, each a mean over the observed cells of the batch.

    Args:
        predicted_noise: (S, H, W) eps_theta.
        noise: (S, H, W) eps.
        tau: (S,) int64 steps.
        target: (S, H, W) uint8 of FREE, OCCUPIED, UNOBSERVED.
        schedule: gives abar.
        lambda_x0: lambda.
        occupied_weight: weight of an occupied cell in the second term, whose mean is weighted accordingly.

    Returns:
        The term; logs "noise" and "x0", before lambda.
    """
    predicted_noise = at_least_float32(predicted_noise)
    observed = (target != UNOBSERVED).to(predicted_noise.dtype)
    clean = encode_target(target).to(predicted_noise.dtype)
    noised = schedule.add_noise(clean, noise.to(predicted_noise.dtype), tau)
    noise_loss = ((predicted_noise - noise).square() * observed).sum() / shared_count(observed.sum())

    estimate = schedule.predict_clean(noised, predicted_noise, tau)
    weight = observed * torch.where(target == OCCUPIED, occupied_weight, 1.0)
    x0_loss = ((estimate - clean).square() * weight).sum() / shared_count(weight.sum())
    loss = noise_loss + lambda_x0 * x0_loss
    return Term(loss, {"noise": noise_loss.detach(), "x0": x0_loss.detach()})


class OccupancyDiffusion(nn.Module):
    """History map, denoiser and process together.

    Args:
        history: collapses the sweeps to (S, D, H, W).
        denoiser: (S, 1 + D, H, W), (S,) -> (S, 1, H, W), the velocity v; e.g. `UNet2d(1 + D)`.
        schedule: the process.
        lambda_x0: lambda; 0 leaves the noise term alone.
        occupied_weight: of an occupied cell in the second term.
        draws: R, of noise levels and noise for each sample, whose history is computed once. The levels of one sample
            lie evenly apart, so that their mean wavers less than that of R independent ones (arXiv 2107.00630).
    """

    def __init__(
        self,
        history: BevHistory,
        denoiser: nn.Module,
        schedule: NoiseSchedule,
        *,
        lambda_x0: float = 1.0,
        occupied_weight: float = 5.0,
        draws: int = 1,
    ) -> None:
        super().__init__()
        self.history = history
        self.denoiser = denoiser
        self.schedule = schedule
        self.lambda_x0 = lambda_x0
        self.occupied_weight = occupied_weight
        self.draws = draws

    def forward(
        self,
        sweeps: Sequence[SweepFeatures],
        target: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Term:
        """R random steps of the process for each sample.

        Args:
            sweeps: t-1 and t0, with coordinates in the frame of t0.
            target: (S, H, W) uint8 of FREE, OCCUPIED, UNOBSERVED.
            generator: source of steps and noise, on the target's device: one, or one for each sample, whose draw
                then does not depend on which samples share its batch; None: torch's own.
        """
        history = self.history(sweeps, len(target)).repeat_interleave(self.draws, dim=0)
        tau, noise = self._draw(target, generator)
        target = target.repeat_interleave(self.draws, dim=0)
        noised = self.schedule.add_noise(encode_target(target), noise, tau)
        return occupancy_diffusion_loss(
            self._denoise(noised, tau, history),
            noise,
            tau,
            target,
            self.schedule,
            lambda_x0=self.lambda_x0,
            occupied_weight=self.occupied_weight,
        )

    def _draw(
        self, target: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> tuple[Tensor, Tensor]:
        """(S R,) steps and (S R, H, W) noise, the draws of one sample side by side."""
        if isinstance(generator, Sequence) and len(target):
            draws = [self._draw(each[None], own) for each, own in zip(target, generator, strict=True)]
            return torch.cat([tau for tau, _ in draws]), torch.cat([noise for _, noise in draws])
        source = generator if isinstance(generator, torch.Generator) else None
        first = torch.randint(self.schedule.steps, (len(target), 1), generator=source, device=target.device)
        apart = torch.arange(self.draws, device=target.device) * self.schedule.steps // self.draws
        tau = ((first + apart) % self.schedule.steps).flatten()
        return tau, torch.randn((len(tau), *target.shape[1:]), generator=source, device=target.device)

    @torch.no_grad()
    def sample(
        self,
        sweeps: Sequence[SweepFeatures],
        samples: int,
        steps: int = 8,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(S, H, W) occupancy in [-1, 1], drawn by DDIM; above 0 is occupied. A look at what the student foresees."""
        history = self.history(sweeps, samples)
        shape = (samples, *history.shape[2:])
        noise = torch.randn(shape, generator=generator, device=history.device)
        return self.schedule.sample(lambda x, tau: self._denoise(x, tau, history), noise, steps)

    def _denoise(self, noised: Tensor, tau: Tensor, history: Tensor) -> Tensor:
        stacked = torch.cat((noised[:, None].to(history.dtype), history), dim=1)
        velocity = at_least_float32(self.denoiser(stacked, tau)[:, 0])
        return self.schedule.noise_of_velocity(noised.to(velocity.dtype), velocity, tau)
