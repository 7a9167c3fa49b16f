"""Noise schedules and sampling against the `diffusers` library."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from hilda_schema.errors import UsageError
from hilda_train.objectives.schedule import NoiseSchedule, noise_betas

NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("steps", [10, 1000])
def test_forward_process_equals_ddpm(kind, steps):
    reference = DDPMScheduler(num_train_timesteps=steps, beta_schedule=NAMES[kind])
    torch.testing.assert_close(noise_betas(kind, steps).float(), reference.betas, rtol=1e-5, atol=1e-7)
    schedule = NoiseSchedule(kind, steps)
    torch.testing.assert_close(schedule.abar, reference.alphas_cumprod, rtol=2e-4, atol=1e-7)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 6, 4, 4, generator=generator)
    tau = torch.randint(steps, (6,), generator=generator)
    torch.testing.assert_close(
        schedule.add_noise(clean, noise, tau), reference.add_noise(clean, noise, tau), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("count", [1, 4, 8, 50])
def test_sampling_equals_ddim(kind, count):
    """Any denoiser will do; this one is wrong enough for the clamp to matter."""
    reference = DDIMScheduler(
        beta_schedule=NAMES[kind], timestep_spacing="trailing", clip_sample=True, set_alpha_to_one=True
    )
    reference.set_timesteps(count)
    schedule = NoiseSchedule(kind)
    assert schedule.sampling_steps(count) == reference.timesteps.tolist()

    def denoise(x, tau):
        return torch.sin(3 * x) + tau.view(-1, 1, 1) / 1000

    noise = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(1))
    current = noise
    for step in reference.timesteps:
        predicted = denoise(current, torch.full((2,), int(step)))
        current = reference.step(predicted, int(step), current, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(schedule.sample(denoise, noise, count), current, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_a_perfect_denoiser_recovers_the_clean_map(kind, count):
    """The oracle knows x_0 and so answers with the noise that is really there."""
    schedule = NoiseSchedule(kind).double()
    generator = torch.Generator().manual_seed(2)
    clean = torch.randint(2, (3, 8, 8), generator=generator) * 2.0 - 1.0

    def oracle(x, tau):
        abar = schedule.abar[tau].view(-1, 1, 1)
        return (x - abar.sqrt() * clean) / (1 - abar).sqrt()

    start = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(schedule.sample(oracle, start, count), clean.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", NAMES)
def test_predict_clean_inverts_add_noise(kind):
    schedule = NoiseSchedule(kind).double()
    tau = torch.arange(1000)
    clean, noise = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noised = schedule.add_noise(clean, noise, tau)
    torch.testing.assert_close(schedule.predict_clean(noised, noise, tau), clean, rtol=1e-6, atol=1e-6)


def test_steps_that_do_not_divide_still_start_in_pure_noise_and_descend():
    steps = NoiseSchedule("linear").sampling_steps(7)
    assert steps[0] == 999
    assert steps == sorted(set(steps), reverse=True)
    assert len(steps) == 7


def test_table_is_not_saved_and_impossible_requests_are_refused():
    assert NoiseSchedule("linear", 10).state_dict() == {}
    with pytest.raises(UsageError):
        NoiseSchedule("quadratic")
    with pytest.raises(UsageError):
        NoiseSchedule("linear", 0)
    for count in (0, 11):
        with pytest.raises(UsageError):
            NoiseSchedule("linear", 10).sampling_steps(count)
