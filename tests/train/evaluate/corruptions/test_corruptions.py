"""What must hold of every corruption, whatever it models: purity, determinism, sources, severities, empty sweeps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hilda_schema.errors import UsageError
from hilda_train.evaluate.corruptions import CORRUPTIONS, SEVERITIES, Sweep, beams_of, corrupt

ADDS_NOTHING = {"wet_ground", "beam_missing", "incomplete_echo", "cross_sensor"}  # points are lost, never moved


def bytes_of(value):
    fields = (getattr(value, field.name) for field in dataclasses.fields(value))
    return [array.tobytes() for array in fields if array is not None]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_the_same_seed_gives_the_same_bits_and_the_sweep_stays_as_it_was(street, name, severity):
    before = bytes_of(street)
    first, again = (corrupt(street, name, severity, 0, "drive/scene/7") for _ in range(2))
    assert bytes_of(first) == bytes_of(again)
    assert bytes_of(street) == before


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"wet_ground", "cross_sensor"}))
def test_another_seed_or_frame_is_another_draw(street, name):
    drawn = [bytes_of(corrupt(street, name, 3, seed, key)) for seed, key in ((0, "a"), (1, "a"), (0, "b"))]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_point_says_where_it_comes_from(street, name):
    made = corrupt(street, name, 2, 0, "k")
    assert made.xyz_m.shape == (len(made.source), 3)
    assert len(made.intensity) == len(made.source)
    assert (made.xyz_m.dtype, made.intensity.dtype, made.source.dtype) == (np.float32, np.float32, np.int64)
    assert np.isfinite(made.xyz_m).all()
    assert (made.intensity >= 0).all()
    own = made.source >= 0
    assert (np.diff(made.source[own]) > 0).all()  # in the sweep's order, none twice
    assert made.source.max() < len(street.xyz_m)
    if name != "motion_blur":
        np.testing.assert_array_equal(made.xyz_m[own], street.xyz_m[made.source[own]])
    if name in ADDS_NOTHING:
        assert own.all()
        assert len(own) < len(street.xyz_m)


def harm(made, street):
    """Share of the sweep's points that are gone, plus the share of light lost, plus metres moved."""
    own = made.source[made.source >= 0]
    light = made.intensity[made.source >= 0].sum() / street.intensity[own].sum()
    moved = np.linalg.norm(made.xyz_m[made.source >= 0] - street.xyz_m[own], axis=1).mean()
    return 2 - len(own) / len(street.xyz_m) - light + moved


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_heavier_one_does_more_harm(street, name):
    generators = (np.random.default_rng(0) for _ in SEVERITIES)
    harms = [harm(CORRUPTIONS[name](street, k, rng), street) for k, rng in zip(SEVERITIES, generators, strict=True)]
    assert 0 < harms[0] < harms[1] < harms[2]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_empty_and_odd_sweeps(name, street):
    def some(rows, ground):
        return Sweep(street.xyz_m[rows], street.intensity[rows], np.full(len(rows), ground), street.ring[rows])

    assert len(corrupt(some([], True), name, 3, 0, "k").source) == 0
    for ground in (True, False):
        alone = some([0], ground)
        assert len(corrupt(alone, name, 3, 0, "k").source) <= 1
    at_the_sensor = Sweep(np.zeros((3, 3), np.float32), np.zeros(3, np.float32), np.zeros(3, bool))
    assert np.isfinite(corrupt(at_the_sensor, name, 3, 0, "k").xyz_m).all()


def test_unknown_names_and_severities(street):
    with pytest.raises(UsageError, match="'rain' is not known"):
        corrupt(street, "rain", 1, 0, "k")
    with pytest.raises(UsageError, match="severity 4"):
        corrupt(street, "fog", 4, 0, "k")


def test_beams_are_the_rings_and_elevation_finds_the_same_ones(street):
    beam, count = beams_of(street)
    assert count == len(np.unique(street.ring))
    np.testing.assert_array_equal(np.unique(street.ring)[beam], street.ring)
    blind, found = beams_of(dataclasses.replace(street, ring=None))
    assert found == count
    pairs = np.unique(np.stack([beam, blind]), axis=1)  # one to one, in the order of elevation on both sides
    assert pairs.shape[1] == count
    np.testing.assert_array_equal(pairs[0], pairs[1])
