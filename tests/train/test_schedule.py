"""Learning rates against torch's schedulers and the published closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilda_train.config.training import ConstantConfig, CosineConfig, InverseSqrtConfig, OneCycleConfig
from hilda_train.schedule import learning_rate


def torch_rates(make, lr, steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("steps", "peak"), [(100, 0.2), (17, 0.3), (1000, 0.05)])
def test_one_cycle_is_torchs(steps, peak):
    schedule = OneCycleConfig(peak=peak, start_divisor=25.0, end_divisor=100.0)
    expected = torch_rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            0.01,
            total_steps=steps + 1,
            pct_start=peak,
            div_factor=25,
            final_div_factor=100,
            cycle_momentum=False,
        ),
        0.01,
        steps,
    )
    # torch refuses to be stepped after the last rate, so it is given one more than is compared.
    assert [learning_rate(schedule, 0.01, step, steps + 1) for step in range(steps)] == pytest.approx(
        expected, rel=1e-9
    )


def test_one_cycle_ends_where_it_should():
    schedule = OneCycleConfig(peak=0.2, start_divisor=25.0, end_divisor=100.0)
    assert learning_rate(schedule, 1.0, 0, 50) == pytest.approx(1 / 25)
    assert learning_rate(schedule, 1.0, 9, 50) == pytest.approx(1.0)
    assert learning_rate(schedule, 1.0, 49, 50) == pytest.approx(1 / 2500)


def test_cosine_without_warm_up_is_torchs():
    expected = torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=1e-4), 0.5, 40)
    schedule = CosineConfig(final_lr=1e-4)
    assert [learning_rate(schedule, 0.5, step, 40) for step in range(40)] == pytest.approx(expected, rel=1e-9)


def test_cosine_with_warm_up_is_scalrs():
    """ScaLR multiplies the rate by i / w for i < w and by m + (1 - m)(1 + cos(pi (i - w) / (T - w))) / 2 afterwards."""
    lr, final, warmup, steps = 2e-3, 1e-5, 35, 500

    def factor(i):
        if i < warmup:
            return i / warmup
        m = final / lr
        return m + 0.5 * (1 - m) * (math.cos((i - warmup) / (steps - warmup) * math.pi) + 1)

    expected = torch_rates(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor), lr, steps)
    schedule = CosineConfig(warmup=warmup, final_lr=final)
    assert [learning_rate(schedule, lr, step, steps) for step in range(steps)] == pytest.approx(expected, rel=1e-9)


def test_inverse_square_root_with_cool_down():
    """ScaLR+: 1 / sqrt(1 + t / (0.45 epoch)) after the warm-up, and a line to zero over the last epochs."""
    schedule = InverseSqrtConfig(warmup=10, timescale=45, cooldown=20)
    rates = [learning_rate(schedule, 1.0, step, 200) for step in range(200)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(1 / math.sqrt(2))
    turn = 1 / math.sqrt(1 + 170 / 45)
    assert rates[180] == pytest.approx(turn)
    assert rates[190] == pytest.approx(turn / 2)
    assert rates[199] == pytest.approx(turn / 20)


def test_constant():
    schedule = ConstantConfig(warmup=4)
    assert [learning_rate(schedule, 2.0, step, 8) for step in range(8)] == [0, 0.5, 1, 1.5, 2, 2, 2, 2]


schedules = st.one_of(
    st.builds(ConstantConfig, warmup=st.integers(0, 5)),
    st.builds(CosineConfig, warmup=st.integers(0, 5), final_lr=st.floats(0, 0.1)),
    st.builds(
        OneCycleConfig, peak=st.floats(0.01, 0.99), start_divisor=st.floats(1, 50), end_divisor=st.floats(1, 1e4)
    ),
    st.builds(InverseSqrtConfig, warmup=st.integers(0, 5), timescale=st.integers(1, 100), cooldown=st.integers(0, 5)),
)


@given(schedules, st.integers(11, 300), st.data())
def test_rates_stay_between_zero_and_the_highest(schedule, steps, data):
    step = data.draw(st.integers(0, steps - 1))
    rate = learning_rate(schedule, 0.3, step, steps)
    assert 0 <= rate <= 0.3 * (1 + 1e-12)
    assert rate == learning_rate(schedule, 0.3, step, steps)
