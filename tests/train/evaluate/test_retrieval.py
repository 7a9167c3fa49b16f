"""`hilda-train retrieve`: what is found is the most alike by a naive search; the picture; mistakes."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hilda_schema import open_cache
from hilda_schema.errors import UsageError
from hilda_train.cli import app
from hilda_train.data.scans import ScanOptions
from hilda_train.evaluate.retrieval import limits, retrieve
from hilda_train.students.points import PointBatch
from hilda_train.students.student import Level, Student


class Heights(Student):
    """A feature that turns with a point's height."""

    channels = (2,)

    def encode(self, batch: PointBatch) -> list[Level]:
        z = batch.xyz_m[:, 2]
        return [Level.of_points(5 * torch.stack([z.cos(), z.sin()], dim=1), batch)]


OPTIONS = ScanOptions(grid=None, channels=("xyz",))


def test_the_most_alike_points_are_those_of_a_naive_search(toy_cache):
    cache = open_cache(toy_cache)
    found = list(retrieve(Heights(), OPTIONS, cache, 6, 11, 4))
    asked = cache[6]
    assert found[0].key == str(asked.key)
    assert (found[0].best, found[0].after_s) == (11, 0.0)
    assert len({each.key for each in found}) == len(found)
    z = asked.points.xyz_m[11, 2]
    for each in found:
        frame = cache.find(each.key)
        height = frame.points.xyz_m[:, 2]
        np.testing.assert_allclose(each.cosine, np.cos(height - z), atol=1e-5)
        assert each.after_s == (frame.stamp_ns - asked.stamp_ns) / 1e9
        if each is not found[0]:
            assert each.cosine[each.best] == max(each.cosine)
        seen = frame.pairs.point
        if each.shown >= 0:
            camera = frame.camera_names.index(each.camera)
            assert camera in frame.pairs.camera[seen == each.shown]
            np.testing.assert_array_equal(each.uv_px, frame.pairs.uv_px[frame.pairs.camera == camera])
            if each.shown != each.best:
                assert each.best not in seen
                assert each.cosine[each.shown] == max(each.cosine[seen])
        else:
            assert not len(seen)
    low, high = limits(found)
    assert low < high <= 1 + 1e-6


def test_the_command_draws_the_same_bytes_again(short_run, toy_cache, tmp_path):
    pictures = []
    near = str(int(np.abs(open_cache(toy_cache)[1].points.xyz_m).max(axis=1).argmin()))
    for name in ("a.png", "b.png"):
        out = tmp_path / name
        words = ["retrieve", str(short_run), "-c", str(toy_cache), "--frame", "1", "--point", near, "-o", str(out)]
        done = CliRunner().invoke(app, [*words, "--frames", "3"])
        assert done.exit_code == 0, done.exception
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1]
    assert matplotlib.image.imread(io.BytesIO(pictures[0])).std() > 0.05


def test_mistakes_are_said(toy_cache, short_run, tmp_path):
    cache = open_cache(toy_cache)
    for frame, point, said in ((99, 0, "there is no frame 99"), (0, 10**6, "there is no point 1000000")):
        with pytest.raises(UsageError, match=said):
            list(retrieve(Heights(), OPTIONS, cache, frame, point, 3))
    from hilda_train.evaluate.backbones import config_of
    from hilda_train.evaluate.sweeps import sweep_scan_options

    options = sweep_scan_options(config_of(str(short_run), None), {}, None)
    low, high = options.grid.range_m
    xyz_m = cache[0].points.xyz_m
    outside = np.flatnonzero(~((xyz_m >= low) & (xyz_m < high)).all(axis=1))
    with pytest.raises(UsageError, match=f"does not see point {outside[0]} of frame toy/"):
        list(retrieve(Heights(), options, cache, 0, int(outside[0]), 3))
    words = ["retrieve", str(short_run), "-c", str(toy_cache), "--frame", "0", "--point", "0", "-o"]
    done = CliRunner().invoke(app, [*words, str(tmp_path / "x.jpg")])
    assert isinstance(done.exception, UsageError)
