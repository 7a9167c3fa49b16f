"""Forecasts of consecutive sweeps as a film: strips of frames that CSS moves, without a script.

It can be paused, and stands still (as strips to scroll) for readers whose system asks for less motion.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from hilda_schema.page import data_url
from hilda_train.evaluate.forecast import Forecast
from hilda_train.report.figures import cells_of, strip

SECONDS = 0.8  # each frame is shown for
STYLE = f"""
.reels {{ display: grid; gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(min(45%, 17rem), 1fr)); }}
.reel {{ aspect-ratio: 1; overflow: hidden; position: relative; background: var(--panel); border-radius: 4px; }}
.reel img {{ width: 100%; height: auto; image-rendering: pixelated; border-radius: 0;
            animation: reel calc(var(--frames) * {SECONDS}s) steps(var(--frames)) infinite; }}
@keyframes reel {{ to {{ transform: translateY(-100%); }} }}
.film:has(input:checked) .reel img {{ animation-play-state: paused; }}
@media (prefers-reduced-motion: reduce) {{
  .reel {{ overflow-y: auto; }} .reel img {{ animation: none; }} .film label {{ display: none; }}
}}
@media print {{ .reel img {{ animation: none; }} }}
"""
PANELS = (
    ("t0: occupied now", "cells that the sweep of t0 finds occupied"),
    ("t1: what came", "cells that the sweep of t1 finds occupied"),
    ("foreseen", "probability that a cell is occupied at t1, brighter for more"),
    ("hits and misses", "forecast cells that are right, wrong and missing"),
)


def film(forecasts: Sequence[Forecast], quarters: int) -> str:
    """The film, as HTML; forecasts in the order of time, turned by `quarters`. Needs `STYLE` on the page."""
    rows = [cells_of(each) for each in forecasts]
    reels = []
    for column, (caption, words) in enumerate(PANELS):
        source = data_url(strip([row[column] for row in rows], quarters), "image/webp")
        alt = html.escape(f"{len(rows)} sweeps one after the other: {words}", quote=True)
        reels.append(
            f'<figure><div class="reel" tabindex="0"><img alt="{alt}" src="{source}"></div>'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return (
        f'<div class="film" style="--frames:{len(rows)}"><label><input type="checkbox"> pause</label>'
        f'<div class="reels">{"".join(reels)}</div></div>'
    )
