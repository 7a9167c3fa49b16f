"""A recording holds the points of the cache in the colours of the pictures, as the Rerun library reads them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hilda_cache.show import Wanted, show_recording
from hilda_cache.show.paint import feature_paints
from hilda_schema import open_cache
from hilda_schema.testing import tiny_cache

PHOTO = np.full((96, 160, 3), (40, 90, 200), np.uint8)


def test_a_recording_holds_what_the_pictures_show(tmp_path: Path) -> None:
    chunk = pytest.importorskip("rerun.chunk", reason="rerun-sdk is not installed: pip install 'hilda-lidar[rerun]'")
    cache = open_cache(tiny_cache(tmp_path / "cache"))
    show_recording(cache, Wanted(0, "cnn"), tmp_path / "frame.rrd", {"FRONT": PHOTO})
    found = {}
    for each in chunk.RrdReader(tmp_path / "frame.rrd").stream():
        if not each.entity_path.startswith("/__"):
            found[each.entity_path] = each.to_record_batch()
    cameras, layers = cache.camera_names, ("stage1", "stage2")
    assert set(found) == {
        "/cameras/FRONT/image",
        *(f"/cameras/{camera}/{layer}" for camera in cameras for layer in layers),
        *(f"/sweep/{layer}" for layer in layers),
    }

    def column(entity: str, name: str) -> np.ndarray:
        batch = found[entity]
        (field,) = (field for field in batch.schema.names if field.endswith(name))
        values = batch.column(field)[0].values
        return np.array(values.to_pylist())

    frame = cache[0]
    paint = feature_paints(frame, "cnn", ["stage2"])[0]
    seen = np.isfinite(paint.point_rgb).all(axis=1)
    np.testing.assert_array_equal(column("/sweep/stage2", ":positions"), frame.points.xyz_m[seen])
    red, green, blue = np.rint(255 * paint.point_rgb[seen]).astype(np.int64).T
    np.testing.assert_array_equal(column("/sweep/stage2", ":colors"), (red << 24) | (green << 16) | (blue << 8) | 255)
    mine = paint.pairs.camera == 0
    expected = (paint.pairs.uv_px[mine] + 0.5).astype(np.float32)  # the viewer's pixels begin at 0, ours at -0.5
    np.testing.assert_array_equal(column("/cameras/FRONT/stage2", ":positions"), expected)


def test_without_the_library_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from hilda_schema.errors import UsageError

    monkeypatch.setitem(sys.modules, "rerun", None)
    monkeypatch.delitem(sys.modules, "hilda_cache.show.recording", raising=False)
    cache = open_cache(tiny_cache(tmp_path / "cache", scenes=1, frames=1))
    with pytest.raises(UsageError, match="a recording needs rerun") as caught:
        show_recording(cache, Wanted(0), tmp_path / "frame.rrd")
    assert "hilda-lidar[rerun]" in caught.value.remedy
    assert not (tmp_path / "frame.rrd").exists()
