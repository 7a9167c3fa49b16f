"""The denoiser's shape, its zero start, and that time and distance reach its output."""

import math

import pytest
import torch

from hilda_schema.errors import UsageError
from hilda_train.objectives.unet2d import UNet2d, time_embedding


def trained_like(network: UNet2d) -> UNet2d:
    """Fill the zero-initialised layers, which would hide everything before them."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def small(**options) -> UNet2d:
    torch.manual_seed(0)
    return UNet2d(3, base=8, multipliers=(1, 2), blocks=1, **options)


def test_starts_at_zero_output():
    assert not small()(torch.randn(2, 3, 8, 8), torch.tensor([0, 999])).any()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 4)])
def test_keeps_the_map_size_and_uses_every_parameter(height, width):
    network = trained_like(small(out_channels=2))
    out = network(torch.randn(2, 3, height, width), torch.tensor([3, 700]))
    assert out.shape == (2, 2, height, width)
    out.square().sum().backward()
    # A convolution right before a norm over whole groups may lose its bias gradient; weights never do.
    assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.dim() > 1)


def test_output_depends_on_the_step_and_on_the_far_corner():
    network = trained_like(small())
    x = torch.randn(1, 3, 16, 16)
    out = network(x, torch.tensor([10]))
    assert not torch.allclose(out, network(x, torch.tensor([900])))
    changed = x.clone()
    changed[..., -1, -1] += 5.0
    assert not torch.equal(out[..., 0, 0], network(changed, torch.tensor([10]))[..., 0, 0])


def test_detail_passes_beside_the_lower_levels():
    """With the way down cut, only the connections across a level are left."""
    network = trained_like(small())
    for layer in network.down:
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.zeros_(layer.weight)
    x = torch.randn(1, 3, 8, 8)
    changed = x.clone()
    changed[0, 0, 4, 4] += 1.0
    tau = torch.tensor([10])
    assert (network(changed, tau) - network(x, tau))[0, 0, 4, 4].abs() > 1e-3


def test_samples_do_not_see_each_other():
    network = trained_like(small())
    x, tau = torch.randn(2, 3, 8, 8), torch.tensor([10, 500])
    together = network(x, tau)
    torch.testing.assert_close(together[1:], network(x[1:], tau[1:]), rtol=1e-4, atol=1e-5)


def test_an_empty_batch_gives_zero_gradients():
    network = trained_like(small())
    network(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


def test_a_map_that_cannot_be_halved_is_refused():
    with pytest.raises(UsageError, match="7 x 8"):
        small()(torch.zeros(1, 3, 7, 8), torch.zeros(1, dtype=torch.long))


def test_time_embedding_is_the_published_one():
    found = time_embedding(torch.tensor([0, 37]), 6)
    for row, tau in enumerate((0, 37)):
        frequencies = [10_000 ** (-i / 3) for i in range(3)]
        expected = [math.cos(tau * f) for f in frequencies] + [math.sin(tau * f) for f in frequencies]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-5)
