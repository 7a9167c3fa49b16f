"""HTML by hand: a page is a list of sections, and everything in it is escaped, inlined and readable without network."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #59636e; --paper: #ffffff; --ink: #1f2328; --link: #0969da; }
@media (prefers-color-scheme: dark) {
  :root { --line: #30363d; --soft: #9198a1; --paper: #0d1117; --ink: #e6edf3; --link: #4493f8; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, figcaption, summary { color: var(--soft); max-width: 60rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 6px; font-size: .85rem; }
a { color: var(--link); }
""".strip()


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it, as HTML."""

    title: str
    body: str


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    body = "\n".join(f"<section>\n<h2>{html.escape(each.title)}</h2>\n{each.body}\n</section>" for each in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def picture(png: bytes, caption: str) -> str:
    """A PNG with its caption, which is also what a screen reader says."""
    data = base64.b64encode(png).decode()
    words = html.escape(caption, quote=True)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], name: str) -> str:
    """A table, and the same as a CSV file to download.

    Args:
        header: names of the columns.
        rows: cells; floats are shown with three digits, and in full in the file.
        name: of the file, without suffix.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>\n{download(header, rows, name)}'


def download(header: Sequence[str], rows: Sequence[Sequence[object]], name: str) -> str:
    """A link to a CSV file that lies in the page itself."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([_harmless(cell) for cell in header])
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    data = base64.b64encode(text.getvalue().encode()).decode()
    return (
        f'<p><a download="{html.escape(name)}.csv" href="data:text/csv;base64,{data}">{html.escape(name)}.csv</a></p>'
    )


def folded(summary: str, text: str) -> str:
    """Preformatted text that is shown when it is asked for."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def _shown(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _harmless(cell: object) -> object:
    """A name from a dataset must not become a formula in somebody's spreadsheet."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell
