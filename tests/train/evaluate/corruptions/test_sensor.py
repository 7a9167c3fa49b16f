"""Beams that go whole, offsets of the stated size, dark points only, an even subset."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hilda_train.evaluate.corruptions import Sweep
from hilda_train.evaluate.corruptions.sensor import (
    beam_missing,
    cross_sensor,
    crosstalk,
    incomplete_echo,
    motion_blur,
)


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("has_ring", [True, False])
@pytest.mark.parametrize(("severity", "left"), [(1, 24), (2, 16), (3, 8)])
def test_whole_beams_are_missing(street, severity, left, has_ring):
    sweep = street if has_ring else dataclasses.replace(street, ring=None)
    made = beam_missing(sweep, severity, rng())
    counts = np.bincount(street.ring[made.source], minlength=32)
    assert set(counts) == {0, 360}
    assert (counts > 0).sum() == left


@pytest.mark.parametrize(("severity", "beams"), [(1, 24), (2, 16), (3, 8)])
def test_a_cheaper_sensor_has_fewer_beams_and_every_second_point(street, severity, beams):
    made = cross_sensor(street, severity, rng())
    kept, counts = np.unique(street.ring[made.source], return_counts=True)
    assert len(kept) == beams
    assert np.diff(kept).max() - np.diff(kept).min() <= 1  # spread evenly
    assert (counts == 180).all()
    one = np.sort(np.arctan2(*street.xyz_m[made.source][street.ring[made.source] == kept[0], 1::-1].T))
    np.testing.assert_allclose(np.diff(one), np.deg2rad(2), atol=1e-4)


@pytest.mark.parametrize(("severity", "shake_m"), [(1, 0.2), (2, 0.3), (3, 0.4)])
def test_a_shaken_sweep_moves_as_one_and_each_point_a_little(street, severity, shake_m):
    offsets, own = [], []
    for seed in range(200):
        moved = motion_blur(street, severity, np.random.default_rng(seed)).xyz_m - street.xyz_m
        offsets.append(moved.mean(axis=0))
        own.append(moved.std(axis=0))
    np.testing.assert_allclose(np.std(offsets, axis=0), shake_m, rtol=0.2)
    np.testing.assert_allclose(np.mean(own, axis=0), shake_m * np.array([0.1, 0.1, 0.05]), rtol=0.02)


@pytest.mark.parametrize(("severity", "share"), [(1, 0.03), (2, 0.07), (3, 0.12)])
def test_crosstalk_throws_a_share_of_the_points_off(street, severity, share):
    made = crosstalk(street, severity, rng())
    hit = made.source < 0
    assert hit.mean() == pytest.approx(share, abs=1e-3)
    offset = made.xyz_m[hit] - street.xyz_m[hit]
    assert offset.std() == pytest.approx(3.0, rel=0.1)
    assert abs(offset.mean()) < 0.5


@pytest.mark.parametrize(("severity", "share"), [(1, 0.75), (2, 0.85), (3, 0.95)])
def test_only_dark_points_off_the_ground_are_lost(street, severity, share):
    made = incomplete_echo(street, severity, rng())
    lost = np.setdiff1d(np.arange(len(street.xyz_m)), made.source)
    assert not street.ground[lost].any()
    standing = street.intensity[~street.ground]
    assert street.intensity[lost].max() <= np.median(standing)
    assert len(lost) / (standing <= np.median(standing)).sum() == pytest.approx(share, abs=1e-3)


def test_without_a_ring_a_beam_is_a_band_of_elevation():
    """A sensor with more lasers than bands loses stripes: all points of a band, or none."""
    many = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32) * (20, 20, 2)
    sweep = Sweep(many.astype(np.float32), np.ones(5000, np.float32), np.zeros(5000, bool))
    elevation = np.arctan2(sweep.xyz_m[:, 2], np.hypot(sweep.xyz_m[:, 0], sweep.xyz_m[:, 1]))
    order = np.argsort(elevation)
    kept = np.isin(order, beam_missing(sweep, 2, rng()).source)
    switches = int(np.abs(np.diff(kept.astype(int))).sum())
    assert 1 <= switches < 64
