"""Exact nearest neighbours against SciPy's k-d tree."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from hilda_train.students.neighbours import nearest_neighbours, nearest_rows


def distances(xyz_m, rows):
    return (xyz_m[rows] - xyz_m[:, None]).norm(dim=2).numpy()


def one_item(n):
    return torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize("n", [17, 40, 500, 3000])
@pytest.mark.parametrize("spread", ["ball", "sweep", "line"])
def test_equals_a_tree(n, spread):
    generator = torch.Generator().manual_seed(n)
    xyz_m = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    if spread == "sweep":  # density falls with distance, as a LiDAR's does
        xyz_m = xyz_m * torch.rand(n, 1, generator=generator, dtype=torch.float64) ** 3 * 50
    if spread == "line":
        xyz_m[:, 1:] = 0
    rows = nearest_neighbours(xyz_m, one_item(n), 16)
    expected, _ = cKDTree(xyz_m.numpy()).query(xyz_m.numpy(), k=17)
    np.testing.assert_allclose(distances(xyz_m, rows), expected[:, 1:], rtol=1e-12, atol=0)
    assert not (rows == torch.arange(n)[:, None]).any()


def test_looks_just_far_enough_beyond_a_leaf():
    """On a line of nearly even steps the nearest point is often just across the border of a leaf, hardly nearer than
    the nearest on this side."""
    steps = 0.9 + 0.2 * torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    xyz_m = torch.stack([steps.cumsum(0), *torch.zeros(2, 2000, dtype=torch.float64)], dim=1)
    expected, _ = cKDTree(xyz_m.numpy()).query(xyz_m.numpy(), k=2)
    rows = nearest_neighbours(xyz_m, one_item(2000), 1)
    np.testing.assert_allclose(distances(xyz_m, rows), expected[:, 1:], rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=6, max_size=150), st.integers(1, 5))
def test_ties_and_coinciding_points(cloud, k):
    xyz_m = torch.tensor(cloud, dtype=torch.float32)
    rows = nearest_neighbours(xyz_m, one_item(len(cloud)), k)
    expected, _ = cKDTree(xyz_m.numpy()).query(xyz_m.numpy(), k=k + 1)
    np.testing.assert_allclose(distances(xyz_m, rows), expected[:, 1:], atol=1e-6)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_items_of_a_batch_do_not_mix():
    xyz_m = torch.randn(90, 3)
    item = torch.tensor([0] * 40 + [2] * 50)
    rows = nearest_neighbours(xyz_m, item, 4)
    assert bool((item[rows] == item[:, None]).all())
    assert torch.equal(rows[40:], nearest_neighbours(xyz_m[40:], one_item(50), 4) + 40)


def test_a_point_stands_in_for_neighbours_that_are_missing():
    xyz_m = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0], [9, 9, 9]])
    item = torch.tensor([0, 0, 0, 1])
    assert nearest_neighbours(xyz_m, item, 3).tolist() == [[1, 2, 0], [0, 2, 1], [1, 0, 2], [3, 3, 3]]
    assert nearest_neighbours(torch.zeros(0, 3), one_item(0), 3).shape == (0, 3)


@given(st.integers(0, 300), st.integers(1, 500), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 50.0]))
def test_the_nearest_of_another_cloud_is_scipys(queries, n, seed, away):
    """Queries among the cloud's points and far from them; the cloud in one leaf and in many."""
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn((n, 3), generator=generator, dtype=torch.float64) * 5
    asked = torch.randn((queries, 3), generator=generator, dtype=torch.float64) * 5 + away
    asked[: min(n, queries) // 2] = cloud[: min(n, queries) // 2]
    rows = nearest_rows(asked, cloud)
    if queries:
        expected, _ = cKDTree(cloud.numpy()).query(asked.numpy())
        np.testing.assert_allclose((cloud[rows] - asked).norm(dim=1).numpy(), expected, rtol=1e-12, atol=0)
    assert rows.shape == (queries,)
