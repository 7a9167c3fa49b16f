"""Fog, snow and wet ground against the laws that their docstrings state, integrated and counted by other means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from hilda_train.evaluate.corruptions import Sweep
from hilda_train.evaluate.corruptions.weather import (
    SNOWFALL_MM_H,
    VISIBILITY_M,
    flakes,
    fog,
    fresnel,
    snow,
    snow_extinction_per_m,
    soft_response,
    wet_ground,
)

SPEED_OF_LIGHT, TAU_S = 299_792_458.0, 20e-9


def along_x(range_m, intensity, ground=False):
    """Points straight ahead."""
    xyz_m = np.zeros((len(range_m), 3), np.float32)
    xyz_m[:, 0] = range_m
    return Sweep(xyz_m, np.broadcast_to(np.float32(intensity), len(range_m)).copy(), np.full(len(range_m), ground))


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_fog_dims_by_beer_and_lambert_and_contrast_falls_to_five_percent_over_the_visibility(severity):
    range_m = np.linspace(1.5, 20, 40).astype(np.float32)
    made = fog(along_x(range_m, 100.0), severity, np.random.default_rng(0))
    own = made.source >= 0
    assert own.sum() > 30
    alpha = -np.log(made.intensity[own] / 100) / (2 * range_m[made.source[own]])
    np.testing.assert_allclose(np.exp(-alpha * VISIBILITY_M[severity - 1]), 0.05, rtol=1e-4)


@pytest.mark.parametrize("severity", [2, 3])
@pytest.mark.parametrize("at_m", [1.25, 2.05, 4.55, 9.95, 40.05])
def test_the_droplets_response_is_the_papers_integral(severity, at_m):
    alpha = np.log(20) / VISIBILITY_M[severity - 1]

    def integrand(t):
        r = at_m - SPEED_OF_LIGHT * t / 2
        overlap = np.clip((r - 0.9) / 0.1, 0, 1)
        return np.sin(np.pi * t / (2 * TAU_S)) ** 2 * np.exp(-2 * alpha * r) / max(r, 1e-3) ** 2 * overlap

    bends = [2 * (at_m - r) / SPEED_OF_LIGHT for r in (0.9, 1.0)]
    expected, _ = quad(integrand, 0, 2 * TAU_S, points=[t for t in bends if 0 < t < 2 * TAU_S], limit=200)
    assert soft_response(alpha)[int(at_m / 0.1)] == pytest.approx(expected, rel=0.02, abs=1e-12)


def test_what_fog_returns_lies_on_the_ray_before_the_target_and_hides_the_far_and_not_the_near():
    range_m = np.linspace(1.5, 150, 3000).astype(np.float32)
    made = fog(along_x(range_m, 100.0), 3, np.random.default_rng(0))
    hidden = made.source < 0
    assert (made.xyz_m[:, 1:] == 0).all()
    assert (made.xyz_m[hidden, 0] <= range_m[hidden]).all()
    assert (made.xyz_m[hidden, 0] >= 0.9).all()
    first = range_m[hidden].min()
    np.testing.assert_array_equal(hidden, range_m >= first)
    assert 20 < first < 50  # the visibility is 50 m


@given(st.floats(0, 1))
def test_fresnel_is_snells_law_and_nothing_at_a_level_view(cosine):
    theta = np.arccos(cosine)
    inside = np.arcsin(np.sin(theta) / 1.33)
    if theta > 1e-3:
        across = np.sin(theta - inside) / np.sin(theta + inside)
        along = np.tan(theta - inside) / np.tan(theta + inside)
        assert fresnel(np.array([cosine]))[0] == pytest.approx((across**2 + along**2) / 2, abs=1e-9)
    assert fresnel(np.array([1.0]))[0] == pytest.approx((0.33 / 2.33) ** 2)
    assert fresnel(np.array([0.0]))[0] == pytest.approx(1)


def test_wet_ground_dims_ground_only_and_takes_the_far_end_first(street):
    made = wet_ground(street, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(made.source[~street.ground[made.source]], np.flatnonzero(~street.ground))
    still = ~street.ground[made.source]
    np.testing.assert_array_equal(made.intensity[still], street.intensity[made.source[still]])
    range_m = np.linalg.norm(street.xyz_m, axis=1)
    kept = np.zeros(len(range_m), bool)
    kept[made.source] = True
    assert range_m[street.ground & kept].max() < range_m[street.ground & ~kept].min()
    # a whole film: the share of light that crosses the surface twice
    rows = made.source[~still]
    cosine = -street.xyz_m[rows, 2] / range_m[rows]
    expected = street.intensity[rows] * (1 - fresnel(cosine.astype(float))) ** 2
    np.testing.assert_allclose(made.intensity[~still], expected, rtol=1e-4)


def simulated_hidden(range_m, share_of_white, rate, rng, beams):
    """Share of beams whose target an actual flake outshines: flakes are placed and measured one by one."""
    number, steepness = flakes(rate)
    slope = 3e-3 / 2  # the cone's radius per metre
    volume = np.pi * slope**2 * (range_m**3 - 1) / 3
    hidden = 0
    target = share_of_white * np.exp(-snow_extinction_per_m(rate) * range_m) / range_m**2
    for _ in range(beams):
        count = rng.poisson(number / steepness * volume)
        r = np.cbrt(rng.uniform(1, range_m**3, count))  # uniform in the cone
        diameter_m = rng.exponential(1 / steepness, count) * 1e-3
        hidden += (np.minimum(1, (diameter_m / (2 * slope * r)) ** 2) / r**2 > target).any()
    return hidden / beams


@pytest.mark.parametrize(("severity", "range_m", "share"), [(1, 20.0, 0.1), (3, 20.0, 0.1), (2, 35.0, 0.3)])
def test_snow_hides_as_many_targets_as_flakes_placed_one_by_one(severity, range_m, share):
    beams = 4000
    sweep = along_x(np.full(beams + 400, range_m), 10.0 * share)
    sweep.intensity[beams:] = 10.0  # white: the 99th percentile of the intensity
    made = snow(sweep, severity, np.random.default_rng(1))
    expected = simulated_hidden(range_m, share, SNOWFALL_MM_H[severity - 1], np.random.default_rng(2), beams)
    assert (made.source[:beams] < 0).mean() == pytest.approx(expected, abs=0.03)
    own = made.source[made.source >= 0]
    left = made.intensity[made.source >= 0] / sweep.intensity[own]
    np.testing.assert_allclose(left, np.exp(-range_m * snow_extinction_per_m(SNOWFALL_MM_H[severity - 1])), rtol=1e-5)
    flake_m = np.linalg.norm(made.xyz_m[made.source < 0], axis=1)
    assert flake_m.min() >= 1
    assert flake_m.max() <= range_m


@given(st.floats(0.1, 5))
def test_extinction_is_the_flakes_area_in_a_cubic_metre(rate):
    number, steepness = flakes(rate)
    area_mm2, _ = quad(lambda d: np.pi / 4 * d**2 * number * np.exp(-steepness * d), 0, 50 / steepness)
    assert snow_extinction_per_m(rate) == pytest.approx(area_mm2 * 1e-6, rel=1e-6)


def test_more_snow_takes_more_light():
    assert np.all(np.diff([snow_extinction_per_m(rate) for rate in SNOWFALL_MM_H]) > 0)
