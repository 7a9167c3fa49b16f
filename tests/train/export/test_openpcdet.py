"""The module that goes into OpenPCDet, run on a naive spconv, with the exported weights and OpenPCDet's own batch."""

from __future__ import annotations

import importlib.util
import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from hilda_train.export import TARGETS, export_backbone
from hilda_train.export.write import MODULE

VOXEL_M = (0.2, 0.2, 0.4)
RANGE_M = (-3.2, -6.4, -6.4, 3.2, 6.4, 0.0)  # 32 x 64 x 16 voxels; the lower corner is a multiple of 16 of them


class SparseConvTensor:
    """Indices (N, 4): batch item, then one column for each axis of the grid."""

    def __init__(self, features, indices, spatial_shape, batch_size, known=None):
        self.features, self.indices, self.batch_size = features, indices, batch_size
        self.spatial_shape, self.known = tuple(spatial_shape), {} if known is None else known

    def replace_feature(self, features):
        return SparseConvTensor(features, self.indices, self.spatial_shape, self.batch_size, self.known)

    def moved(self, table, shape):
        indices = torch.tensor(list(table), dtype=torch.int32).reshape(-1, 4)
        features = torch.stack(list(table.values()))
        return SparseConvTensor(features, indices, shape, self.batch_size, self.known)

    def table(self):
        return dict(zip(map(tuple, self.indices.tolist()), self.features, strict=True))


class SparseModule(nn.Module):
    pass


def shifted(voxel, offset):
    return (voxel[0], *(v + d for v, d in zip(voxel[1:], offset, strict=True)))


def halved(voxel):
    """The voxel around it on a grid half as fine, and where it lies therein."""
    return (voxel[0], *(v // 2 for v in voxel[1:])), tuple(v % 2 for v in voxel[1:])


def naive_spconv(spconv_taps):
    """spconv.pytorch as far as the module uses it: voxel by voxel, and grids that end where spconv's do."""

    class Conv(SparseModule):
        def __init__(self, cin, cout, kernel_size, stride=1, bias=True, indice_key=None):
            super().__init__()
            assert not bias
            self.stride, self.key = stride, indice_key
            self.weight = nn.Parameter(torch.zeros(cout, *(kernel_size,) * 3, cin))

        def taps(self):
            taps = spconv_taps(self.weight.detach().numpy())
            return {offset: torch.tensor(np.ascontiguousarray(kernel)) for offset, kernel in taps}

    class SubMConv3d(Conv):
        def forward(self, x):
            table, taps = x.table(), self.taps().items()
            near = [[table[at] @ W for d, W in taps if (at := shifted(voxel, d)) in table] for voxel in table]
            return x.replace_feature(torch.stack([sum(rows) for rows in near]))

    class SparseConv3d(Conv):
        def forward(self, x):
            assert self.stride == 2
            x.known[self.key] = x
            shape, taps, out = [(size - 2) // 2 + 1 for size in x.spatial_shape], self.taps(), {}
            for voxel, row in x.table().items():
                parent, offset = halved(voxel)
                if all(p < size for p, size in zip(parent[1:], shape, strict=True)):
                    out[parent] = out.get(parent, 0) + row @ taps[offset]
            return x.moved(out, shape)

    class SparseInverseConv3d(Conv):
        def forward(self, x):
            fine, table, taps = x.known[self.key], x.table(), self.taps()
            children = [halved(voxel) for voxel in map(tuple, fine.indices.tolist())]
            none = torch.zeros(self.weight.shape[0], dtype=x.features.dtype)
            rows = [table[parent] @ taps[offset] if parent in table else none for parent, offset in children]
            return fine.replace_feature(torch.stack(rows))

    module = ModuleType("spconv.pytorch")
    for each in (SparseConvTensor, SparseModule, SubMConv3d, SparseConv3d, SparseInverseConv3d):
        setattr(module, each.__name__, each)
    return module


@pytest.fixture
def load(naive, monkeypatch):
    """Import the module that an export wrote, on the naive spconv."""

    def run(path):
        spconv = ModuleType("spconv")
        spconv.pytorch = naive_spconv(naive.spconv_taps)
        monkeypatch.setitem(sys.modules, "spconv", spconv)
        monkeypatch.setitem(sys.modules, "spconv.pytorch", spconv.pytorch)
        spec = importlib.util.spec_from_file_location("exported_openpcdet_minkunet", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return run


def batch(seed=0, count=70):
    """What OpenPCDet's MeanVFE hands on: voxels in the order z, y, x; features x, y, z, intensity, time."""
    generator = torch.Generator().manual_seed(seed)
    cells = [round((RANGE_M[3 + k] - RANGE_M[k]) / VOXEL_M[k]) for k in range(3)]
    around = [torch.randint(size - 9, size, (count,), generator=generator) for size in cells]  # up to the last voxel
    item = torch.randint(2, (count,), generator=generator)
    coords = torch.unique(torch.stack([item, *around[::-1]], dim=1), dim=0)
    within = torch.rand(len(coords), 3, generator=generator)
    xyz_m = (coords[:, [3, 2, 1]] + within) * torch.tensor(VOXEL_M) + torch.tensor(RANGE_M[:3])
    rest = torch.rand(len(coords), 2, generator=generator) * 40
    return cells, {
        "voxel_coords": coords,
        "voxel_features": torch.cat([xyz_m, rest], dim=1),
        "batch_size": 2,
    }


def inputs(features, mean, std):
    """The student's own input, from the formula: standardised intensity, x, y, z, distance."""
    rows = [[(i - mean) / std, x, y, z, math.sqrt(x * x + y * y + z * z)] for x, y, z, i, _ in features.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("depth", "stem"), [(18, 3), (50, 5)])
def test_the_module_with_the_exported_weights_says_what_the_student_says(minkunet, load, tmp_path, depth, stem):
    backbone, run = minkunet(depth, stem_kernel_size=stem)
    export_backbone(backbone, "openpcdet", tmp_path / "out")
    content = torch.load(tmp_path / "out" / "backbone.pth", weights_only=True)["model_state"]
    assert all(name.startswith("backbone_3d.") for name in content)

    config = TARGETS["openpcdet"].model_config(backbone)
    module = load(tmp_path / "out" / MODULE)
    cells, batch_dict = batch()
    network = module.MinkUNet(
        model_cfg=config,
        input_channels=5,
        grid_size=np.array(cells),
        voxel_size=VOXEL_M,
        point_cloud_range=np.array(RANGE_M),
    )
    assert config["NAME"] == "MinkUNet"
    network.load_state_dict({name.removeprefix("backbone_3d."): tensor for name, tensor in content.items()})
    network.double().eval()
    batch_dict["voxel_features"] = batch_dict["voxel_features"].double()
    with torch.no_grad():
        out = network(dict(batch_dict))

    coords = batch_dict["voxel_coords"]
    # Ours count voxels from the sensor; the range's corner is a multiple of 16 voxels away, so parents are the same.
    corner = torch.tensor([0, *(round(RANGE_M[k] / VOXEL_M[k]) for k in range(3))])
    xyz = (coords[:, [0, 3, 2, 1]] + corner).int()
    order = torch.tensor(sorted(range(len(xyz)), key=lambda k: xyz[k].tolist()))
    expected = run(xyz[order], inputs(batch_dict["voxel_features"], 18.742355, 22.04632)[order])
    for voxel, row in zip(map(tuple, xyz.tolist()), out["point_features"].numpy(), strict=True):
        np.testing.assert_allclose(row, expected["block8"][voxel], rtol=1e-6, atol=1e-7)
    assert out["point_features"].shape[1] == network.num_point_features

    centres = (coords[:, [3, 2, 1]] + 0.5) * torch.tensor(VOXEL_M) + torch.tensor(RANGE_M[:3])
    torch.testing.assert_close(out["point_coords"], torch.cat([coords[:, :1], centres], dim=1), check_dtype=False)
    encoded = out["encoded_spconv_tensor"]
    assert encoded.spatial_shape == (2, 8, 4)
    assert out["encoded_spconv_tensor_stride"] == 8


def test_the_config_has_the_intensity_of_the_one_sensor_and_of_none_of_several(minkunet):
    model_config = TARGETS["openpcdet"].model_config
    one = model_config(minkunet(14)[0])
    assert (one["INTENSITY_MEAN"], one["INTENSITY_STD"]) == (18.742355, 22.04632)
    sensors = {name: {"mean": 1.0, "std": 2.0} for name in ("a", "b")}
    for backbone in (minkunet(14, facts={"intensity": sensors})[0], minkunet(14, channels=("xyz",))[0]):
        assert not {"INTENSITY_MEAN", "INTENSITY_STD"} & model_config(backbone).keys()
