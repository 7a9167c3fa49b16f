"""HTML by hand: a page is a list of sections, and everything in it is escaped, inlined and readable without network.

Both stages write pages. None runs a script or fetches anything, and each tells the browser to keep it so.
"""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hilda_schema.style import INK, LINE, PANEL, PAPER, SKY, SOFT

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = f"""
:root {{ color-scheme: light; --line: {LINE}; --soft: {SOFT}; --paper: {PAPER}; --ink: {INK}; --panel: {PANEL};
        --bar: {SKY}; --link: #0550ae; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 80rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
h3 {{ font-size: 1rem; margin: 1.4rem 0 .4rem; }}
p, figcaption, caption, summary {{ color: var(--soft); max-width: 60rem; }}
figure {{ margin: 0; min-width: 0; }} figcaption {{ font-size: .85rem; line-height: 1.35; margin-top: .25rem; }}
img {{ display: block; max-width: 100%; height: auto; border-radius: 4px; }}
.grid {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }}
.grid img {{ width: 100%; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
caption {{ text-align: left; font-size: .85rem; padding-bottom: .3rem; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }}
th:first-child {{ text-align: left; }} tbody th {{ font-weight: normal; }}
td.words, th.words {{ text-align: left; overflow-wrap: anywhere; }}
td.share {{ min-width: 4.5rem; }}
td.share i {{ display: block; height: .3rem; background: var(--bar); border-radius: 2px;
             print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
pre {{ overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 4px; font-size: .85rem;
      overflow-wrap: normal; }}
a {{ color: var(--link); }} a.csv {{ font-size: .85rem; }}
.key {{ display: inline-block; margin-right: .8rem; }}
.swatch {{ display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin: 0 .3em -.1em 0;
          border: 1px solid var(--line); print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.ramp {{ display: inline-block; width: 8rem; max-width: 40%; height: .8em; border-radius: 2px; margin: 0 .4em -.1em;
        print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
""".strip()


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it, as HTML."""

    title: str
    body: str


@dataclass(frozen=True, slots=True)
class Share:
    """A number from 0 to 1, shown as a percentage with a bar below; None where there is none."""

    value: float | None

    def __str__(self) -> str:
        return "-" if self.value is None else f"{100 * self.value:.1f}"


def page(title: str, sections: Sequence[Section], style: str = "") -> str:
    """The whole page.

    Args:
        title: plain text.
        sections: what stands on it.
        style: more CSS, of a program and not of a file.
    """
    body = "\n".join(f"<section>\n<h2>{html.escape(each.title)}</h2>\n{each.body}\n</section>" for each in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n{style}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{html.escape(text)}</p>"


def data_url(data: bytes, kind: str) -> str:
    """Bytes as an address that needs no network; `kind` is a media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(data: bytes, caption: str, alt: str = "", kind: Literal["png", "webp"] = "png") -> str:
    """A picture with its caption.

    Args:
        data: the file.
        caption: shown below.
        alt: what a screen reader says; the caption where it is empty.
        kind: of file.
    """
    words = html.escape(alt or caption, quote=True)
    image = f'<img alt="{words}" src="{data_url(data, f"image/{kind}")}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def grid(figures: Sequence[str]) -> str:
    """Figures side by side, as many as the window is wide enough for."""
    return f'<div class="grid">{"".join(figures)}</div>'


def wide(body: str, name: str) -> str:
    """Something that a narrow window scrolls sideways, by keyboard too, without the page doing so."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{html.escape(name, quote=True)}">{body}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], name: str, caption: str = "") -> str:
    """A table, and the same as a CSV file to download.

    Args:
        header: names of the columns; the first one names the rows.
        rows: cells; floats are shown with three digits and a `Share` with a bar; the file has them in full.
        name: of the file, without suffix.
        caption: what the table is about.
    """
    about = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    wordy = [isinstance(cell, str) for cell in (rows[0] if rows else header)]
    head = "".join(
        f'<th scope="col"{_WORDS if words else ""}>{html.escape(cell)}</th>'
        for cell, words in zip(header, wordy, strict=True)
    )
    body = "".join(f"<tr>{_row_head(row[0])}{''.join(map(_cell, row[1:]))}</tr>" for row in rows)
    whole = f"<table>{about}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"{wide(whole, caption or name)}\n{download(header, rows, name)}"


_WORDS = ' class="words"'


def _row_head(cell: object) -> str:
    return f'<th scope="row">{html.escape(_shown(cell))}</th>'


def _cell(cell: object) -> str:
    if isinstance(cell, Share) and cell.value is not None:
        width = min(max(100 * cell.value, 0.0), 100.0)
        return f'<td class="share">{cell}<i style="width:{width:.1f}%"></i></td>'
    return f"<td{_WORDS if isinstance(cell, str) else ''}>{html.escape(_shown(cell))}</td>"


def download(header: Sequence[str], rows: Sequence[Sequence[object]], name: str) -> str:
    """A link to a CSV file that lies in the page itself."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([_in_file(cell) for cell in header])
    writer.writerows([_in_file(cell) for cell in row] for row in rows)
    file = f"{html.escape(name, quote=True)}.csv"
    return f'<p><a class="csv" download="{file}" href="{data_url(text.getvalue().encode(), "text/csv")}">{file}</a></p>'


def folded(summary: str, text: str) -> str:
    """Preformatted text that is shown when it is asked for."""
    return f"<details><summary>{html.escape(summary)}</summary><pre>{html.escape(text)}</pre></details>"


def swatches(colours: Sequence[tuple[str, str]]) -> str:
    """A legend: (#rrggbb, what it stands for)."""
    marks = (
        f'<span class="key"><span class="swatch" style="background:{rgb}"></span>{html.escape(words)}</span>'
        for rgb, words in colours
    )
    return f"<p>{' '.join(marks)}</p>"


def ramp(colours: Sequence[str], low: str, high: str, about: str) -> str:
    """A colour bar.

    Args:
        colours: #rrggbb from its low end to its high one.
        low: what the low end stands for.
        high: what the high end stands for.
        about: what is measured.
    """
    bar = f'<span class="ramp" style="background:linear-gradient(90deg,{",".join(colours)})"></span>'
    return f"<p>{html.escape(about)}: {html.escape(low)}{bar}{html.escape(high)}</p>"


def _shown(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def _in_file(cell: object) -> object:
    """Numbers in full; a name from a dataset must not become a formula in somebody's spreadsheet."""
    if isinstance(cell, Share):
        return "" if cell.value is None else 100 * cell.value
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in {"=", "+", "-", "@", "\t", "\r"} else cell
