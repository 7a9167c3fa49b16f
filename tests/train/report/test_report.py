"""A report carries everything with it, says what the run says, and cannot be made to run anything."""

from __future__ import annotations

import base64
import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from hilda_schema.errors import TrainError, UsageError
from hilda_train.evaluate.agreement import agreement
from hilda_train.evaluate.forecast import Forecast
from hilda_train.evaluate.restore import restore_run
from hilda_train.objectives.bev import FREE, OCCUPIED, UNOBSERVED, BevGrid
from hilda_train.report import write_report
from hilda_train.report.figures import FALSE_ALARM, HIT, MISS, UNSEEN, draw_forecasts, outcome
from hilda_train.report.page import Section, page, picture, table
from hilda_train.runlog import read_log


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: dict[str, list[list[str]]] = {}
        self.images: list[np.ndarray] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [values[key] for key in ("src", "href") if key in values]
        if tag == "img":
            assert values["alt"]
            data = values["src"].removeprefix("data:image/png;base64,")
            self.images.append(matplotlib.image.imread(io.BytesIO(base64.b64decode(data, validate=True)), format="png"))
        if tag == "a":
            data = values["href"].removeprefix("data:text/csv;base64,")
            text = base64.b64decode(data, validate=True).decode()
            self.links[values["download"]] = list(csv.reader(io.StringIO(text)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def run(fit, tmp_path):
    assert fit(tmp_path / "run", "train.max_steps=3", "data.held_out=[scene-0001]") == 0
    return tmp_path / "run"


def test_a_report_has_the_runs_numbers_and_needs_nothing_else(run, toy_cache):
    seen = Page(write_report(run, [str(toy_cache)], run / "report.html").read_text())
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
    assert len(seen.images) == 3
    assert all(image.std() > 0.02 for image in seen.images)  # something is drawn


def test_without_caches_there_are_curves_alone(run):
    seen = Page(write_report(run, [], run / "report.html").read_text())
    assert len(seen.images) == 1
    assert set(seen.links) == {"run.csv", "curves.csv"}


def test_pictures_come_along(run, tmp_path):
    made = tmp_path / "made.png"
    matplotlib.image.imsave(made, np.random.default_rng(0).random((5, 7, 3)))
    seen = Page(write_report(run, [], run / "report.html", [made]).read_text())
    np.testing.assert_array_equal(seen.images[0], matplotlib.image.imread(made))


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
    assert seen.links["evaluations.csv"] == [
        ["", "random", "hilda"],
        ["mIoU, %", "10.0", "25.0"],
        ["accuracy, %", "50.0", "50.0"],
        ["car", "10.0", "25.0"],
        ["bus", "'-", "'-"],
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("{"), "cannot read"),
        (lambda path: path.write_text("[1]"), "holds no result"),
        (lambda path: path.write_text('{"evaluation": "structure"}'), "holds no result"),
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


def test_names_from_strangers_stay_text():
    hostile = '<script>alert("x")</script>'
    text = page(hostile, [Section(hostile, table((hostile, "b"), [("=cmd()", hostile)], "t") + picture(b"", hostile))])
    assert "<script" not in text
    seen_csv = base64.b64decode(text.split("data:text/csv;base64,")[1].split('"')[0]).decode()
    assert list(csv.reader(io.StringIO(seen_csv)))[1][0] == "'=cmd()"


def test_numbers_are_whole_in_the_file_and_short_on_the_page():
    text = table(("a",), [(1 / 3,), (float("nan"),)], "t")
    assert "<td>0.333</td>" in text
    assert "0.3333333333333333" in base64.b64decode(text.split("base64,")[1].split('"')[0]).decode()


TRUTH = np.array([[OCCUPIED, OCCUPIED, FREE], [FREE, UNOBSERVED, UNOBSERVED], [FREE, FREE, FREE]], np.uint8)
FORESEEN = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], np.float32)


def test_every_cell_has_the_colour_of_what_became_of_it():
    forecast = Forecast("k", TRUTH, TRUTH, FORESEEN, BevGrid(3.0, 2.0))
    expected = np.zeros((3, 3, 3), np.uint8)
    expected[0] = HIT, MISS, FALSE_ALARM
    expected[1, 1:] = UNSEEN
    np.testing.assert_array_equal(outcome(forecast.foreseen, forecast), expected)


def test_forecasts_are_drawn_forwards_up_and_left_to_the_left():
    """One occupied cell ahead of the vehicle on its left is white in the upper left quarter of its panel alone."""
    truth = np.zeros((8, 8), np.uint8)
    truth[6, 6] = OCCUPIED  # x forwards, y to the left
    forecast = Forecast("key", truth, np.zeros_like(truth), np.zeros((8, 8), np.float32), BevGrid(8.0, 2.0))
    image = matplotlib.image.imread(io.BytesIO(draw_forecasts([forecast])), format="png")[..., :3]
    panel = image[int(0.2 * len(image)) :, image.shape[1] // 5 + 12 : 2 * image.shape[1] // 5 - 6]
    white = np.argwhere((panel > 0.98).all(axis=2))
    assert len(white) > 50
    assert (white.mean(axis=0) / panel.shape[:2] < 0.45).all()


def test_a_report_of_an_unknown_folder_is_one_line(zygote, tmp_path):
    process = zygote.start("report", tmp_path / "nothing")
    assert process.wait() != 0
    assert "holds no run" in process.said
    assert "Traceback" not in process.said
    assert not Path(tmp_path / "nothing").exists()
