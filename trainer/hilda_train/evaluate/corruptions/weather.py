"""Fog, snow and wet ground: what the air and the road do to a pulse.

Intensities are taken as the sensor's calibrated reflectances: a return of intensity i at range R carries the power
i / R^2, up to a constant of the sensor that cancels out here.

Legend: N points, K steps of range.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hilda_train.evaluate.corruptions.sweep import Corrupted, Sweep, ranges_m

Reals = NDArray[np.float64]

# Between these ranges the transmitted and the received cone begin to overlap; nearer returns are not seen.
OVERLAP_M = (0.9, 1.0)

# Fog
VISIBILITY_M = (600.0, 150.0, 50.0)  # meteorological optical range: light, moderate, heavy
PULSE_M = 299_792_458.0 * 20e-9  # half-power pulse width tau_H = 20 ns, as a length
SECONDS_PER_M = 2 / 299_792_458.0  # of an echo
BETA_0 = 1e-6 / np.pi  # reflectivity of the hard target in the paper's own units
STEP_M, REACH_M = 0.1, 200.0

# Snow
SNOWFALL_MM_H = (0.5, 1.0, 2.5)  # melted
DIVERGENCE_RAD = 3e-3
WEAKEST = 0.01  # a return is at least this share of white: what an 8-bit zero still is
SNOW_STEPS = 64

# Wet ground
FILM_MM = (0.2, 1.0, 1.2)
TEXTURE_MM = 1.2  # depth of the pavement's pores; a film of that height is smooth water
WATER = 1.33  # refractive index


def extinction_per_m(visibility_m: float) -> float:
    """Koschmieder's law: contrast falls to 5 % over the visibility, alpha = ln(20) / V."""
    return float(np.log(20)) / visibility_m


def fog(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """Fog, after Hahner et al., "Fog Simulation on Real LiDAR Point Clouds for 3D Object Detection", ICCV 2021.

    With extinction alpha = ln(20) / V and backscatter beta = 0.046 / V for the visibility V, a target at R0 returns

        hard   i exp(-2 alpha R0)                                                   Beer-Lambert, there and back
        soft   i R0^2 (beta / beta_0) max over R <= R0 of I(R)                      what the droplets before it return
        I(R) = int_0^{2 tau} sin^2(pi t / 2 tau) exp(-2 alpha r) / r^2 xi(r) dt,    r = R - c t / 2

    with the overlap xi of both cones, and the sensor reports the stronger. Simplified: the paper puts a soft return at
    the maximum of I and jitters it; here its range is drawn with density I(R), R <= R0. Visibilities of 600, 150 and
    50 m are three of the paper's five.
    """
    alpha, beta = extinction_per_m(VISIBILITY_M[severity - 1]), 0.046 / VISIBILITY_M[severity - 1]
    range_m = ranges_m(sweep)
    response = soft_response(alpha)
    step = np.floor(range_m / STEP_M).astype(np.int64).clip(0, len(response) - 1)
    hard = np.exp(-2 * alpha * range_m)
    soft = range_m**2 * (beta / BETA_0) * np.maximum.accumulate(response)[step]
    scattered = soft > hard
    below = np.cumsum(response)
    drawn = np.searchsorted(below, rng.random(len(range_m)) * below[step])
    shown_m = np.where(scattered, np.minimum((drawn + 0.5) * STEP_M, range_m), range_m)
    intensity = sweep.intensity * np.where(scattered, soft.clip(max=1), hard)
    return _moved(sweep, shown_m, range_m, intensity, scattered)


@lru_cache
def soft_response(alpha: float) -> Reals:
    """(K,) I(R) of `fog`, in seconds per square metre, at the middle of every step of `STEP_M`."""
    fine = STEP_M / 10
    r = np.arange(fine / 2, REACH_M, fine)
    echo = np.exp(-2 * alpha * r) / r**2 * _overlap(r)
    offset = np.arange(0, PULSE_M, fine)
    pulse = np.sin(np.pi * offset / PULSE_M) ** 2
    convolved = np.convolve(echo, pulse)[: len(r)] * fine * SECONDS_PER_M
    response: Reals = convolved.reshape(-1, 10).mean(axis=1)
    return response


def _overlap(r_m: Reals) -> Reals:
    low, high = OVERLAP_M
    overlap: Reals = ((r_m - low) / (high - low)).clip(0, 1)
    return overlap


def snow(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """Snow, after Hahner et al., "LiDAR Snowfall Simulation for Robust 3D Object Detection", CVPR 2022.

    Flakes have Gunn and Marshall's diameters, N(D) = N0 exp(-L D) with N0 = 3800 rate^-0.87 per mm and m^3 and
    L = 2.55 rate^-0.48 per mm. A flake that the cone of divergence T meets at r fills f = min(1, (D / T r)^2) of it. It
    returns f of what a white surface returns at its range, and the target is left with the rest; the sensor reports
    the stronger. Simplified: the paper draws every flake; here

        target     i exp(-a R0), a = (pi / 4) int D^2 N(D) dD: the mean share taken away, once, as the cone that goes
                   out and comes back is the same
        stronger   flakes stronger than the target are Poisson with mean int_1^R0 pi (T r / 2)^2 N0/L exp(-L D*) dr,
                   D* the least diameter that is; one of them is drawn, and its diameter above D*

    White is the sweep's 99th percentile of intensity. Rates of 0.5, 1 and 2.5 mm/h of melted snow.
    """
    rate = SNOWFALL_MM_H[severity - 1]
    number, steepness = flakes(rate)
    white = max(float(np.percentile(sweep.intensity, 99)), 1e-6)
    range_m = ranges_m(sweep)
    left = np.exp(-snow_extinction_per_m(rate) * range_m)
    power = (sweep.intensity / white).clip(min=WEAKEST) * left / np.square(range_m.clip(min=OVERLAP_M[1]))
    # Steps of equal ratio from where the sensor sees to the target, each with its mean number of stronger flakes.
    reach = range_m.clip(min=OVERLAP_M[1]) / OVERLAP_M[1]
    edges = OVERLAP_M[1] * reach[:, None] ** np.linspace(0, 1, SNOW_STEPS + 1)
    r = (edges[:, 1:] + edges[:, :-1]) / 2
    least_mm = 1e3 * DIVERGENCE_RAD * r**2 * np.sqrt(power)[:, None]
    possible = power[:, None] < 1 / r**2  # a flake that fills the cone returns no more than white does
    density = np.pi / 4 * (DIVERGENCE_RAD * r) ** 2 * number / steepness * np.exp(-steepness * least_mm) * possible
    below = np.cumsum(density * np.diff(edges, axis=1), axis=1)
    hidden = rng.random(len(range_m)) < -np.expm1(-below[:, -1])
    wanted = rng.random(len(range_m)) * below[:, -1]
    step = (below < wanted[:, None]).sum(axis=1).clip(max=SNOW_STEPS - 1)
    everyone = np.arange(len(range_m))
    flake_m = r[everyone, step]
    diameter_mm = least_mm[everyone, step] + rng.exponential(1 / steepness, len(range_m))
    filled = np.square(diameter_mm / (1e3 * DIVERGENCE_RAD * flake_m)).clip(max=1)
    intensity = np.where(hidden, white * filled, sweep.intensity * left)
    return _moved(sweep, np.where(hidden, flake_m, range_m), range_m, intensity, hidden)


def flakes(rate_mm_h: float) -> tuple[float, float]:
    """Gunn and Marshall (1958): N0 per mm of diameter and m^3, and the steepness L per mm."""
    return 3.8e3 * rate_mm_h**-0.87, 2.55 * rate_mm_h**-0.48


def snow_extinction_per_m(rate_mm_h: float) -> float:
    """Share of a wide beam that flakes take away per metre: (pi / 4) int D^2 N(D) dD, from mm^2 to m^2."""
    number, steepness = flakes(rate_mm_h)
    return float(np.pi / 4 * number * 2 / steepness**3 * 1e-6)


def wet_ground(sweep: Sweep, severity: int, rng: np.random.Generator) -> Corrupted:
    """Wet ground, after the wet ground model of Hahner et al., CVPR 2022 (see `snow`).

    A film of water mirrors light away. Of the pavement a share d / 1.2 mm is smooth water for a film of d, and light
    that comes in at angle theta crosses it twice, so an echo keeps (1 - share) + share (1 - F(theta))^2 with Fresnel's
    reflectance F of water for unpolarised light. An echo is lost where it falls below what the sensor can see: the
    power of the farthest dry ground (99th percentile of the ground's range). The power of a rough level surface falls
    with cos(theta) / R^2, that is with 1 / R^3. Simplified: the paper fits planes and the noise floor; here the ground
    is level, the film does not absorb, and light mirrored onto other things is not followed. Nothing is drawn.
    """
    range_m = ranges_m(sweep)
    cosine = np.abs(sweep.xyz_m[:, 2]) / range_m.clip(min=1e-6)
    smooth = min(1.0, FILM_MM[severity - 1] / TEXTURE_MM)
    left = np.where(sweep.ground, 1 - smooth + smooth * (1 - fresnel(cosine)) ** 2, 1.0)
    farthest_m = float(np.percentile(range_m[sweep.ground], 99)) if sweep.ground.any() else np.inf
    rows = np.flatnonzero(left >= (range_m / farthest_m).clip(max=1) ** 3 * sweep.ground)
    return Corrupted(sweep.xyz_m[rows], (sweep.intensity * left).astype(np.float32)[rows], rows)


def fresnel(cosine: Reals) -> Reals:
    """(N,) reflectance of water for unpolarised light that comes from air at an angle with this cosine."""
    sine2 = (1 - cosine.clip(0, 1) ** 2) / WATER**2
    inside = np.sqrt(1 - sine2)
    across = (cosine - WATER * inside) / (cosine + WATER * inside)
    along = (inside - WATER * cosine) / (inside + WATER * cosine)
    reflectance: Reals = (across**2 + along**2) / 2
    return reflectance


def _moved(
    sweep: Sweep, shown_m: Reals, range_m: Reals, intensity: NDArray[np.floating], invented: NDArray[np.bool_]
) -> Corrupted:
    """All points, those that something in the air returned at another range on the same ray."""
    scale = np.where(invented, shown_m / range_m.clip(min=1e-6), 1.0).astype(np.float32)
    source = np.where(invented, -1, np.arange(len(range_m)))
    return Corrupted(sweep.xyz_m * scale[:, None], intensity.astype(np.float32), source)
