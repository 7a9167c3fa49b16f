"""MinkowskiEngine, where it is installed: the same weights give the same outputs and gradients as our engine."""

import pytest
import torch

from hilda_schema.errors import TrainError, UsageError
from hilda_train.data.voxelise import VoxelGrid, voxelise
from hilda_train.students import PointBatch, build_student
from hilda_train.students.engines import NATIVE, engine
from hilda_train.students.minkunet import MinkUNet
from hilda_train.students.sparse import Geometry, SparseTensor

TOLERANCE = 1e-4  # relative, float32, outputs of a whole network
EXACT = 1e-7  # relative, float64, outputs and gradients of a whole network

# MinkowskiEngine makes instances of its autograd functions, which torch discourages.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def minkowski():
    try:
        return engine("minkowski")
    except UsageError:
        return None


needs_minkowski = pytest.mark.skipif(minkowski() is None, reason="MinkowskiEngine is not installed")


def cloud(seed, voxels=400, batch=2, edge=12):
    generator = torch.Generator().manual_seed(seed)
    item = torch.randint(batch, (voxels, 1), generator=generator)
    coords = torch.randint(-edge, edge, (voxels, 3), generator=generator)
    return torch.unique(torch.hstack([item, coords]), dim=0).int()


def relative(a, b):
    return float(((a - b).norm() / b.norm().clamp(min=1e-12)).detach())


def run(use, layer, x):
    """Output rows in our order, and the gradients of features and parameters."""
    feats = x.feats.detach().clone().requires_grad_()
    entered = SparseTensor(feats, x.geometry, x.stride)
    out = use.leave(layer(use.enter(entered)), entered)
    weights = torch.sin(torch.arange(out.feats.numel(), dtype=out.feats.dtype)).view_as(out.feats)
    gradients = torch.autograd.grad((out.feats * weights).sum(), [feats, *layer.parameters()])
    return [out.feats, *gradients]


@needs_minkowski
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda use: use.submanifold(5, 7, 1, bias=True),
        lambda use: use.submanifold(5, 7, 3),
        lambda use: use.submanifold(5, 7, 5),
        lambda use: use.strided(5, 7),
        lambda use: torch.nn.Sequential(use.strided(5, 7), use.transposed(7, 6)),
        lambda use: use.batch_norm(5),
    ],
    ids=["1^3", "3^3", "5^3", "down", "down and up", "norm"],
)
def test_every_layer_agrees(make, stride):
    geometry = Geometry(cloud(1), 2)
    x = SparseTensor(torch.randn(len(geometry.keys(stride)), 5, dtype=torch.float64), geometry, stride)
    torch.manual_seed(0)
    ours, theirs = make(NATIVE).double(), make(minkowski()).double()
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(run(NATIVE, ours, x), run(minkowski(), theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@needs_minkowski
@pytest.mark.parametrize(("depth", "stem_kernel_size"), [(14, 3), (14, 5), (50, 3)])
def test_whole_networks_agree(depth, stem_kernel_size):
    options = {"depth": depth, "width": 0.125, "stem_kernel_size": stem_kernel_size}
    coords = cloud(2, voxels=1500, edge=30)
    compare(options, SparseTensor(torch.randn(len(coords), 4), Geometry(coords, 2)))


@needs_minkowski
@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 34])
@pytest.mark.parametrize("dataset", ["nuscenes", "pandaset", "kitti_raw"])
def test_full_networks_agree_on_real_sweeps(sample_data, dataset, depth):
    from hilda_cache.drives import open_drive

    drive = open_drive(dataset, sample_data / "data" / {"nuscenes": "nuscenes_keyframe"}.get(dataset, dataset))
    xyz_m = torch.tensor(drive.read(drive.frames(drive.scenes()[0])[0]).points.xyz_m)
    torch.manual_seed(0)
    voxels = voxelise(xyz_m, torch.randn(len(xyz_m), 4), VoxelGrid()).voxels
    compare({"depth": depth}, SparseTensor(voxels.feats, Geometry(voxels.coords, 1)))


def compare(options, x):
    """Outputs of every level in float32; outputs, gradients and running statistics in float64.

    In float32 the gradients of a deep network say little: a rounding error of 1e-6 opens or closes some rectifiers, and
    two right answers differ by per cents. Weights are copied by state dict, in both directions.
    """
    torch.manual_seed(0)
    ours = MinkUNet(in_channels=4, **options)
    theirs = MinkUNet(in_channels=4, **options, backend="minkowski")
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        for a, b in zip(levels_of(ours, x), levels_of(theirs, x), strict=True):
            assert relative(a, b) < TOLERANCE
    exact = SparseTensor(x.feats.double(), x.geometry, x.stride)
    outputs = [levels_of(network.double(), exact) for network in (ours, theirs)]
    for levels in outputs:
        generator = torch.Generator().manual_seed(1)
        sum((y * torch.randn(y.shape, generator=generator)).sum() for y in levels).backward()
    for a, b in zip(*outputs, strict=True):
        assert relative(a, b) < EXACT
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert relative(a.grad, b.grad) < EXACT, name
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


def levels_of(network, x):
    """Features of block5 .. block8, in our order of rows."""
    use = network.engine
    return [use.leave(level, x).feats for level in network.decode(use.enter(x)).values()]


@needs_minkowski
def test_a_student_reads_the_same_at_points():
    xyz_m = torch.randn(500, 3, generator=torch.Generator().manual_seed(3)) * 4
    feats = torch.hstack([xyz_m, xyz_m.norm(dim=1, keepdim=True)])
    batch = PointBatch.single(xyz_m, feats, voxelise(xyz_m, feats, VoxelGrid(size=(0.5, 0.5, 0.5))).voxels)
    config = {"name": "minkunet", "depth": 14, "width": 0.25, "in_channels": 4, "levels": ["block6", "block8"]}
    ours, theirs = build_student(config), build_student(config | {"backend": "minkowski"})
    theirs.load_state_dict(ours.state_dict())
    for a, b in zip(ours.eval()(batch), theirs.eval()(batch), strict=True):
        assert relative(a, b) < TOLERANCE


@needs_minkowski
def test_a_batch_without_voxels_is_refused():
    network = MinkUNet(14, 4, width=0.125, backend="minkowski")
    empty = SparseTensor(torch.zeros(0, 4), Geometry(torch.zeros(0, 4, dtype=torch.int32), 1))
    with pytest.raises(TrainError, match="no batch without a voxel"):
        network.engine.enter(empty)


def test_without_it_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "MinkowskiEngine", None)
    monkeypatch.delitem(__import__("sys").modules, "hilda_train.students.minkowski", raising=False)
    with pytest.raises(UsageError, match=r"cannot be used.*\n?.*build_minkowski"):
        MinkUNet(14, 4, width=0.125, backend="minkowski")


def test_another_engine_is_refused_by_name():
    with pytest.raises(UsageError, match="no sparse engine 'spconv'"):
        engine("spconv")
