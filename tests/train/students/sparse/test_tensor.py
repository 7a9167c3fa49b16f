"""The geometry that layers share, and what it refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hilda_schema.errors import TrainError
from hilda_train.students.sparse import Geometry, SparseTensor

COORDINATE = st.integers(-40, 40)
CLOUD = st.sets(st.tuples(st.integers(0, 2), COORDINATE, COORDINATE, COORDINATE), max_size=50)


@given(CLOUD, st.sampled_from([1, 2, 4, 8, 16]))
def test_levels_are_the_rounded_down_voxels(cloud, stride):
    geometry = Geometry(torch.tensor(sorted(cloud), dtype=torch.int32).view(-1, 4), batch_size=3)
    expected = sorted({(b, *(a // stride * stride for a in xyz)) for b, *xyz in cloud})
    assert [tuple(row) for row in geometry.coords(stride).tolist()] == expected
    assert geometry.item_sizes(stride) == [sum(row[0] == item for row in expected) for item in range(3)]


@given(CLOUD, st.sampled_from([1, 2, 4]))
def test_parents_hold_their_children(cloud, stride):
    geometry = Geometry(torch.tensor(sorted(cloud), dtype=torch.int32).view(-1, 4), batch_size=3)
    children, parents = geometry.coords(stride), geometry.coords(2 * stride)[geometry.parents(stride)]
    inside = children[:, 1:] - parents[:, 1:]
    assert bool((children[:, 0] == parents[:, 0]).all())
    assert bool(((inside >= 0) & (inside < 2 * stride)).all())


def test_every_map_is_built_once():
    geometry = Geometry(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0]]), batch_size=1)
    assert geometry.kernel_map("submanifold", 1, 3) is geometry.kernel_map("submanifold", 1, 3)
    assert geometry.kernel_map("submanifold", 1, 3) is not geometry.kernel_map("submanifold", 1, 5)
    assert geometry.keys(4) is geometry.keys(4)


@pytest.mark.parametrize(
    ("coords", "words"),
    [
        ([[0, 1, 0, 0], [0, 0, 0, 0]], "not in ascending order"),
        ([[0, 1, 0, 0], [0, 1, 0, 0]], "not unique"),
        ([[0, 0, 0, 0], [2, 0, 0, 0]], "batch item 2, but the batch has 2 items"),
        ([[0, 0, 0, 40_000]], "z = 40000 is outside"),
    ],
)
def test_refuses_coordinates_that_are_no_geometry(coords, words):
    with pytest.raises(TrainError, match=words):
        Geometry(torch.tensor(coords), batch_size=2)


@pytest.mark.parametrize("stride", [0, 3, -2])
def test_refuses_strides_that_no_level_has(stride):
    with pytest.raises(TrainError, match=f"stride {stride}"):
        Geometry(torch.tensor([[0, 0, 0, 0]]), batch_size=1).keys(stride)


def test_refuses_features_of_another_geometry():
    geometry = Geometry(torch.tensor([[0, 0, 0, 0], [0, 4, 0, 0]]), batch_size=1)
    with pytest.raises(TrainError, match="3 feature rows for 2 voxels of stride 1"):
        SparseTensor(torch.zeros(3, 1), geometry)
