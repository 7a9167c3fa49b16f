"""Pages are text that cannot be made to run or fetch anything, with tables that are tables."""

from __future__ import annotations

import base64
import csv
import io
from html.parser import HTMLParser

import pytest

from hilda_schema.page import Section, Share, download, folded, page, paragraph, picture, ramp, swatches, table, wide

HOSTILE = '<script>alert("x")</script>\'" onload="alert(1)'


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def rows_of(text: str) -> list[list[str]]:
    data = base64.b64decode(text.split("data:text/csv;base64,")[1].split('"')[0]).decode()
    return list(csv.reader(io.StringIO(data)))


def test_names_from_strangers_stay_text() -> None:
    body = "".join(
        (
            paragraph(HOSTILE), table((HOSTILE, "b"), [("=cmd()", HOSTILE)], HOSTILE, HOSTILE),
            picture(b"", HOSTILE, HOSTILE), folded(HOSTILE, HOSTILE), swatches((("#ffffff", HOSTILE),)),
            ramp(("#000000",), HOSTILE, HOSTILE, HOSTILE), wide("", HOSTILE), download(("a",), [], HOSTILE),
        )
    )  # fmt: skip
    text = page(HOSTILE, [Section(HOSTILE, body)])
    tags = Tags(text).found
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert {attributes["alt"] for tag, attributes in tags if tag == "img"} == {HOSTILE}
    assert rows_of(text)[1] == ["'=cmd()", HOSTILE]


def test_a_browser_is_told_to_fetch_and_run_nothing() -> None:
    (policy,) = (a["content"] for tag, a in Tags(page("t", [])).found if "http-equiv" in a)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "script-src" not in rules


def test_a_table_is_a_table() -> None:
    text = table(("name", "n"), [("a", 1), ("b", 2)], "t", "About")
    tags = Tags(text).found
    heads = [attributes.get("scope") for tag, attributes in tags if tag == "th"]
    assert heads == ["col", "col", "row", "row"]
    assert [tag for tag, _ in tags].count("td") == 2
    assert "<caption>About</caption>" in text
    assert rows_of(text) == [["name", "n"], ["a", "1"], ["b", "2"]]


def test_numbers_are_whole_in_the_file_and_short_on_the_page() -> None:
    text = table(("a", "b"), [("x", 1 / 3), ("y", float("nan"))], "t")
    assert "<td>0.333</td>" in text
    assert rows_of(text)[1] == ["x", "0.3333333333333333"]


@pytest.mark.parametrize(("value", "width"), [(0.25, "25.0"), (1.5, "100.0"), (-0.1, "0.0")])
def test_a_share_has_a_bar_of_its_size(value: float, width: str) -> None:
    text = table(("a", "b"), [("x", Share(value))], "t")
    (bar,) = (attributes["style"] for tag, attributes in Tags(text).found if tag == "i")
    assert bar == f"width:{width}%"
    assert f">{100 * value:.1f}<" in text
    assert float(rows_of(text)[1][1]) == pytest.approx(100 * value)


def test_a_share_that_is_not_known_has_no_bar() -> None:
    text = table(("a", "b"), [("x", Share(None))], "t")
    assert not [tag for tag, _ in Tags(text).found if tag == "i"]
    assert rows_of(text)[1] == ["x", ""]
