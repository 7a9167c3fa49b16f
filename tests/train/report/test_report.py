"""A report carries everything with it, says what the run says, and cannot be made to run anything."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from hilda_schema.errors import TrainError, UsageError
from hilda_train.evaluate.agreement import agreement, disagreement, predict
from hilda_train.evaluate.forecast import Forecast, forecast
from hilda_train.evaluate.restore import restore_run, spread
from hilda_train.objectives.bev import FREE, OCCUPIED, UNOBSERVED, BevGrid
from hilda_train.report import write_report
from hilda_train.report.figures import (
    FALSE_ALARM,
    FREE_CELL,
    HIT,
    MISS,
    UNOBSERVED_CELL,
    draw_forecasts,
    draw_sweep,
    mapped,
    outcome,
    upright,
)
from hilda_train.report.sections import consecutive
from hilda_train.runlog import read_log

DISAGREE = "where they disagree: 1 - cosine, bright for more"


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: dict[str, list[list[str]]] = {}
        self.images: dict[str, np.ndarray] = {}
        self.bars: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        if tag == "img":
            kind, data = values["src"].removeprefix("data:image/").split(";base64,")
            assert kind in {"png", "webp"}
            self.images[values["alt"]] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
        if tag == "i":
            self.bars.append(values["style"])
        if tag == "a":
            data = values["href"].removeprefix("data:text/csv;base64,")
            text = base64.b64decode(data, validate=True).decode()
            self.links[values["download"]] = list(csv.reader(io.StringIO(text)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(fit, trained, tmp_path):
    """A copy of one run of three steps."""
    if not trained.exists():
        assert fit(trained, "train.max_steps=3", "data.held_out=[scene-0001]") == 0
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def with_caches(run, trained, toy_cache):
    """The report of that run with everything that a cache gives; do not change it."""
    out = trained.parent / "report.html"
    return out if out.exists() else write_report(run, [str(toy_cache)], out)


def test_a_report_has_the_runs_numbers_and_needs_nothing_else(run, toy_cache, with_caches):
    seen = Page(with_caches.read_text())
    assert all(address.startswith("data:") for address in seen.addresses)
    assert not {"script", "link", "iframe"} & set(seen.tags)
    assert "held-out scenes" in seen.text

    header, *rows = seen.links["curves.csv"]
    for row, line in zip(rows, read_log(run / "log.jsonl"), strict=True):
        told = dict(zip(header, row, strict=True))
        assert {name: float(told[name]) for name in ("step", "loss", "point", "global", "occupancy")} == {
            name: line[name] for name in ("step", "loss", "point", "global", "occupancy")
        }

    restored = restore_run(run, [str(toy_cache)])
    found = [agreement(restored, clip) for clip in restored.clips]
    _, *rows = seen.links["agreement.csv"]
    assert [row[0] for row in rows] == list(found[0])
    for name, student, constant in rows:
        first, *others = (each[name] for each in found)
        total = sum(others, first)
        assert float(student) == pytest.approx(total.student)
        assert float(constant) == pytest.approx(total.constant)
    assert [row[0] for row in seen.links["forecast.csv"][1:]] == ["all cells", "around a change"]
    assert all(image.std() > 3 for image in seen.images.values())  # something is drawn


def test_every_curve_can_be_downloaded_and_is_drawn(run):
    seen = Page(write_report(run, [], run / "report.html").read_text())
    lines = read_log(run / "log.jsonl")
    for name in ("loss", "point", "global", "occupancy", "lr"):
        header, *rows = seen.links[f"{name}.csv"]
        assert header == ["step", name]
        assert [(int(step), float(value)) for step, value in rows] == [(line["step"], line[name]) for line in lines]
        assert sum(alt.startswith(f"{name}: ") for alt in seen.images) == 1
    assert set(seen.links) >= {"run.csv", "curves.csv"}
    assert not any("teacher" in alt or "sweep" in alt for alt in seen.images)  # without caches


def test_teacher_student_and_where_they_disagree_are_drawn(run, toy_cache, with_caches):
    seen = Page(with_caches.read_text())
    cameras = [name for name in ("FRONT", "LEFT", "BACK") if f"{name}: teacher" in seen.images]
    assert len(cameras) >= 2
    for name in cameras:
        assert (seen.images[f"{name}: teacher"] != seen.images[f"{name}: student"]).any()
    assert {"teacher, from above, forwards up", "student", DISAGREE} <= set(seen.images)
    restored = restore_run(run, [str(toy_cache)])
    judged = spread(restored.clips, 6)
    apart = disagreement(predict(restored, judged[len(judged) // 2]))
    most = np.percentile(apart[np.isfinite(apart)], 99)
    assert f"1 - cosine of student and teacher: 0{most:.2f}" in seen.text


def test_disagreement_is_one_minus_the_cosine(run, toy_cache):
    restored = restore_run(run, [str(toy_cache)])
    seen = predict(restored, restored.clips[1])
    apart = disagreement(seen)
    assert len(apart) == len(seen.xyz_m)
    for point in range(len(apart)):
        rows = np.flatnonzero(seen.point == point)
        cosines = [
            float(np.dot(s, t) / np.linalg.norm(s) / np.linalg.norm(t))
            for s, t in zip(seen.student[rows].astype(float), seen.teacher[rows].astype(float), strict=True)
        ]
        assert np.isnan(apart[point]) if not cosines else apart[point] == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert np.isfinite(apart).any()
    assert np.isnan(apart).any()


def test_the_film_shows_consecutive_sweeps_of_one_scene(run, toy_cache, with_caches):
    seen = Page(with_caches.read_text())
    restored = restore_run(run, [str(toy_cache)])
    clips = consecutive(restored, [clip for clip in restored.clips if clip.whole])
    stamps = [restored.prepared.caches[0][clip.current].stamp_ns for clip in clips]
    assert stamps == sorted(stamps)
    assert len({restored.prepared.caches[0][clip.current].key.scene for clip in clips}) == 1
    reels = [image for alt, image in seen.images.items() if alt.startswith(f"{len(clips)} sweeps one after the other")]
    assert len(reels) == 4
    cells = restored.prepared.dataset.options.bev.cells
    assert {reel.shape[:2] for reel in reels} == {(len(clips) * cells, cells)}
    truth = [forecast(restored, clip).truth for clip in clips]
    came = reels[1].reshape(len(clips), cells, cells, 3)
    for frame, cells_at_t1 in zip(came, truth, strict=True):  # the toy's forwards is x
        np.testing.assert_array_equal((frame == 255).all(-1), (cells_at_t1 == OCCUPIED)[::-1, ::-1])


def test_a_browser_opens_it_well_and_moves_less_where_asked(chromium, opens_well, run, toy_cache, tmp_path):
    results = [result_file(tmp_path / "random.json", 0.1), result_file(tmp_path / "hilda.json", 0.25)]
    made = tmp_path / "made.png"
    matplotlib.image.imsave(made, np.random.default_rng(0).random((50, 700, 3)))
    page = write_report(run, [str(toy_cache)], run / "report.html", [made], results)
    opens_well(page)
    reel = "getComputedStyle(document.querySelector('.reel img'))"
    moving = chromium.open(page, 1440)
    assert moving.evaluate(f"{reel}.animationName") == "reel"
    steps = moving.evaluate(f"{reel}.animationTimingFunction")
    assert int(steps.removeprefix("steps(").split(",")[0].rstrip(")")) >= 1
    moving.evaluate("document.querySelector('.film input').click()")
    assert moving.evaluate(f"{reel}.animationPlayState") == "paused"
    still = chromium.open(page, 390, less_motion=True)
    assert still.evaluate(f"{reel}.animationName") == "none"
    assert still.evaluate("getComputedStyle(document.querySelector('.reel')).overflowY") == "auto"


def test_pictures_come_along(run, tmp_path):
    made = tmp_path / "made.png"
    matplotlib.image.imsave(made, np.random.default_rng(0).random((5, 7, 3)))
    seen = Page(write_report(run, [], run / "report.html", [made]).read_text())
    np.testing.assert_array_equal(seen.images["made"][..., :3], np.asarray(Image.open(made))[..., :3])


def result_file(path, miou, classes="synthetic", **other):
    rows = [{"name": "car", "iou": miou, "points": 5, "predicted": 4}, {"name": "bus", "iou": None, "points": 0}]
    result = {
        "evaluation": "probe", "miou": miou, "accuracy": 0.5, "classes": classes, "per_class": rows, "seed": 0,
        "protocol": {"name": "quick"}, "train": {"frames": 4}, "test": {"frames": 2}, **other,
    }  # fmt: skip
    path.write_text(json.dumps(result))
    return path


def test_results_stand_beside_each_other(run, tmp_path):
    results = [result_file(tmp_path / "random.json", 0.1), result_file(tmp_path / "hilda.json", 0.25)]
    seen = Page(write_report(run, [], run / "report.html", results=results).read_text())
    header, *rows = seen.links["evaluations.csv"]
    assert header == ["class", "random", "hilda"]
    assert [(name, *(float(cell) for cell in cells if cell)) for name, *cells in rows] == [
        ("mIoU, %", 10.0, 25.0),
        ("accuracy, %", 50.0, 50.0),
        ("car", 10.0, 25.0),
        ("bus",),
    ]
    assert seen.bars == [f"width:{width}%" for width in ("10.0", "25.0", "50.0", "50.0", "10.0", "25.0")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("{"), "cannot read"),
        (lambda path: path.write_text("[1]"), "holds no result"),
        (lambda path: path.write_text('{"evaluation": "structure"}'), "holds no result"),
        (lambda path: path.write_text('{"evaluation": "probe"}'), "'miou'. is amiss"),
        (lambda path: result_file(path, "much"), "is amiss"),
        (lambda path: result_file(path, 0.2, per_class=[{"name": "car"}]), "is amiss"),
        (lambda path: result_file(path, 0.2, classes="coarse8"), "about the classes coarse8, not synthetic"),
    ],
)
def test_a_result_that_cannot_be_shown_is_named(run, tmp_path, make, message):
    good = result_file(tmp_path / "good.json", 0.1)
    make(tmp_path / "bad.json")
    with pytest.raises(UsageError, match=message):
        write_report(run, [], run / "report.html", results=[good, tmp_path / "bad.json"])
    assert not (run / "report.html").exists()


def test_what_cannot_be_reported_is_said_and_no_file_is_left(run, toy_cache, tmp_path):
    with pytest.raises(TrainError, match="holds no run"):
        write_report(tmp_path, [], tmp_path / "r.html")
    (tmp_path / "text.png").write_text("not a picture")
    for wrong in (tmp_path / "text.png", tmp_path / "missing.png"):
        with pytest.raises(UsageError, match=wrong.name):
            write_report(run, [], tmp_path / "r.html", [wrong])
    with pytest.raises(UsageError, match="cannot write"):
        write_report(run, [], tmp_path / "no" / "folder" / "r.html")
    (run / "log.jsonl").write_text("")
    with pytest.raises(TrainError, match="no curve yet"):
        write_report(run, [str(toy_cache)], tmp_path / "r.html")
    assert not list(tmp_path.glob("*r.html*"))


TRUTH = np.array([[OCCUPIED, OCCUPIED, FREE], [FREE, UNOBSERVED, UNOBSERVED], [FREE, FREE, FREE]], np.uint8)
FORESEEN = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], np.float32)


def test_every_cell_has_the_colour_of_what_became_of_it():
    forecast = Forecast("k", TRUTH, TRUTH, FORESEEN, BevGrid(3.0, 2.0))
    expected = np.full((3, 3, 3), FREE_CELL, np.uint8)
    expected[0] = HIT, MISS, FALSE_ALARM
    expected[1, 1:] = UNOBSERVED_CELL
    np.testing.assert_array_equal(outcome(forecast.foreseen, forecast), expected)


def test_forecasts_are_drawn_forwards_up_and_left_to_the_left():
    """One occupied cell ahead of the vehicle on its left is white in the upper left quarter of its panel alone."""
    truth = np.zeros((8, 8), np.uint8)
    truth[6, 6] = OCCUPIED  # x forwards, y to the left
    forecast = Forecast("key", truth, np.zeros_like(truth), np.zeros((8, 8), np.float32), BevGrid(8.0, 2.0))
    image = matplotlib.image.imread(io.BytesIO(draw_forecasts([forecast])), format="png")[..., :3]
    height, width = image.shape[:2]
    panel = image[int(0.2 * height) : int(0.9 * height), int(0.24 * width) : int(0.38 * width)]
    white = np.argwhere((panel > 0.98).all(axis=2))
    assert len(white) > 50
    assert (white.mean(axis=0) / panel.shape[:2] < 0.45).all()


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, -1])
def test_cells_are_turned_so_that_forwards_is_up(quarters):
    """A cell ahead and to the left is in the upper left corner, whichever axis of the LiDAR looks ahead."""
    turn = quarters * np.pi / 2
    ahead, left = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    x, y = np.rint(2 * ahead + 1 * left).astype(int)
    cells = np.zeros((5, 5, 3), np.uint8)
    cells[2 + x, 2 + y] = 255
    assert np.argwhere(upright(cells, quarters)[..., 0]).tolist() == [[0, 1]]


def test_on_the_sweep_points_have_their_colours_and_unknown_ones_are_grey():
    xy_m = np.array([[5.0, 5.0], [-5.0, 5.0]])
    image = Image.open(io.BytesIO(draw_sweep(xy_m, np.zeros(2), np.array([[1.0, 0, 0], [np.nan] * 3]), 15.0)))
    seen = np.asarray(image.convert("RGB")).astype(int)
    size = len(seen)
    row, right, left = round(size / 3), round(size * 2 / 3), round(size / 3)
    about = seen[row - 4 : row + 5, right - 4 : right + 5].reshape(-1, 3)
    assert (about[:, 0] - about[:, 1]).max() > 150
    about = seen[row - 4 : row + 5, left - 4 : left + 5].reshape(-1, 3)
    assert np.ptp(about, axis=1).max() < 40


def test_colours_of_values_end_at_the_ends_and_keep_what_is_unknown():
    found = mapped(np.array([-1.0, 0.0, 0.5, 1.0, 2.0, np.nan]), "inferno", 0.0, 1.0)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[3], found[4])
    assert np.isnan(found[5]).all()
    np.testing.assert_allclose(found[2], matplotlib.colormaps["inferno"](0.5)[:3])


def test_a_report_of_an_unknown_folder_is_one_line(zygote, tmp_path):
    process = zygote.start("report", tmp_path / "nothing")
    assert process.wait() != 0
    assert "holds no run" in process.said
    assert "Traceback" not in process.said
    assert not Path(tmp_path / "nothing").exists()
