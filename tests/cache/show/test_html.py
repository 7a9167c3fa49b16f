"""A page of a frame carries everything with it, shows what the cache holds, and works without a script."""

from __future__ import annotations

import base64
import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hilda_cache.show import Wanted, show_page
from hilda_cache.show.html import DPI, WIDTH
from hilda_cache.show.paint import cameras_per_point
from hilda_schema import open_cache
from hilda_schema.colours import pca_colours
from hilda_schema.errors import UsageError
from hilda_schema.reader import Cache, Frame
from hilda_schema.testing import tiny_cache


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.whole, self.tags, self.addresses = text, [], []
        self.images: dict[str, Image.Image] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[key] for key in ("src", "href", "srcset", "action") if key in values]
        if tag == "img":
            data = str(values["src"]).removeprefix("data:image/png;base64,")
            assert values["alt"] not in self.images
            self.images[str(values["alt"])] = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        if tag == "a":
            data = base64.b64decode(str(values["href"]).removeprefix("data:text/csv;base64,"), validate=True)
            self.tables[str(values["download"])] = list(csv.reader(io.StringIO(data.decode())))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(tiny_cache(tmp_path_factory.mktemp("store") / "cache"))


PHOTO = np.full((96, 160, 3), (40, 90, 200), np.uint8)


@pytest.fixture(scope="module")
def written(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "frame.html"
    show_page(cache, Wanted(0, "cnn"), out, {"FRONT": PHOTO})
    return out


@pytest.fixture(scope="module")
def seen(written: Path) -> Page:
    return Page(written.read_text())


def test_a_page_needs_nothing_else(seen: Page) -> None:
    assert all(str(address).startswith("data:") for address in seen.addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(seen.tags)
    assert "http:" not in seen.whole.replace("http-equiv", "")
    assert "https:" not in seen.whole
    assert seen.whole.count("url(") == seen.whole.count("url(data:image/webp;base64,") == 1  # one photo, once
    assert "default-src 'none'" in seen.whole


def test_all_views_of_all_layers_are_there(seen: Page, cache: Cache) -> None:
    frame = cache[0]
    visible = np.bincount(frame.pairs.camera[frame.pairs.visible], minlength=3)
    everything = np.bincount(frame.pairs.camera, minlength=3)
    expected = set()
    for number, name in enumerate(frame.camera_names):
        expected |= {
            f"{kind}, layer {layer}: {visible[number]:,} points as {name} sees them"
            for layer in ("stage1", "stage2")
            for kind in ("features", "similarity")
        }
        expected.add(f"coverage, all cameras: {visible[number]:,} points as {name} sees them")
        expected.add(f"occlusion, all cameras: {everything[number]:,} points as {name} sees them")
    assert expected <= set(seen.images)
    sweeps = [alt for alt in seen.images if "from above" in alt]
    assert len(sweeps) == 6
    assert sum("from behind" in alt for alt in seen.images) == 2


def test_points_lie_over_the_photo_in_their_colours(seen: Page, cache: Cache) -> None:
    frame = cache[0]
    visible = frame.pairs.visible
    colours = pca_colours(frame.point_features("cnn", "stage2")[visible])
    mine = np.flatnonzero(frame.pairs.camera[visible] == 0)
    nearest = mine[frame.pairs.depth_m[visible][mine].argmin()]
    (alt,) = (alt for alt in seen.images if alt.startswith("features, layer stage2") and "FRONT" in alt)
    image = np.asarray(seen.images[alt].convert("RGBA")).astype(int)
    assert image.shape[1] == WIDTH * DPI
    u, v = frame.pairs.uv_px[visible][nearest]
    found = image[int((v + 0.5) / 96 * len(image)), int((u + 0.5) / 160 * image.shape[1])]
    np.testing.assert_allclose(found[:3], 255 * colours[nearest], atol=24)  # a palette of 128 colours
    assert found[3] > 248
    assert (image[..., 3] == 0).mean() > 0.5  # elsewhere the photo is seen


def test_its_tables_are_naive_counts(seen: Page, cache: Cache) -> None:
    frame = cache[0]
    count = cameras_per_point(frame).tolist()
    header, *rows = seen.tables["coverage.csv"]
    assert header == ["cameras", "points", "share"]
    assert [(int(a), int(b)) for a, b, _ in rows] == [(k, count.count(k)) for k in range(max(count) + 1)]
    assert sum(float(share) for *_, share in rows) == pytest.approx(1)
    for number, row in enumerate(seen.tables["cameras.csv"][1:]):
        mine = frame.pairs.visible[frame.pairs.camera == number]
        assert row[0] == frame.camera_names[number]
        assert [int(cell) for cell in row[2:]] == [len(mine), mine.sum(), (~mine).sum()]


def test_the_same_frame_has_the_same_page(written: Path, cache: Cache, tmp_path: Path) -> None:
    show_page(cache, Wanted(0, "cnn"), tmp_path / "again.html", {"FRONT": PHOTO})
    assert (tmp_path / "again.html").read_bytes() == written.read_bytes()


def test_a_frame_without_pairs_has_no_similarity(cache: Cache, tmp_path: Path) -> None:
    empty: Frame = next(frame for frame in cache if not len(frame.pairs))
    show_page(cache, Wanted(empty.index, "vit", ("4",)), tmp_path / "empty.html")
    assert "Similarity" not in (tmp_path / "empty.html").read_text()
    with pytest.raises(UsageError, match="no camera sees a point 3"):
        show_page(cache, Wanted(empty.index, "vit", ("4",), point=3), tmp_path / "never.html")
    assert not (tmp_path / "never.html").exists()


def test_a_browser_shows_one_layer_at_a_time(chromium, opens_well, written: Path) -> None:
    opens_well(written)
    seen = chromium.open(written, 1440)
    shown = "[...document.querySelectorAll('.layer')].map(e => getComputedStyle(e).display != 'none')"
    assert seen.evaluate(shown) == [False, True] * 2  # of features and of similarity: the last layer first
    seen.evaluate("document.querySelector('#layer-0').click()")
    assert seen.evaluate(shown) == [True, False] * 2
    rig = "getComputedStyle(document.querySelector('.rig')).gridTemplateColumns.split(' ').length"
    assert seen.evaluate(rig) > 1
    assert chromium.open(written, 390).evaluate(rig) == 1
