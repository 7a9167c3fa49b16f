"""A short run on a toy cache with one scene held out, and what it restores to."""

from __future__ import annotations

import pytest

HELD_OUT = "data.held_out=[scene-0001]"


@pytest.fixture
def short_run(fit, tmp_path):
    """Three steps; do not change it."""
    out = tmp_path / "run"
    assert fit(out, "train.max_steps=3", HELD_OUT) == 0
    return out


@pytest.fixture
def restored(short_run, toy_cache):
    """The run brought back."""
    from hilda_train.evaluate.restore import restore_run

    return restore_run(short_run, [str(toy_cache)])


@pytest.fixture(scope="session")
def in_range_of():
    """in_range_of(restored, (N, 3) points) -> (N,) bool: within the student's range."""

    def within(restored, xyz_m):
        low, high = restored.prepared.config.student.range_m
        return ((xyz_m >= low) & (xyz_m < high)).all(axis=1)

    return within
