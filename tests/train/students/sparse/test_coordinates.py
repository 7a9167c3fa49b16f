"""Packing of coordinates into keys, and the documented order of kernel offsets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilda_schema.errors import TrainError
from hilda_train.students.sparse.coordinates import (
    BATCH_MAX,
    COORDINATE_MAX,
    COORDINATE_MIN,
    GUARD,
    coarsen,
    kernel_offsets,
    key_offsets,
    pack,
    unpack,
)

COORDINATE = st.integers(COORDINATE_MIN, COORDINATE_MAX)
VOXEL = st.tuples(st.integers(0, BATCH_MAX), COORDINATE, COORDINATE, COORDINATE)


@given(st.lists(VOXEL, min_size=1, max_size=40))
def test_keys_round_trip_and_sort_as_tuples(voxels):
    keys = pack(torch.tensor(voxels))
    assert unpack(keys).tolist() == [list(voxel) for voxel in voxels]
    assert bool((keys >= 0).all())
    assert [voxels[i] for i in keys.argsort(stable=True)] == sorted(voxels)


@given(VOXEL, st.tuples(*[st.integers(-GUARD, GUARD)] * 3))
def test_a_neighbours_key_is_a_constant_away(voxel, offset):
    """Also at the ends of the range, where a carry into the next field would name a voxel far away."""
    moved = pack(torch.tensor([voxel])) + key_offsets(torch.tensor([offset]))
    batch, *xyz = voxel
    assert unpack(moved).tolist() == [[batch, *(a + b for a, b in zip(xyz, offset, strict=True))]]


@given(VOXEL, st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_coarse_keys_round_every_coordinate_down(voxel, stride):
    batch, *xyz = voxel
    coarse = unpack(coarsen(pack(torch.tensor([voxel])), stride))
    assert coarse.tolist() == [[batch, *(a // stride * stride for a in xyz)]]


@pytest.mark.parametrize(
    ("voxel", "words"),
    [
        ((0, COORDINATE_MAX + 1, 0, 0), ["x = 31744", "-31744..31743"]),
        ((0, 0, COORDINATE_MIN - 1, 0), ["y = -31745", "-31744..31743"]),
        ((0, 0, 0, 2**31 - 1), ["z = 2147483647"]),
        ((-1, 0, 0, 0), ["batch item = -1", "0..32767"]),
        ((BATCH_MAX + 1, 0, 0, 0), ["batch item = 32768"]),
    ],
)
def test_out_of_range_names_field_value_and_range(voxel, words):
    with pytest.raises(TrainError) as error:
        pack(torch.tensor([(0, 0, 0, 0), voxel], dtype=torch.int32))
    assert all(word in str(error.value) for word in words)
    assert error.value.remedy


def test_no_voxels_have_no_keys():
    assert pack(torch.zeros((0, 4), dtype=torch.int32)).shape == (0,)
    assert unpack(torch.zeros(0, dtype=torch.int64)).shape == (0, 4)


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_kernel_offsets_run_x_fastest(kernel_size):
    """The weight layout of MinkowskiEngine, spelt out with loops: it is what exported weights rely on."""
    first = -(kernel_size // 2) if kernel_size % 2 else 0
    axis = range(first, first + kernel_size)
    assert kernel_offsets(kernel_size).tolist() == [[x, y, z] for z in axis for y in axis for x in axis]


def test_kernel_offsets_of_the_usual_kernels():
    assert kernel_offsets(2).tolist()[:3] == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert kernel_offsets(3).tolist()[:4] == [[-1, -1, -1], [0, -1, -1], [1, -1, -1], [-1, 0, -1]]
    assert kernel_offsets(3).tolist()[13] == [0, 0, 0]
