"""Targets: what a pair is taught is the stored feature at its pixel, for every encoding, after all that is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hilda_schema.errors import TrainError
from hilda_schema.reader import open_cache
from hilda_train.data.augment import AugmentOptions
from hilda_train.data.batches import ClipDataset, SampleOptions, join
from hilda_train.data.clips import clips_of
from hilda_train.data.scans import ScanOptions
from hilda_train.data.tokens import TeacherLayer, read_scan_tokens, sample_targets
from hilda_train.data.voxelise import VoxelGrid
from hilda_train.objectives.bev import BevGrid

CPU = torch.device("cpu")
BEV = BevGrid(range_m=16.0, cell_m=1.0)
LAYERS = (TeacherLayer("vit", "4"), TeacherLayer("cnn", "stage2"), TeacherLayer("cnn", "stage1"))
WIDTHS = (8, 6, 4)
CROP = ((-12.0, -9.0, -3.0), (15.0, 11.0, 2.0))
STANDARD = {"toy": (0.5, 0.3), "other": (0.1, 2.0)}


def batch_of(urls, numbers, seed=0, **scan):
    grid = VoxelGrid("cartesian", (0.5, 0.5, 0.5), CROP)
    options = ScanOptions(**{"grid": grid, "reduction": "random", "intensity": STANDARD, **scan})
    samples = SampleOptions(options, AugmentOptions(dropout=0.5), BEV, unseen_is_free=False, history=True, seed=seed)
    clips = [clip for k, url in enumerate(urls) for clip in clips_of(open_cache(url).frames, k, 0.1)]
    data = ClipDataset(urls, clips, samples)
    return join([data[0, k, number] for k, number in enumerate(numbers)], BEV.cells)


def tokens_of(caches, batch, layers=LAYERS, global_teacher="vit"):
    rows = torch.split(batch.pair_row, list(batch.pair_counts))
    return [
        read_scan_tokens(caches[cache], row, kept.numpy(), layers, global_teacher)
        for (cache, row), kept in zip(batch.sources, rows, strict=True)
    ]


def naive_sample(grid, camera, u01, v01):
    """Bilinear, border-clamped, token centres at (x + 0.5) / W; one pair, in float64."""
    _, height, width, _ = grid.shape
    x = min(max(u01 * width - 0.5, 0.0), width - 1.0)
    y = min(max(v01 * height - 0.5, 0.0), height - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    across, down = x - left, y - top
    corners = ((top, left), (top, right), (bottom, left), (bottom, right))
    weights = ((1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across)
    return sum(
        w * grid[camera, row, column].astype(np.float64) for w, (row, column) in zip(weights, corners, strict=True)
    )


SCANS = [
    {},
    {"thin": True},
    {"visible_only": True, "max_points": 150},
    {"cameras": 1, "frustum_only": True, "visible_only": True},
]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("kind", ["grid", "point"])
def test_targets_are_the_stored_features_at_the_pairs_that_are_left(make_cache, kind, dtype):
    """The tie to the frame goes over positions alone: a pair's augmented point, its camera and its pixel."""
    url = make_cache(kind, dtype, points=200)
    cache = open_cache(url)
    for seed, scan in enumerate(SCANS):
        batch = batch_of([url], (2, 5, 9, 1), seed, **scan)
        targets = sample_targets(batch, tokens_of([cache], batch), WIDTHS, CPU)
        assert [tuple(layer.shape) for layer in targets.layers] == [(len(batch.pair_point), width) for width in WIDTHS]
        assert all(bool(taught.all()) for taught in targets.taught)
        first = 0
        for (_, row), count, start in zip(batch.sources, batch.pair_counts, batch.group_starts[:-1], strict=True):
            frame, here = cache[row], slice(first, first + count)
            sizes = np.array([frame.camera_sizes_px[name] for name in frame.camera_names])
            uv01 = (frame.pairs.uv_px + 0.5) / sizes[frame.pairs.camera]
            stored = []
            for group, place in zip(batch.pair_group[here].tolist(), batch.uv01[here].tolist(), strict=True):
                distance = np.abs(uv01 - place).max(axis=1) + (frame.pairs.camera != group - start)
                stored.append(int(distance.argmin()))
                assert distance.min() < 1e-6
            assert len(set(stored)) == count
            for number, layer in enumerate(LAYERS):
                expected = frame.point_features(layer.teacher, layer.layer)[stored]
                np.testing.assert_allclose(targets.layers[number][here].numpy(), expected, rtol=2e-5, atol=2e-5)
            first += count
        assert first == len(batch.pair_point) > 20


def test_grids_are_sampled_as_defined(make_cache):
    """Against loops in float64, and not only at positions inside: pairs near the border of the image too."""
    url = make_cache("grid", "float16", points=600)
    cache = open_cache(url)
    batch = batch_of([url], (2, 7))
    targets = sample_targets(batch, tokens_of([cache], batch), WIDTHS, CPU)
    scan_of_pair = np.repeat(np.arange(len(batch.pair_counts)), batch.pair_counts)
    outside = 0
    for number, layer in enumerate(LAYERS):
        grids = [cache[row].token_grid(layer.teacher, layer.layer) for _, row in batch.sources]
        for k, (scan, (u01, v01)) in enumerate(zip(scan_of_pair, batch.uv01.tolist(), strict=True)):
            camera = int(batch.pair_group[k]) - batch.group_starts[scan]
            expected = naive_sample(grids[scan], camera, u01, v01)
            np.testing.assert_allclose(targets.layers[number][k].numpy(), expected, rtol=1e-5, atol=1e-4)
            height = grids[scan].shape[1]
            outside += v01 * height < 0.5 or v01 * height > height - 0.5
    assert outside > 20


@pytest.mark.parametrize("kind", ["grid", "point"])
def test_features_are_never_augmented(make_cache, kind):
    """Two draws of turns, flips and scale: the points differ, the pairs and what they are taught do not."""
    url = make_cache(kind)
    cache = open_cache(url)
    options = ScanOptions(VoxelGrid("cartesian", (0.5, 0.5, 0.5)), intensity=STANDARD)
    seen = []
    for seed in (1, 2):
        samples = SampleOptions(options, AugmentOptions(), BEV, unseen_is_free=False, history=True, seed=seed)
        data = ClipDataset([url], clips_of(cache.frames, 0, 0.1), samples)
        batch = join([data[0, 0, 2]], BEV.cells)
        seen.append((batch, sample_targets(batch, tokens_of([cache], batch), WIDTHS, CPU)))
    (one, first), (two, second) = seen
    assert not torch.equal(one.points.xyz_m, two.points.xyz_m)
    assert torch.equal(one.uv01, two.uv01)
    for a, b in zip(first.layers, second.layers, strict=True):
        assert torch.equal(a, b)


def test_global_tokens_are_the_stored_ones_and_absent_cameras_stay_absent(toy):
    cache = open_cache(toy)
    batch = batch_of([toy], (1,))
    assert batch.sources == ((0, 0), (0, 1))
    targets = sample_targets(batch, tokens_of([cache], batch), WIDTHS, CPU)
    for token, (_, row) in zip(targets.global_tokens, batch.sources, strict=True):
        np.testing.assert_array_equal(token.numpy(), cache[row].global_tokens("vit"))
    assert targets.global_tokens[1].isnan().all(dim=1).tolist() == [False, True, False]
    none = sample_targets(batch, tokens_of([cache], batch, global_teacher=None), WIDTHS, CPU)
    assert none.global_tokens == (None, None)
    lacking = sample_targets(batch, tokens_of([cache], batch, global_teacher="cnn"), WIDTHS, CPU)
    assert lacking.global_tokens == (None, None)


@pytest.mark.parametrize("kinds", [("grid", "grid"), ("point", "grid"), ("grid", "point")])
def test_caches_of_other_grids_and_without_a_teacher(make_cache, kinds):
    """One cache has both teachers, the other only "vit" on another grid: its pairs are not taught by "cnn"."""
    urls = [
        make_cache(kinds[0], "float16", seed=1, points=150),
        make_cache(
            kinds[1],
            "int8",
            dataset="other",
            cameras=("BACK", "FRONT"),
            teachers=("vit",),
            grid=(4, 7),
            seed=2,
            points=150,
        ),
    ]
    caches = [open_cache(url) for url in urls]
    batch = batch_of(urls, (12, 2, 11))
    assert {cache for cache, _ in batch.sources} == {0, 1}
    targets = sample_targets(batch, tokens_of(caches, batch), WIDTHS, CPU)
    first = 0
    for (number, row), count in zip(batch.sources, batch.pair_counts, strict=True):
        here, frame = slice(first, first + count), caches[number][row]
        assert count > 0
        kept = batch.pair_row[here].numpy()
        for layer, (wanted, values, taught) in enumerate(zip(LAYERS, targets.layers, targets.taught, strict=True)):
            has = number == 0 or wanted.teacher == "vit"
            assert bool(taught[here].all()) == bool(taught[here].any()) == has, layer
            if has:
                expected = frame.point_features(wanted.teacher, wanted.layer)[kept]
                np.testing.assert_allclose(values[here].numpy(), expected, rtol=2e-5, atol=2e-5)
            else:
                assert not values[here].any()
        first += count


def test_a_layer_of_another_width_is_refused(make_cache):
    for kind in ("grid", "point"):
        url = make_cache(kind, scenes=1, frames=2, points=60)
        batch = batch_of([url], (0,))
        with pytest.raises(TrainError, match="stores 8 channels where 9 were announced"):
            sample_targets(batch, tokens_of([open_cache(url)], batch), (9, 6, 4), CPU)


def test_a_run_that_compares_no_pixels_reads_no_layer(toy):
    """Global context alone: no token grid is read, and no target is made, though the widths are known."""
    batch = batch_of([toy], (2,))
    tokens = tokens_of([open_cache(toy)], batch, layers=())
    targets = sample_targets(batch, tokens, WIDTHS, CPU)
    assert targets.layers == targets.taught == ()
    assert len(targets.global_tokens) == 2
