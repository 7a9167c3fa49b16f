"""Sampling equals torch's grid_sample and a loop over pairs in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilda_schema.sampling import BLOCK_VALUES, sample_grid


def make_case(seed: int, pairs: int, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = rng.normal(size=shape).astype(np.float32)
    camera = np.sort(rng.integers(0, shape[0], pairs)).astype(np.uint8)
    uv = rng.random((pairs, 2))
    uv[:4] = [[0, 0], [1, 1], [0, 1], [1 - 1e-12, 0.5]][: min(4, pairs)]
    return grid, camera, uv


def grid_sample(grid: np.ndarray, camera: np.ndarray, uv: np.ndarray, mode: str) -> np.ndarray:
    out = np.empty((len(uv), grid.shape[-1]))
    for v in range(len(grid)):
        mine = camera == v
        tokens = torch.from_numpy(grid[v].astype(np.float64)).permute(2, 0, 1)[None]
        at = torch.from_numpy(2 * uv[mine] - 1)[None, None]
        sampled = torch.nn.functional.grid_sample(tokens, at, mode=mode, padding_mode="border", align_corners=False)
        out[mine] = sampled[0, :, 0].T.numpy()
    return out


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", [(3, 16, 32, 70), (1, 1, 1, 30), (2, 1, 9, 200), (2, 37, 1, 2**17)])
def test_equals_grid_sample(mode: str, shape: tuple[int, int, int, int]) -> None:
    grid, camera, uv = make_case(0, 2 * BLOCK_VALUES // shape[-1] + 17, shape)
    ours = sample_grid(grid, camera, uv, mode)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, grid_sample(grid, camera, uv, mode), rtol=0, atol=2e-6)


def test_equals_a_loop_over_pairs() -> None:
    grid, camera, uv = make_case(1, 200, (2, 5, 8, 3))
    _, H, W, C = grid.shape
    expected = np.zeros((len(uv), C))
    for p, (u, v) in enumerate(uv):
        x, y = min(max(u * W - 0.5, 0), W - 1), min(max(v * H - 0.5, 0), H - 1)
        for row in range(H):
            for column in range(W):
                weight = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
                expected[p] += weight * grid[camera[p], row, column].astype(np.float64)
    np.testing.assert_allclose(sample_grid(grid, camera, uv), expected, rtol=0, atol=2e-6)


def test_token_centres_read_their_token_exactly() -> None:
    grid, _, _ = make_case(2, 4, (1, 4, 6, 2))
    row, column = np.mgrid[:4, :6].reshape(2, -1)
    uv = np.stack([(column + 0.5) / 6, (row + 0.5) / 4], axis=1)
    camera = np.zeros(len(uv), np.uint8)
    for mode in ("bilinear", "nearest"):
        np.testing.assert_allclose(sample_grid(grid, camera, uv, mode), grid[0, row, column], atol=1e-6)


def test_an_absent_camera_gives_nan_and_leaves_its_neighbours_alone() -> None:
    grid, camera, uv = make_case(3, 300, (3, 4, 4, 2))
    grid[1] = np.nan
    for mode in ("bilinear", "nearest"):
        sampled = sample_grid(grid, camera, uv, mode)
        assert np.array_equal(np.isnan(sampled).all(axis=1), camera == 1)
        assert np.isfinite(sampled[camera != 1]).all()


def test_no_pairs_give_no_rows() -> None:
    empty = sample_grid(np.zeros((0, 2, 2, 5), np.float32), np.zeros(0, np.uint8), np.zeros((0, 2)))
    assert empty.shape == (0, 5)
