"""Pictures of a real drive through a real teacher: what is counted and drawn is what the cache holds."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.show.paint import cameras_per_point
from hilda_cache.show.picture import DPI
from hilda_schema import open_cache

pytestmark = pytest.mark.slow


def run(*words: object) -> None:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code in (0, None), done.output


def test_every_view_of_a_real_keyframe_is_drawn(sample_data: Path, tmp_path: Path) -> None:
    drive, store = sample_data / "data" / "nuscenes_keyframe", tmp_path / "cache"
    teacher = sample_data / "weights" / "efficientvit-b0-cityscapes" / "efficientvit_b0.py"
    words = ("--option", "version=v1.0-test", "--layers", "stage2,stage4", "--image-size", "288x512", "-w", 1)
    run("extract", drive, "-d", "nuscenes", "-t", f"evit={teacher}:teacher", *words, "-o", store)
    for view in ("cameras", "bev", "perspective", "coverage", "occlusion", "similarity"):
        run("show", store, "--root", drive, "--view", view, "-o", tmp_path / f"{view}.png")
        image = Image.open(io.BytesIO((tmp_path / f"{view}.png").read_bytes())).convert("RGB")
        assert image.width in (3.5 * DPI, 7 * DPI)
        assert np.asarray(image).std() > 20
    run("show", store, "--root", drive, "--html", tmp_path / "frame.html")
    text, frame = (tmp_path / "frame.html").read_text(), open_cache(store)[0]
    assert text.count("url(data:image/webp;base64,") == 6  # every camera's photo once
    for number, name in enumerate(frame.camera_names):
        count = int((frame.pairs.visible & (frame.pairs.camera == number)).sum())
        assert f"{name}: {count:,} points" in text
    seen = int((cameras_per_point(frame) > 0).sum())
    assert re.search(rf"{seen:,} of {len(frame.points):,} points are seen by a camera", text)
