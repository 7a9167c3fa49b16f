"""Naive sparse U-Nets: a dictionary from voxel to vector, loops over kernel offsets, float64.

Nothing here knows the exporters. The order of kernel offsets and the names of parameters are those of

    MinkowskiEngine 0.5.4   src/kernel_region.hpp: coordinate_at
    torchsparse 1.4 to 2.1  torchsparse/nn/utils/kernel.py: get_kernel_offsets
    spconv 2.3.8            spconv/pytorch/conv.py; a kernel is (Cout, K, K, K, Cin), its axes those of the indices

and of the networks that the classes below name. A layer is written as out[v] = sum_d in[v + d] W[d].
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hilda_train.config.student import MinkUNetConfig, WaffleIronConfig
from hilda_train.export.backbone import Backbone
from hilda_train.students import build_student
from hilda_train.students.sparse import Geometry, SparseTensor

FACTS = {"intensity": {"nuscenes": {"mean": 18.742355, "std": 22.04632}}, "step": 7}


def minkowski_offsets(size):
    for k in range(size**3):
        index = (k % size, k // size % size, k // size**2)
        yield tuple(i if size % 2 == 0 else i - size // 2 for i in index)


def torchsparse_offsets(size):
    axis = range(-size // 2 + 1, size // 2 + 1)
    if size**3 % 2:
        yield from ((x, y, z) for z in axis for y in axis for x in axis)
    else:
        yield from ((x, y, z) for x in axis for y in axis for z in axis)


def listed_taps(offsets):
    """Kernels (K^3, Cin, Cout), or (Cin, Cout) for one voxel."""

    def taps(kernel):
        kernel = kernel[None] if kernel.ndim == 2 else kernel
        size = round(len(kernel) ** (1 / 3))
        return list(zip(offsets(size), kernel, strict=True))

    return taps


def spconv_taps(kernel):
    """Kernels (Cout, K, K, K, Cin); those of one voxel are a view of memory in the order (Cin, Cout)."""
    out, size, _, _, cin = kernel.shape
    if size == 1:
        return [((0, 0, 0), kernel.reshape(-1).reshape(cin, out))]
    low = size // 2 if size % 2 else 0
    return [
        (tuple(i - low for i in index), kernel[:, index[0], index[1], index[2]].T)
        for index in itertools.product(range(size), repeat=3)
    ]


def plus(voxel, offset, times):
    return (voxel[0], *(v + times * d for v, d in zip(voxel[1:], offset, strict=True)))


def submanifold(feats, taps, stride):
    out = {}
    for voxel in feats:
        found = [feats[near] @ W for d, W in taps if (near := plus(voxel, d, stride)) in feats]
        out[voxel] = np.sum(found, axis=0)
    return out


def downwards(feats, taps, stride):
    """To the voxels of twice the stride that have a child."""
    out = {}
    for voxel in feats:
        parent = (voxel[0], *(v // (2 * stride) * 2 * stride for v in voxel[1:]))
        for d, W in taps:
            if plus(parent, d, stride) == voxel:
                out[parent] = out.get(parent, 0) + feats[voxel] @ W
    return out


def upwards(feats, taps, stride, children):
    """From voxels of twice the stride back to their children."""
    out = {}
    for voxel in children:
        found = [feats[parent] @ W for d, W in taps if (parent := plus(voxel, d, -stride)) in feats]
        out[voxel] = np.sum(found, axis=0)
    return out


class Reader:
    """A state dict that remembers which of its tensors were asked for."""

    def __init__(self, state, prefix=""):
        self.state = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.prefix, self.read = prefix, set()

    def __call__(self, name):
        self.read.add(self.prefix + name)
        return self.state[self.prefix + name]

    def has(self, name):
        return self.prefix + name in self.state

    @property
    def unread(self):
        return {name for name in set(self.state) - self.read if not name.endswith("num_batches_tracked")}


def normalised(feats, reader, name, rectify=True):
    mean, variance = reader(f"{name}.running_mean"), reader(f"{name}.running_var")
    weight, bias = reader(f"{name}.weight"), reader(f"{name}.bias")
    out = {voxel: (row - mean) / np.sqrt(variance + 1e-5) * weight + bias for voxel, row in feats.items()}
    return {voxel: np.maximum(row, 0) for voxel, row in out.items()} if rectify else out


class NaiveMinkUNet:
    """The family's U-Net. `names` says what a library calls its parts; convolutions are named without their last word.

    Attributes of `names`: kernel, the last word of a convolution; stem, (conv, norm) pairs; down(i) and up(i), the
    pair that leads to a level; block(i, j), the j-th residual block of level i as its (conv, norm) pairs and its
    shortcut's.
    """

    def __init__(self, reader, names, taps):
        self.reader, self.names, self.taps = reader, names, taps

    def conv(self, name):
        return self.taps(self.reader(f"{name}.{self.names.kernel}"))

    def residual(self, feats, stride, level, j):
        pairs, shortcut = self.names.block(level, j)
        out = feats
        for number, (conv, norm) in enumerate(pairs, start=1):
            out = submanifold(out, self.conv(conv), stride)
            out = normalised(out, self.reader, norm, rectify=number < len(pairs))
        if self.reader.has(f"{shortcut[0]}.{self.names.kernel}"):
            feats = submanifold(feats, self.conv(shortcut[0]), stride)
            feats = normalised(feats, self.reader, shortcut[1], rectify=False)
        return {voxel: np.maximum(out[voxel] + feats[voxel], 0) for voxel in out}

    def blocks(self, feats, stride, level):
        j = 0
        while self.reader.has(f"{self.names.block(level, j)[0][0][0]}.{self.names.kernel}"):
            feats = self.residual(feats, stride, level, j)
            j += 1
        assert j > 0, f"no block of level {level} was found"
        return feats

    def __call__(self, feats):
        """Features of block5 .. block8 by name, each from voxel to vector."""
        for conv, norm in self.names.stem:
            feats = normalised(submanifold(feats, self.conv(conv), 1), self.reader, norm)
        skips, outputs = [feats], {}
        for i in range(1, 5):
            conv, norm = self.names.down(i)
            feats = normalised(downwards(feats, self.conv(conv), 2 ** (i - 1)), self.reader, norm)
            feats = self.blocks(feats, 2**i, i)
            skips.append(feats)
        for i in range(5, 9):
            conv, norm = self.names.up(i)
            skip, stride = skips[8 - i], 2 ** (8 - i)
            feats = normalised(upwards(feats, self.conv(conv), stride, skip), self.reader, norm)
            feats = {voxel: np.concatenate([row, skip[voxel]]) for voxel, row in feats.items()}
            feats = outputs[f"block{i}"] = self.blocks(feats, stride, i)
        return outputs


def randomised(student, seed):
    """Weights and running statistics that leave no layer trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif name.endswith(("running_mean", "bias")):
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
            elif tensor.ndim == 1:
                tensor.copy_(0.7 + 0.6 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(11)
    return student.eval()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products this small take longer to share out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def naive():
    """This file's functions and classes."""
    return SimpleNamespace(**globals())


@pytest.fixture(scope="session")
def minkunet():
    """minkunet(depth, seed, **config) -> backbone and a function that runs the student on voxels."""

    def make(depth=18, seed=0, facts=FACTS, **config):
        config = MinkUNetConfig(**{"depth": depth, "width": 0.125, **config})
        torch.manual_seed(seed)
        student = randomised(build_student(config.options()), seed)
        backbone = Backbone({name: t.clone() for name, t in student.state_dict().items()}, config, facts)
        student = student.double()

        def run(coords, feats):
            with torch.no_grad():
                x = SparseTensor(feats.double(), Geometry(coords, int(coords[-1, 0]) + 1))
                outputs = student.decode(x)
            return {
                level: dict(zip(map(tuple, value.coords.tolist()), value.feats.numpy(), strict=True))
                for level, value in outputs.items()
            }

        return backbone, run

    return make


@pytest.fixture(scope="session")
def waffleiron():
    """waffleiron(**config) -> backbone and student, which has random weights."""

    def make(seed=0, **config):
        config = WaffleIronConfig(
            **{"depth": 4, "width": 6, "levels": (2, 4), "neighbours": 3, "cell_m": 2.0, **config}
        )
        torch.manual_seed(seed)
        student = randomised(build_student(config.options()), seed)
        return Backbone(student.state_dict(), config, FACTS), student

    return make


@pytest.fixture(scope="session")
def voxels():
    """voxels(channels, lowest) -> coords (N, 4) of two batch items, features, and both as a dictionary."""

    def make(channels=5, lowest=0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        coords = torch.randint(lowest, lowest + 9, (60, 4), generator=generator, dtype=torch.int32)
        coords[:, 0] %= 2
        coords[:, 3] = coords[:, 3].clamp(max=lowest + 5)
        coords = torch.unique(coords, dim=0)
        feats = torch.randn(len(coords), channels, generator=generator)
        return coords, feats, dict(zip(map(tuple, coords.tolist()), feats.double().numpy(), strict=True))

    return make
