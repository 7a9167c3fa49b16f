"""The WaffleIron export, run point by point from the authors' names, against our student."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from hilda_train.export import TARGETS
from hilda_train.students import PointBatch

RANGE_M = ((-8.0, -8.0, -4.0), (8.0, 8.0, 4.0))
PLANES = ((0, 1), (0, 2), (1, 2))  # dim_proj 2, 1, 0: what is left when that axis is dropped


def rectified(rows):
    return np.maximum(rows, 0)


def gelu(rows):
    return 0.5 * rows * (1 + np.vectorize(math.erf)(rows / math.sqrt(2)))


def conv1d(reader, name, rows, bias=True):
    weight = reader(f"{name}.weight")
    assert weight.shape[2:] in {(1,), (1, 1)}, name
    return rows @ weight.reshape(weight.shape[:2]).T + (reader(f"{name}.bias") if bias else 0)


def batch_norm(reader, name, rows):
    mean, variance = reader(f"{name}.running_mean"), reader(f"{name}.running_var")
    return (rows - mean) / np.sqrt(variance + 1e-5) * reader(f"{name}.weight") + reader(f"{name}.bias")


def layer_norm(reader, name, rows):
    centred = rows - rows.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return scaled * reader(f"{name}.weight") + reader(f"{name}.bias")


def embedding(reader, feats, neighbours):
    feats = batch_norm(reader, "embed.norm", feats)
    rows = []
    for k, others in enumerate(neighbours):
        near = batch_norm(reader, "embed.conv2.0", feats[others] - feats[k])
        near = batch_norm(reader, "embed.conv2.2", conv1d(reader, "embed.conv2.1", near, bias=False))
        rows.append(conv1d(reader, "embed.conv2.4", rectified(near), bias=False).max(axis=0))
    return conv1d(reader, "embed.final", np.hstack([conv1d(reader, "embed.conv1", feats), np.array(rows)]))


def depthwise(reader, name, plane):
    """3x3, each channel by itself, zeros around the (H, W, C) plane; rows are the plane's first axis."""
    weight, height, width = reader(f"{name}.weight"), *plane.shape[:2]
    assert weight.shape[1:] == (1, 3, 3)
    out = np.tile(reader(f"{name}.bias"), (height, width, 1)).astype(np.float64)
    for i in range(height):
        for j in range(width):
            for a in (-1, 0, 1):
                for b in (-1, 0, 1):
                    if 0 <= i + a < height and 0 <= j + b < width:
                        out[i, j] += weight[:, 0, a + 1, b + 1] * plane[i + a, j + b]
    return out


def spatial_mix(reader, at, rows, cell, shape, activation):
    sums, counts = np.zeros((*shape, rows.shape[1])), np.zeros((*shape, 1))
    normed = layer_norm(reader, f"{at}.norm", rows)
    for k, (i, j) in enumerate(cell):
        sums[i, j] += normed[k]
        counts[i, j] += 1
    plane = activation(depthwise(reader, f"{at}.ffn.0", sums / np.maximum(counts, 1)))
    plane = depthwise(reader, f"{at}.ffn.2", plane)
    scale = reader(f"{at}.scale.weight")
    assert scale.shape == (rows.shape[1], 1, 1)
    return rows + np.array([plane[i, j] * scale[:, 0, 0] for i, j in cell])


def channel_mix(reader, at, rows, activation):
    inner = activation(conv1d(reader, f"{at}.mlp.0", layer_norm(reader, f"{at}.norm", rows)))
    return rows + conv1d(reader, f"{at}.mlp.2", inner) * reader(f"{at}.scale.weight")[:, 0, 0]


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_authors_network_says_what_the_student_says(naive, waffleiron, activation):
    backbone, student = waffleiron(range_m=RANGE_M, activation=activation)
    reader = naive.Reader(TARGETS["scalr"].convert(backbone))
    generator = torch.Generator().manual_seed(0)
    xyz_m = (torch.rand(40, 3, generator=generator) * 2 - 1) * torch.tensor([7.9, 7.9, 3.9])
    feats = torch.randn(40, 5, generator=generator)
    with torch.no_grad():
        outputs = student.double()(PointBatch.single(xyz_m, feats.double()))

    points = xyz_m.double().numpy()
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    neighbours = distance.argsort(axis=1)[:, 1:4]
    rows = embedding(reader, feats.double().numpy(), neighbours)
    config = TARGETS["scalr"].model_config(backbone)
    shape = config["grid_shape"]
    assert config["gelu"] == (activation == "gelu")
    assert shape == [[8, 8], [8, 4], [8, 4]]
    for depth in range(4):
        axes = list(PLANES[depth % 3])
        cell = ((points[:, axes] - np.array(RANGE_M[0])[axes]) / 2.0).astype(int).tolist()
        act = gelu if activation == "gelu" else rectified
        rows = spatial_mix(reader, f"waffleiron.spatial_mix.{depth}", rows, cell, tuple(shape[depth % 3]), act)
        rows = channel_mix(reader, f"waffleiron.channel_mix.{depth}", rows, act)
        if depth + 1 in backbone.student.levels:
            np.testing.assert_allclose(
                outputs[backbone.student.levels.index(depth + 1)].numpy(), rows, rtol=1e-6, atol=1e-6
            )
    assert np.abs(rows).max() > 0.1
    assert reader.unread == {"classif.weight", "classif.bias"}


def test_the_file_fits_a_network_of_the_written_config(waffleiron):
    """ScaLR loads strictly: the names and shapes of WaffleIron's Segmenter, spelt out."""
    backbone, _ = waffleiron(channels=("intensity", "xyz", "range"))
    config = TARGETS["scalr"].model_config(backbone)
    width, inside, classes = config["nb_channels"], config["size_input"], config["nb_class"]

    def conv(cin, cout, axes, bias=True):
        return {"weight": (cout, cin, *(1,) * axes)} | ({"bias": (cout,)} if bias else {})

    def norm(channels):
        statistics = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
        return statistics | {"num_batches_tracked": ()}

    parts = {
        "embed.norm": norm(inside),
        "embed.conv1": conv(inside, width, 1),
        "embed.conv2.0": norm(inside),
        "embed.conv2.1": conv(inside, width, 2, bias=False),
        "embed.conv2.2": norm(width),
        "embed.conv2.4": conv(width, width, 2, bias=False),
        "embed.final": conv(2 * width, width, 1),
        "classif": conv(width, classes, 1),
    }
    for depth in range(config["depth"]):
        for kind in ("channel_mix", "spatial_mix"):
            at = f"waffleiron.{kind}.{depth}"
            parts |= {f"{at}.norm": {"weight": (width,), "bias": (width,)}, f"{at}.scale": {"weight": (width, 1, 1)}}
        parts |= {f"waffleiron.channel_mix.{depth}.mlp.{k}": conv(width, width, 1) for k in (0, 2)}
        spatial = {"weight": (width, 1, 3, 3), "bias": (width,)}
        parts |= {f"waffleiron.spatial_mix.{depth}.ffn.{k}": spatial for k in (0, 2)}
    expected = {f"{part}.{name}": shape for part, tensors in parts.items() for name, shape in tensors.items()}
    state = TARGETS["scalr"].convert(backbone)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected
    assert config["input_features"] == ["intensity", "xyz", "radius"]
    assert (config["fov"], config["num_neighbors"], config["layernorm"]) == ([[-64, -64, -8], [64, 64, 8]], 3, True)


def test_the_published_shape_gives_the_published_config(waffleiron):
    """configs/pretrain/WI_768_pretrain.yaml of ScaLR, where a config of ours has words for it."""
    backbone, _ = waffleiron(cell_m=0.5, neighbours=16)
    config = TARGETS["scalr"].model_config(backbone)
    published = {
        "size_input": 5,
        "input_features": ["intensity", "xyz", "radius"],
        "nb_class": 1024,
        "dim_proj": [2, 1, 0],
        "grid_shape": [[256, 256], [256, 32], [256, 32]],
        "fov": [[-64, -64, -8], [64, 64, 8]],
        "num_neighbors": 16,
        "voxel_size": 0.1,
        "layernorm": True,
    }
    assert {name: config[name] for name in published} == published


def test_the_classification_layer_is_there_to_be_replaced(waffleiron):
    state = TARGETS["scalr"].convert(waffleiron()[0])
    layer = nn.Conv1d(6, 1024, 1)
    layer.load_state_dict({"weight": state["classif.weight"], "bias": state["classif.bias"]})
    assert not layer.weight.any()
