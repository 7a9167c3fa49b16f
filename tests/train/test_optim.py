"""Optimisers against hand-written updates, and the moving average against its sum."""

import pytest
import torch
from torch import nn

from hilda_schema.errors import TrainError
from hilda_train.config.training import AdamWConfig, SgdConfig
from hilda_train.optim import MovingAverage, build_optimizer, parameter_groups, set_learning_rate
from hilda_train.students import build_student


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def gradients(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_sgd_with_dampening_is_slidrs_update():
    """v = mu v + (1 - tau)(g + wd p), undamped in the first step; p = p - lr v. By hand, in float64."""
    module = network()
    config = SgdConfig(lr=0.5, momentum=0.9, dampening=0.1, weight_decay=1e-4)
    optimizer = build_optimizer(module, config)
    p = [parameter.detach().double().clone() for parameter in module.parameters()]
    v = [torch.zeros_like(each) for each in p]
    for step in range(4):
        gradients(module, step)
        for i, parameter in enumerate(module.parameters()):
            g = parameter.grad.double() + 1e-4 * p[i]
            v[i] = g if step == 0 else 0.9 * v[i] + (1 - 0.1) * g
            p[i] = p[i] - 0.5 * v[i]
        optimizer.step()
    for parameter, expected in zip(module.parameters(), p, strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_adamw_decays_apart_from_the_gradient():
    """Loshchilov and Hutter, algorithm 2, by hand in float64; the rate changes at every step."""
    module = network()
    config = AdamWConfig(lr=1.0, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.03)
    optimizer = build_optimizer(module, config)
    p = [parameter.detach().double().clone() for parameter in module.parameters()]
    m, s = [torch.zeros_like(each) for each in p], [torch.zeros_like(each) for each in p]
    for step in range(1, 5):
        rate = 0.01 * step
        set_learning_rate(optimizer, rate)
        gradients(module, step)
        for i, parameter in enumerate(module.parameters()):
            g = parameter.grad.double()
            m[i], s[i] = 0.9 * m[i] + 0.1 * g, 0.99 * s[i] + 0.01 * g * g
            p[i] = p[i] * (1 - rate * 0.03)
            p[i] = p[i] - rate * (m[i] / (1 - 0.9**step)) / ((s[i] / (1 - 0.99**step)).sqrt() + 1e-6)
        optimizer.step()
    for parameter, expected in zip(module.parameters(), p, strict=True):
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_decay_is_for_all_or_for_weights_only():
    student = build_student({"name": "minkunet", "depth": 14, "width": 0.25, "levels": ["final"], "out_channels": 3})
    (everything,) = parameter_groups(student, 0.03, decay_all=True)
    assert everything["weight_decay"] == 0.03
    assert [name for name, _ in everything["params"]] == [name for name, _ in student.named_parameters()]
    weights, rest = parameter_groups(student, 0.03, decay_all=False)
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.03, 0.0)
    assert all(name.endswith("kernel") for name, _ in weights["params"])
    assert {name.rpartition(".")[2] for name, _ in rest["params"]} == {"weight", "bias"}
    assert "final.bias" in [name for name, _ in rest["params"]]  # (1, C): two axes, and still a bias


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].requires_grad_(False)
    (group,) = parameter_groups(module, 0.1, decay_all=True)
    assert [name for name, _ in group["params"]] == ["1.weight", "1.bias", "2.weight", "2.bias"]


def test_moving_average_is_the_weighted_sum_of_all_states():
    torch.manual_seed(0)
    module = network().double()
    average = MovingAverage(module, 0.9)
    states = [{name: each.clone() for name, each in module.state_dict().items()}]
    for _ in range(5):
        for parameter in module.parameters():
            parameter.data.normal_()
        module(torch.randn(8, 3, dtype=torch.float64))
        average.update(module)
        states.append({name: each.clone() for name, each in module.state_dict().items()})
    weights = [0.9**5] + [0.1 * 0.9 ** (5 - step) for step in range(1, 6)]
    learned = dict(module.named_parameters())
    for name, found in average.tensors().items():
        if name in learned:
            expected = sum(weight * state[name] for weight, state in zip(weights, states, strict=True))
            torch.testing.assert_close(found, expected)
        else:  # running statistics and the counter: the module's own
            assert torch.equal(found, module.state_dict()[name])


def test_moving_average_is_no_part_of_the_model():
    module = network()
    average = MovingAverage(module, 0.5)
    before = {name: each.clone() for name, each in average.tensors().items()}
    for parameter in module.parameters():
        parameter.data.zero_()
    assert all(torch.equal(each, before[name]) for name, each in average.tensors().items())


def test_moving_average_refuses_another_models():
    average = MovingAverage(network(), 0.5)
    with pytest.raises(TrainError, match=r"differ in 1 tensors, e\.g\. 2\.bias"):
        average.load({name: each for name, each in average.tensors().items() if name != "2.bias"})
