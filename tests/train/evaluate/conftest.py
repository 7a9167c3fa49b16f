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


CLASS_FILE = """
about: the toy drive
classes: [road, post]
datasets: {toy: {ignored: [], road: [1], post: [2]}}
"""


@pytest.fixture(scope="session")
def toy_classes(tmp_path_factory):
    """A class file for toy caches."""
    path = tmp_path_factory.mktemp("classes") / "toy.yaml"
    path.write_text(CLASS_FILE)
    return str(path)


@pytest.fixture(scope="session")
def unlabelled_cache(tmp_path_factory):
    """A toy cache whose points have no labels."""
    from dataclasses import replace

    from hilda_schema.testing import tiny_parts, tiny_recipe
    from hilda_schema.writer import finish_store, start_store, write_part

    recipe, path = tiny_recipe(), tmp_path_factory.mktemp("unlabelled") / "cache"
    parts = [
        replace(part, frames=tuple(replace(frame, label=None) for frame in part.frames))
        for part in tiny_parts(recipe, scenes=2, frames=5, points=50)
    ]
    start_store(path, recipe, planned_parts=len(parts))
    finish_store(path, recipe, [write_part(path, recipe, part) for part in parts])
    return path


@pytest.fixture(scope="session")
def echo():
    """echo(channels): a backbone that gives points back what a test writes beside them: a head on it that fails does so
    by its own fault."""
    import torch

    from hilda_train.students.student import Level, Student

    class Echo(Student):
        def __init__(self, channels):
            super().__init__()
            self.channels = (channels,)
            self.register_buffer("unused", torch.zeros(1))

        def encode(self, batch):
            return [Level.of_points(batch.feats, batch)]

    return Echo


@pytest.fixture(scope="session")
def overfit():
    """overfit(model, seen, steps): train a head on few examples."""
    import torch

    def learn(model, seen, steps, lr=1e-2):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
        model.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad()
            model.loss(seen).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
        model.eval()

    return learn
