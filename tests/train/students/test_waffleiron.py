"""WaffleIron: published parameter counts, and spatial mixing against loops."""

import numpy as np
import pytest
import torch

from hilda_schema.errors import TrainError, UsageError
from hilda_train.students import PointBatch
from hilda_train.students.neighbours import nearest_neighbours
from hilda_train.students.waffleiron import DropPath, Projection, SpatialMix, WaffleIron

BOX = ((-4.0, -4.0, -2.0), (4.0, 4.0, 2.0))


def small(seed=0, **options):
    torch.manual_seed(seed)
    return WaffleIron(**{"depth": 4, "width": 8, "range_m": BOX, "cell_m": 1.0, "neighbours": 4, **options})


def sweep(seed, n=120, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    xyz_m = (torch.rand(n, 3, generator=generator, dtype=dtype) - 0.5) * torch.tensor([8.0, 8.0, 4.0])
    return PointBatch.single(xyz_m, torch.hstack([xyz_m, xyz_m.square()])[:, :5])


def test_parameter_count_is_scalrs():
    """48 layers of width 768 and their embedding, by the architecture: 57,655,296 + 1,780,244."""
    with torch.device("meta"):
        network = WaffleIron(depth=48, width=768, in_channels=5)
    embedding = sum(p.numel() for p in network.embed.parameters())
    everything = sum(p.numel() for p in network.parameters())
    assert (everything - embedding, embedding) == (57_655_296, 1_780_244)
    assert network.cells == (256, 256, 32)


def naive_spatial_mix(mix, tokens, cells, height, width):
    """One plane of one sweep, with loops: average per cell, two depthwise convolutions, read back."""
    normed = torch.nn.functional.layer_norm(tokens, tokens.shape[1:], mix.norm.weight, mix.norm.bias)
    plane = torch.zeros(tokens.shape[1], height, width, dtype=tokens.dtype)
    for row in range(height):
        for column in range(width):
            inside = [n for n, cell in enumerate(cells) if cell == (row, column)]
            if inside:
                plane[:, row, column] = normed[inside].mean(0)
    for conv in (mix.ffn[0], mix.ffn[2]):
        out = torch.zeros_like(plane)
        for row in range(height):
            for column in range(width):
                out[:, row, column] = conv.bias
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        if 0 <= row + dy < height and 0 <= column + dx < width:
                            out[:, row, column] += conv.weight[:, 0, dy + 1, dx + 1] * plane[:, row + dy, column + dx]
        plane = out.relu() if conv is mix.ffn[0] else out
    back = torch.stack([plane[:, row, column] for row, column in cells])
    return tokens + back * mix.scale.weight


def test_spatial_mix_equals_loops():
    torch.manual_seed(0)
    height, width = 5, 4
    mix = SpatialMix(3, drop_path=0.0, activation="relu").double()
    tokens = torch.randn(30, 3, dtype=torch.float64)
    rows, columns = torch.randint(0, height, (30,)), torch.randint(0, width, (30,))
    projection = Projection.of(rows * width + columns, 1, height, width)
    mixed = mix(tokens, projection, torch.zeros(30, dtype=torch.int64))
    expected = naive_spatial_mix(mix, tokens, list(zip(rows.tolist(), columns.tolist(), strict=True)), height, width)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)


def test_planes_cycle_from_above_side_and_front():
    network = small()
    xyz_m = torch.tensor([[-4.0, 3.5, -2.0], [3.999, -0.5, 1.2]])
    above, side, front = network.project(PointBatch.single(xyz_m, torch.zeros(2, 5)))
    x, y, z = (0, 7), (7, 3), (0, 3)
    assert above.cell.tolist() == [a * 8 + b for a, b in zip(x, y, strict=True)]
    assert side.cell.tolist() == [a * 4 + b for a, b in zip(x, z, strict=True)]
    assert front.cell.tolist() == [a * 4 + b for a, b in zip(y, z, strict=True)]
    assert (above.height, above.width, side.width) == (8, 8, 4)


def test_layers_use_the_planes_in_turn():
    """Tokens of layer n depend on the plane of layer n: points that share only that plane's cell see each other."""
    network = small(depth=3, levels=(1, 2, 3)).eval()
    seen = []
    network.spatial_mix[0].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    network.spatial_mix[1].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    network.spatial_mix[2].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    batch = sweep(0)
    network(batch)
    planes = network.project(batch)
    assert all(torch.equal(used.cell, plane.cell) for used, plane in zip(seen, planes, strict=True))


def test_points_up_to_the_very_end_of_the_range_have_a_cell():
    network = small(range_m=((-64.0, -64.0, -8.0), (64.0, 64.0, 8.0)), cell_m=0.5)
    edge = np.nextafter(np.float32(64), np.float32(0))
    xyz_m = torch.tensor([[float(edge), float(edge), 7.9999995], [-64.0, -64.0, -8.0]])
    above, side, _ = network.project(PointBatch.single(xyz_m, torch.zeros(2, 5)))
    assert above.cell.tolist() == [256 * 256 - 1, 0]
    assert side.cell.tolist() == [256 * 32 - 1, 0]


@pytest.mark.parametrize("point", [(4.0, 0.0, 0.0), (0.0, -4.1, 0.0), (0.0, 0.0, float("nan"))])
def test_points_outside_the_range_are_refused(point):
    axis = "xyz"[next(i for i, value in enumerate(point) if value != 0)]
    with pytest.raises(TrainError, match=f"a point has {axis} outside"):
        small()(PointBatch.single(torch.tensor([point]), torch.zeros(1, 5)))


def test_levels_are_what_the_layers_leave():
    network = small(levels=(4, 2)).eval()
    last, second = network(sweep(0))
    shallow = small(depth=2, levels=(2,)).eval()
    shallow.load_state_dict({k: v for k, v in network.state_dict().items() if k in shallow.state_dict()})
    torch.testing.assert_close(shallow(sweep(0))[0], second)
    assert last.shape == second.shape == (120, 8)
    assert small(depth=48).levels == (36, 48)
    assert small(depth=1).levels == (1, 1)


def test_neighbours_may_come_with_the_batch():
    network, batch = small().eval(), sweep(0)
    given = nearest_neighbours(batch.xyz_m, batch.batch_index, 4)
    with_given = PointBatch.single(batch.xyz_m, batch.feats, neighbours=given)
    assert all(torch.equal(a, b) for a, b in zip(network(batch), network(with_given), strict=True))


def test_embedding_takes_the_strongest_response_to_differences():
    network = small().double().eval()
    batch = sweep(0, n=20, dtype=torch.float64)
    neighbours = nearest_neighbours(batch.xyz_m, batch.batch_index, 4)
    embed = network.embed
    normed = embed.norm(batch.feats)
    for n in (0, 7, 19):
        responses = torch.stack([embed.conv2(normed[m] - normed[n][None])[0] for m in neighbours[n]])
        expected = embed.final(torch.cat([embed.conv1(normed[n]), responses.max(0).values]))
        torch.testing.assert_close(embed(batch.feats, neighbours)[n], expected, rtol=0, atol=1e-12)


def test_order_of_points_does_not_matter():
    network, batch = small().double().eval(), sweep(0, dtype=torch.float64)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    shuffled = network(PointBatch.single(batch.xyz_m[order], batch.feats[order]))
    for a, b in zip(network(batch), shuffled, strict=True):
        torch.testing.assert_close(a[order], b, rtol=0, atol=1e-10)


def test_sweeps_of_a_batch_do_not_mix():
    network = small().double().eval()
    parts = [sweep(seed, n, torch.float64) for seed, n in ((0, 60), (1, 0), (2, 1), (3, 3))]
    together = network(PointBatch.cat(parts))
    for level, features in enumerate(together):
        apart = torch.cat([network(part)[level] for part in parts])
        torch.testing.assert_close(features, apart, rtol=0, atol=1e-10)


@pytest.mark.parametrize("points", [[0], [1], [1, 1], [0, 50]])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_training_survives_sweeps_with_few_points(points, activation):
    network = small(drop_path=0.2, activation=activation)
    features = network(PointBatch.cat([sweep(seed, n) for seed, n in enumerate(points)]))
    sum(level.sum() for level in features).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_drop_path_drops_whole_items_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, item = DropPath(0.3), torch.arange(4000).repeat_interleave(2)
    out = drop(torch.ones(8000, 3), item, 4000)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert torch.equal(out[::2], out[1::2])
    assert torch.equal(out[:, :1].expand(-1, 3), out)
    assert float(out.mean()) == pytest.approx(1, abs=0.05)  # standard error 0.01
    assert torch.equal(drop.eval()(torch.ones(2, 3), item[:2], 1), torch.ones(2, 3))


def test_dropping_everything_but_the_residual():
    """A layer whose branches are all dropped is the identity."""
    network = small(drop_path=1 - 1e-9, levels=(1, 4)).train()
    first, last = network(sweep(0))
    assert torch.equal(first, last)


def test_bfloat16_autocast_stays_close():
    network, batch = small(width=32).eval(), sweep(0)
    with torch.no_grad():
        exact = network(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(batch)
    for a, b in zip(exact, rough, strict=True):
        assert float((a - b.float()).norm() / a.norm()) < 0.02


def test_wrong_requests():
    with pytest.raises(UsageError, match="no level 5"):
        small(levels=(5,))
    with pytest.raises(UsageError, match=r"cells of 3 m do not divide the x range -4..4 m"):
        small(cell_m=3.0)
