"""The diffusion loss against loops in float64, what unobserved cells may and may not do, and a toy that learns."""

import math

import pytest
import torch

from hilda_train.objectives.bev import (
    FREE,
    OCCUPIED,
    UNOBSERVED,
    BevGrid,
    BevHistory,
    SweepFeatures,
    occupancy_scores,
)
from hilda_train.objectives.occupancy_diffusion import OccupancyDiffusion, encode_target, occupancy_diffusion_loss
from hilda_train.objectives.schedule import NoiseSchedule
from hilda_train.objectives.unet2d import UNet2d

SCHEDULE = NoiseSchedule("linear", 1000).double()
OPTIONS = {"lambda_x0": 0.3, "occupied_weight": 5.0}


def draw(seed: int, samples: int = 3, side: int = 5):
    generator = torch.Generator().manual_seed(seed)
    predicted, noise = torch.randn(2, samples, side, side, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (samples, side, side), generator=generator, dtype=torch.uint8)
    return predicted, noise, torch.tensor([20, 480, 900][:samples]), target


def naive_loss(predicted, noise, tau, target, lambda_x0, occupied_weight):
    noise_sum = x0_sum = cells = weights = 0.0
    abar_of, abar = [], 1.0
    for step in range(1000):
        abar *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
        abar_of.append(abar)
    for s, row, column in torch.cartesian_prod(*(torch.arange(n) for n in target.shape)).tolist():
        state = target[s, row, column].item()
        if state == UNOBSERVED:
            continue
        x = 1.0 if state == OCCUPIED else -1.0
        weight = occupied_weight if state == OCCUPIED else 1.0
        abar = abar_of[tau[s].item()]
        eps, guess = noise[s, row, column].item(), predicted[s, row, column].item()
        noised = math.sqrt(abar) * x + math.sqrt(1 - abar) * eps
        estimate = (noised - math.sqrt(1 - abar) * guess) / math.sqrt(abar)
        noise_sum += (eps - guess) ** 2
        cells += 1
        weights += weight
        x0_sum += weight * (estimate - x) ** 2
    return noise_sum / cells + lambda_x0 * x0_sum / weights


@pytest.mark.parametrize("lambda_x0", [0.0, 0.3, 1.0])
def test_loss_equals_the_equation(lambda_x0):
    inputs = draw(seed=1)
    options = OPTIONS | {"lambda_x0": lambda_x0}
    found = occupancy_diffusion_loss(*inputs, SCHEDULE, **options)
    # abar is kept in float32.
    assert found.loss.item() == pytest.approx(naive_loss(*inputs, **options), rel=1e-5)
    assert found.loss.item() == pytest.approx(found.logs["noise"].item() + lambda_x0 * found.logs["x0"].item())


def test_gradients_are_right():
    predicted, noise, tau, target = draw(seed=2, samples=2, side=3)
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: occupancy_diffusion_loss(x, noise, tau, target, SCHEDULE, **OPTIONS).loss, predicted
    )


def test_with_equal_weights_both_terms_are_the_error_of_the_velocity():
    """What makes lambda = 1 weigh every noise level the same, and what lambda = 0 does not teach."""
    velocity, noise, tau, target = draw(seed=3)
    target = target.clamp(max=OCCUPIED)
    clean = encode_target(target).double()
    abar = SCHEDULE.abar[tau].double().view(-1, 1, 1)
    predicted = SCHEDULE.noise_of_velocity(SCHEDULE.add_noise(clean, noise, tau), velocity, tau)
    error = (velocity - (abar.sqrt() * noise - (1 - abar).sqrt() * clean)).square()
    for lambda_x0 in (0.0, 0.3, 1.0):
        term = occupancy_diffusion_loss(
            predicted, noise, tau, target, SCHEDULE, lambda_x0=lambda_x0, occupied_weight=1.0
        )
        expected = ((abar + lambda_x0 * (1 - abar)) * error).mean()
        assert term.loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_unobserved_cells_teach_nothing():
    predicted, noise, tau, target = draw(seed=4)
    predicted.requires_grad_()
    term = occupancy_diffusion_loss(predicted, noise, tau, target, SCHEDULE, **OPTIONS)
    term.loss.backward()
    unobserved = target == UNOBSERVED
    assert not predicted.grad[unobserved].any()
    assert predicted.grad[~unobserved].all()
    changed = predicted.detach() + 100.0 * unobserved
    assert occupancy_diffusion_loss(changed, noise, tau, target, SCHEDULE, **OPTIONS).loss == term.loss


def test_unobserved_is_half_way_between_free_and_occupied():
    target = torch.tensor([[[FREE, OCCUPIED, UNOBSERVED]]], dtype=torch.uint8)
    assert encode_target(target).flatten().tolist() == [-1.0, 1.0, 0.0]


@pytest.mark.parametrize("state", [FREE, UNOBSERVED])
def test_a_target_of_ground_alone_or_of_nothing_is_finite(state):
    predicted, noise, tau, target = draw(seed=5)
    predicted.requires_grad_()
    term = occupancy_diffusion_loss(predicted, noise, tau, torch.full_like(target, state), SCHEDULE, **OPTIONS)
    term.loss.backward()
    assert term.loss.isfinite()
    assert predicted.grad.isfinite().all()
    assert bool(predicted.grad.any()) == (state == FREE)


def test_nan_predictions_show_in_the_loss():
    predicted, noise, tau, target = draw(seed=6)
    predicted[0, 0, 0] = math.nan
    assert occupancy_diffusion_loss(predicted, noise, tau, target, SCHEDULE, **OPTIONS).loss.isnan()


GRID = BevGrid(range_m=8.0, cell_m=0.5)  # 32 x 32


def build(channels: int = 3, base: int = 16, draws: int = 1) -> OccupancyDiffusion:
    torch.manual_seed(0)
    history = BevHistory(channels, 8, GRID)
    network = UNet2d(9, base=base, multipliers=(1, 2), blocks=1)
    return OccupancyDiffusion(history, network, NoiseSchedule("cosine"), draws=draws)


def toy(samples: int = 2):
    """Blocks that move by 2 cells a frame along y; their future is where they will be, half the map is unseen."""
    generator = torch.Generator().manual_seed(0)
    target = torch.full((samples, 32, 32), FREE, dtype=torch.uint8)
    sweeps = []
    corners = torch.randint(4, 18, (samples, 4, 2), generator=generator)
    for frame in range(3):
        occupied = torch.zeros(samples, 32, 32, dtype=torch.bool)
        for sample in range(samples):
            for row, column in corners[sample].tolist():
                occupied[sample, row : row + 4, column + 2 * frame : column + 2 * frame + 4] = True
        if frame == 2:
            target[occupied] = OCCUPIED
        else:
            sample, row, column = occupied.nonzero(as_tuple=True)
            xyz_m = torch.stack((row * 0.5 - 7.75, column * 0.5 - 7.75, torch.zeros(len(row))), dim=1)
            sweeps.append(SweepFeatures(torch.ones(len(row), 3), xyz_m, sample))
    target[:, 28:] = UNOBSERVED
    return sweeps, target


def test_the_networks_output_is_a_velocity():
    """In float64, step by step: x0 and eps of a network that knows v are those that made x_tau, whatever tau."""
    generator = torch.Generator().manual_seed(3)
    clean, noise = torch.randn(2, 4, 5, 5, generator=generator, dtype=torch.float64)
    tau = torch.tensor([0, 300, 700, 999])
    abar = SCHEDULE.abar[tau].view(-1, 1, 1)
    velocity = abar.sqrt() * noise - (1 - abar).sqrt() * clean
    noised = SCHEDULE.add_noise(clean, noise, tau)
    found = SCHEDULE.noise_of_velocity(noised, velocity, tau)
    torch.testing.assert_close(found, noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(SCHEDULE.predict_clean(noised, found, tau), clean, rtol=1e-7, atol=1e-7)


def test_gradients_reach_the_student_through_both_frames():
    diffusion = build()
    sweeps, target = toy()
    # The network starts at zero output, where nothing flows yet: one layer must be moved.
    torch.nn.init.normal_(diffusion.denoiser.leave[2].weight, std=0.1)
    features = [sweep.features.clone().requires_grad_() for sweep in sweeps]
    moved = [sweep._replace(features=f) for sweep, f in zip(sweeps, features, strict=True)]
    diffusion(moved, target, torch.Generator().manual_seed(0)).loss.backward()
    assert all(f.grad is not None and f.grad.isfinite().all() and f.grad.any() for f in features)


def test_the_same_generator_gives_the_same_loss_and_sample():
    diffusion = build()
    torch.nn.init.normal_(diffusion.denoiser.leave[2].weight, std=0.1)
    sweeps, target = toy()
    losses = [diffusion(sweeps, target, torch.Generator().manual_seed(seed)).loss.item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    samples = [diffusion.sample(sweeps, 2, 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    assert samples[0].shape == target.shape
    assert samples[0].abs().max() <= 1


def test_several_draws_of_a_sample_are_samples_of_their_own_with_noise_levels_evenly_apart():
    diffusion = build(draws=4)
    torch.nn.init.normal_(diffusion.denoiser.leave[2].weight, std=0.1)
    sweeps, target = toy()
    seen = []
    diffusion.denoiser.register_forward_hook(lambda _, inputs, output: seen.append((*inputs, output)))
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    term = diffusion(sweeps, target, generators)
    ((stacked, tau, velocity),) = seen
    assert len(stacked) == 8
    for levels in tau.view(2, 4).tolist():
        assert {(b - a) % 1000 for a, b in zip(levels, levels[1:] + levels[:1], strict=True)} == {250}
    assert torch.equal(stacked[0, 1:], stacked[3, 1:])  # one history
    assert not torch.equal(stacked[0, 1:], stacked[4, 1:])
    # The loss of each draw by itself, averaged by its observed cells, which are equally many here.
    singles = []
    for each in range(8):
        noised, level, truth = stacked[each : each + 1, 0], tau[each : each + 1], target[each // 4 : each // 4 + 1]
        abar = diffusion.schedule.abar[level].view(-1, 1, 1)
        noise = (noised - abar.sqrt() * encode_target(truth)) / (1 - abar).sqrt()
        guess = diffusion.schedule.noise_of_velocity(noised, velocity[each : each + 1, 0], level)
        options = {"lambda_x0": 0.0, "occupied_weight": 5.0}
        singles.append(occupancy_diffusion_loss(guess, noise, level, truth, diffusion.schedule, **options).loss)
    torch.testing.assert_close(term.logs["noise"], torch.stack(singles).mean(), rtol=1e-4, atol=0)


def test_no_sample_with_a_target_gives_zero_and_zero_gradients():
    diffusion = build()
    empty = SweepFeatures(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    term = diffusion([empty, empty], torch.zeros(0, 32, 32, dtype=torch.uint8))
    term.loss.backward()
    assert term.loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in diffusion.parameters())


def test_bfloat16_autocast_stays_close():
    diffusion = build()
    torch.nn.init.normal_(diffusion.denoiser.leave[2].weight, std=0.1)
    sweeps, target = toy()
    exact = diffusion(sweeps, target, torch.Generator().manual_seed(0)).loss
    with torch.autocast("cpu", torch.bfloat16):
        rounded = diffusion(sweeps, target, torch.Generator().manual_seed(0)).loss
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_toy_future_is_learned():
    """The loss falls, and what DDIM draws in a few steps comes to look like the future, not like the present."""
    diffusion = build()
    sweeps, target = toy()
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=3e-3)
    # To rest at the end: in the middle of training a single step can cost a third of the score.
    cooling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 160)
    generator = torch.Generator().manual_seed(0)

    def iou() -> float:
        draws = [diffusion.sample(sweeps, 2, 8, torch.Generator().manual_seed(seed)) for seed in range(4)]
        return sum(occupancy_scores(drawn > 0, target)["iou"].item() for drawn in draws) / 4

    before, losses = iou(), []
    for _ in range(160):
        loss = diffusion(sweeps, target, generator).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cooling.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])
    sample, row, column = sweeps[1].sample, *((sweeps[1].xyz_m[:, :2] + 8.0) / 0.5).long().unbind(1)
    present = torch.zeros(target.shape, dtype=torch.bool).index_put((sample, row, column), torch.tensor(True))
    assert before < occupancy_scores(present, target)["iou"].item() < 0.4
    assert iou() > 0.5
