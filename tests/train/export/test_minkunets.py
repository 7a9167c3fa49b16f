"""Exported MinkUNets, run by a naive network that follows the target's names and kernel order, say what ours says."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hilda_schema.errors import UsageError
from hilda_train.export import TARGETS
from hilda_train.export.backbone import with_second_stem


def minkowski_names():
    """MinkowskiEngine's Res16UNet, as in SLidR's model/res16unet.py and Pointcept's mink_unet.py."""

    def block(level, j):
        at = f"block{level}.{j}"
        count = 3 if bottleneck else 2
        return [(f"{at}.conv{k}", f"{at}.norm{k}.bn") for k in range(1, count + 1)], (
            f"{at}.downsample.0",
            f"{at}.downsample.1.bn",
        )

    bottleneck = False
    names = SimpleNamespace(
        kernel="kernel",
        stem=[("conv0p1s1", "bn0.bn")],
        down=lambda i: (("conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2")[i - 1], f"bn{i}.bn"),
        up=lambda i: (("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2")[i - 5], f"bntr{i - 1}.bn"),
        block=block,
    )

    def deep():
        nonlocal bottleneck
        bottleneck = True
        return names

    names.deep = deep
    return names


def openpcseg_names():
    """OpenPCSeg's pcseg/model/segmentor/voxel/minkunet/minkunet.py, which follows SPVNAS."""

    def block(level, j):
        at = f"stage{level}.{j + 1}" if level <= 4 else f"up{level - 4}.1.{j}"
        return [(f"{at}.net.0", f"{at}.net.1"), (f"{at}.net.3", f"{at}.net.4")], (
            f"{at}.downsample.0",
            f"{at}.downsample.1",
        )

    return SimpleNamespace(
        kernel="kernel",
        stem=[("stem.0", "stem.1"), ("stem.3", "stem.4")],
        down=lambda i: (f"stage{i}.0.net.0", f"stage{i}.0.net.1"),
        up=lambda i: (f"up{i - 4}.0.net.0", f"up{i - 4}.0.net.1"),
        block=block,
    )


def mmdet3d_names(net, kernel, convs, norms):
    """mmdetection3d's mmdet3d/models/backbones/minkunet_backbone.py; the back ends name what is inside a module."""

    def block(level, j):
        at = f"encoder.{level - 1}.{j + 1}" if level <= 4 else f"decoder.{level - 5}.1.{j}"
        inside = [(f"{at}.{conv}", f"{at}.{norm}") for conv, norm in zip(convs, norms, strict=True)]
        return inside, (f"{at}.downsample.0", f"{at}.downsample.1")

    return SimpleNamespace(
        kernel=kernel,
        stem=[(f"conv_input.{k}.{net}0", f"conv_input.{k}.{net}1") for k in (0, 1)],
        down=lambda i: (f"encoder.{i - 1}.0.{net}0", f"encoder.{i - 1}.0.{net}1"),
        up=lambda i: (f"decoder.{i - 5}.0.{net}0", f"decoder.{i - 5}.0.{net}1"),
        block=block,
    )


def network(naive, target, state):
    """The naive network of a target, and the reader of its state."""
    minkowski = naive.listed_taps(naive.minkowski_offsets)
    torchsparse = naive.listed_taps(naive.torchsparse_offsets)
    prefix, names, taps = {
        "safetensors": ("", minkowski_names(), minkowski),
        "minkowski": ("", minkowski_names(), minkowski),
        "pointcept": ("module.backbone.", minkowski_names(), minkowski),
        "torchsparse": ("", openpcseg_names(), torchsparse),
        "mmdet3d": (
            "backbone.",
            mmdet3d_names("net.", "kernel", ("net.0", "net.3"), ("net.1", "net.4")),
            torchsparse,
        ),
        "mmdet3d-spconv": (
            "backbone.",
            mmdet3d_names("", "weight", ("conv1", "conv2"), ("bn1", "bn2")),
            naive.spconv_taps,
        ),
    }[target]
    reader = naive.Reader(state, prefix)
    if "block1.0.conv3.kernel" in state:
        names = names.deep()
    return naive.NaiveMinkUNet(reader, names, taps), reader


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for level, rows in expected.items():
        assert found[level].keys() == rows.keys()
        for voxel, row in rows.items():
            np.testing.assert_allclose(found[level][voxel], row, rtol=1e-4, atol=1e-5)
        assert max(float(np.abs(row).max()) for row in rows.values()) > 0.1


CASES = [
    ("safetensors", 18, {"stem_kernel_size": 5}),
    ("minkowski", 18, {}),
    ("minkowski", 50, {}),
    ("torchsparse", 18, {}),
    ("torchsparse", 34, {"channels": ("intensity",)}),
    ("mmdet3d", 18, {}),
    ("mmdet3d-spconv", 18, {}),
    ("mmdet3d-spconv", 14, {"channels": ("xyz", "intensity")}),
]


@pytest.mark.parametrize(("target", "depth", "config"), CASES)
def test_the_targets_network_says_what_the_student_says(naive, minkunet, voxels, target, depth, config):
    """Every tensor of the file is used, and features agree at every voxel of every decoder level."""
    backbone, run = minkunet(depth, **config)
    # torchsparse 2.1 and mmdetection3d count voxels from zero; the others take negative coordinates too.
    coords, feats, table = voxels(backbone.state["conv0p1s1.kernel"].shape[-2], 0 if "mmdet3d" in target else -5)
    net, reader = network(naive, target, TARGETS[target].convert(backbone))
    # The second stem layer of some targets undoes itself only as far as float32 holds its statistics.
    check_same(net(table), run(coords, feats))
    assert not reader.unread


def test_pointcepts_network_says_what_the_student_says(naive, minkunet, voxels):
    """Its width cannot be changed; the stem has 5^3 voxels."""
    backbone, run = minkunet(14, width=1.0)
    coords, feats, table = voxels(5, -5)
    table, coords, feats = dict(list(table.items())[:30]), coords[:30], feats[:30]
    net, reader = network(naive, "pointcept", TARGETS["pointcept"].convert(backbone))
    check_same(net(table), run(coords, feats))
    assert not reader.unread
    assert reader("conv0p1s1.kernel").shape == (125, 5, 32)


def pointcept_shapes(depth, channels):
    """What pointcept/models/sparse_unet/mink_unet.py builds: (name, shape) of every kernel but that of `final`."""
    planes, expansion = (32, 64, 128, 256, 256, 128, 96, 96), 4 if depth == 50 else 1
    layers = {14: (1,) * 8, 18: (2,) * 8}.get(depth, (2, 3, 4, 6, 2, 2, 2, 2))
    shapes, width = {"conv0p1s1": (125, channels, 32)}, 32
    kept = [32]
    for level in range(1, 9):
        if level <= 4:
            shapes[f"conv{level}p{2 ** (level - 1)}s2"] = (8, width, width)
        else:
            shapes[f"convtr{level - 1}p{2 ** (9 - level)}s2"] = (8, width, planes[level - 1])
            width = planes[level - 1] + kept[8 - level]
        for j in range(layers[level - 1]):
            at, plane, out = f"block{level}.{j}", planes[level - 1], planes[level - 1] * expansion
            if expansion == 4:
                shapes |= {
                    f"{at}.conv1": (width, plane),
                    f"{at}.conv2": (27, plane, plane),
                    f"{at}.conv3": (plane, out),
                }
            else:
                shapes |= {f"{at}.conv1": (27, width, plane), f"{at}.conv2": (27, plane, plane)}
            if width != out:
                shapes[f"{at}.downsample.0"] = (width, out)
            width = out
        kept.append(width)
    return shapes


@pytest.mark.parametrize("depth", [14, 18, 34, 50])
def test_pointcepts_networks_have_kernels_of_these_shapes(minkunet, depth):
    backbone, _ = minkunet(depth, width=1.0)
    state = TARGETS["pointcept"].convert(backbone)
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if name.endswith(".kernel")}
    expected = {f"module.backbone.{name}.kernel": shape for name, shape in pointcept_shapes(depth, 5).items()}
    assert found == expected
    assert TARGETS["pointcept"].model_config(backbone) == {"type": f"MinkUNet{depth}", "in_channels": 5}


@pytest.mark.parametrize("target", ["mmdet3d", "mmdet3d-spconv", "torchsparse"])
@pytest.mark.parametrize("depth", [14, 34])
def test_the_written_config_builds_a_network_of_these_shapes(minkunet, target, depth):
    """Channels and blocks of every stage, read back from the config alone."""
    backbone, _ = minkunet(depth, width=0.25)
    config, state = TARGETS[target].model_config(backbone), TARGETS[target].convert(backbone)
    if target == "torchsparse":
        base, *channels = config["PLANES"]
        blocks, entry = config["NUM_LAYER"], config["IN_FEATURE_DIM"]
        at = [f"stage{i}" for i in range(1, 5)] + [f"up{i}.1" for i in range(1, 5)]
        first, last = ("net.0.kernel", "net.3.kernel")
        assert (config["NAME"], config["BLOCK"]) == ("MinkUNet", "ResBlock")
        stem = state["stem.0.kernel"]
    else:
        base, entry = config["base_channels"], config["in_channels"]
        channels = config["encoder_channels"] + config["decoder_channels"]
        blocks = config["encoder_blocks"] + config["decoder_blocks"]
        at = [f"backbone.encoder.{i}" for i in range(4)] + [f"backbone.decoder.{i}.1" for i in range(4)]
        spconv = target == "mmdet3d-spconv"
        first, last = ("conv1.weight", "conv2.weight") if spconv else ("net.0.kernel", "net.3.kernel")
        assert config["sparseconv_backend"] == ("spconv" if spconv else "torchsparse")
        assert (config["num_stages"], config["block_type"]) == (4, "basic")
        stem = state["backbone.conv_input.0.0.weight" if spconv else "backbone.conv_input.0.net.0.kernel"]
    axes = (0, 4) if target == "mmdet3d-spconv" else (2, 1)
    assert (stem.shape[axes[0]], stem.shape[axes[1]]) == (base, entry)
    for level, (stage, width, count) in enumerate(zip(at, channels, blocks, strict=True)):
        numbers = [j + 1 if level < 4 else j for j in range(count)]
        for j in numbers:
            assert state[f"{stage}.{j}.{first}"].shape[axes[0]] == width
            assert state[f"{stage}.{j}.{last}"].shape[axes[1]] == width
        assert f"{stage}.{numbers[-1] + 1}.{first}" not in state


def test_the_second_stem_layer_expects_what_the_first_puts_out():
    """Its statistics are the mean and variance of a rectified Gaussian, measured here by drawing one."""
    weight, bias = torch.tensor([1.0, 0.5, -2.0, 0.0]), torch.tensor([0.0, 0.7, -1.5, 0.4])
    names = ("weight", "bias", "running_mean", "running_var")
    state = dict(zip((f"bn0.bn.{name}" for name in names), (weight, bias, bias, weight), strict=True))
    state["bn0.bn.num_batches_tracked"] = torch.tensor(3)
    extra = with_second_stem(state)
    drawn = torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0)) * weight + bias
    drawn = drawn.clamp(min=0)
    torch.testing.assert_close(extra["bn_extra.bn.running_mean"], drawn.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(extra["bn_extra.bn.running_var"], drawn.var(0), atol=0.02, rtol=0)
    norm = torch.nn.BatchNorm1d(4)
    norm.load_state_dict({name: extra[f"bn_extra.bn.{name}"] for name in (*names, "num_batches_tracked")})
    torch.testing.assert_close(norm.eval()(drawn), drawn, atol=2e-6, rtol=1e-5)
    changed = (norm.train()(drawn) - drawn).abs().max(0).values
    assert (changed < 0.1).all()  # of values up to 5


@pytest.mark.parametrize(
    ("target", "config", "words"),
    [
        ("torchsparse", {"depth": 50}, "has no MinkUNet50"),
        ("mmdet3d", {"depth": 50}, "has no MinkUNet50"),
        ("mmdet3d-spconv", {"depth": 50}, "has no MinkUNet50"),
        ("torchsparse", {"stem_kernel_size": 5}, "first kernel spans 3 voxels, this student's 5"),
        ("mmdet3d", {"stem_kernel_size": 5}, "first kernel spans 3 voxels, this student's 5"),
        ("mmdet3d-spconv", {"stem_kernel_size": 5}, "first kernel spans 3 voxels, this student's 5"),
        ("pointcept", {"width": 0.5}, "fixed width"),
        ("scalr", {}, "takes a WaffleIron"),
    ],
)
def test_what_a_target_cannot_express_is_refused(minkunet, target, config, words):
    backbone, _ = minkunet(**config)
    with pytest.raises(UsageError, match=words) as error:
        TARGETS[target].convert(backbone)
    assert "--to" in error.value.remedy


@pytest.mark.parametrize("target", [name for name in TARGETS if name not in {"scalr", "safetensors"}])
def test_a_waffleiron_is_no_minkunet(waffleiron, target):
    backbone, _ = waffleiron()
    with pytest.raises(UsageError, match="takes a MinkUNet, this run trained a waffleiron"):
        TARGETS[target].convert(backbone)
