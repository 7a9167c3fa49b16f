"""All views of one frame on one HTML page, which carries everything with it and runs no script.

Every camera's image is on the page once; the points lie over it as pictures with transparent ground. Which layer is
seen follows a radio button by CSS alone; a browser that does not know `:has` shows all layers, one below the other.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from hilda_cache.show import Wanted, panels
from hilda_cache.show.choose import chosen_pair
from hilda_cache.show.layout import WIDE_ASPECT, Box, arrange
from hilda_cache.show.paint import (
    Bar,
    Paint,
    Swatches,
    cameras_per_point,
    coverage_paint,
    feature_paints,
    mapped,
    occlusion_paint,
    similarity_paints,
)
from hilda_cache.show.picture import (
    Scene,
    draw_camera_panel,
    draw_map_panel,
    draw_perspective_panel,
    new_figure,
    saved,
)
from hilda_schema.page import Section, data_url, page, paragraph, ramp, swatches, table
from hilda_schema.reader import Frame

WIDTH = 3.2  # inches of a panel, at DPI
DPI = 250
COLOURS = 256  # of a picture of points: a palette makes it a third as large
PHOTO = {"pil_kwargs": {"quality": 70, "method": 4}}
STYLE = """
fieldset { border: 1px solid var(--line); border-radius: 4px; position: sticky; top: 0; background: var(--paper);
           z-index: 2; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: .2rem .8rem .5rem; }
legend { color: var(--soft); font-size: .85rem; padding: 0 .3rem; }
label { padding: .2rem 0; }
.rig { display: grid; gap: .5rem; grid-template-columns: 1fr; }
@media (min-width: 56rem) { .rig { grid-template-columns: repeat(var(--columns), 1fr); } }
.rig figure { grid-column: var(--column); grid-row: var(--row); }
@media (max-width: 55.99rem) { .rig figure { grid-column: auto; grid-row: auto; } }
.photo { background-color: var(--panel); background-size: 100% 100%; border-radius: 4px;
         print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.photo img { width: 100%; }
.sweeps { display: grid; gap: .5rem; margin-top: .5rem;
          grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.sweeps img { width: 100%; } .sweeps figure { max-width: 40rem; }
section:has(fieldset) { display: contents; }
"""


def frame_page(frame: Frame, teacher: str, layers: Sequence[str], wanted: Wanted, scene: Scene) -> str:
    """The page.

    Args:
        frame: the frame.
        teacher: a stored teacher.
        layers: names of its stored layers; the last one is seen first.
        wanted: from which point similarities are measured.
        scene: the same frame, as it is drawn.

    Raises:
        UsageError: the point that is asked for cannot be chosen.
        CacheCorrupt: naming file and frame.
    """
    drawn = _Page(scene)
    features = feature_paints(frame, teacher, layers)
    sections = [
        Section("Frame", _about(frame) + _switch(layers)),
        Section("Features", _by_layer(drawn, features, _ABOUT_FEATURES, in_perspective=True)),
    ]
    if frame.pairs.visible.any() or wanted.point is not None or wanted.at is not None:
        paints = similarity_paints(frame, teacher, layers, chosen_pair(frame, wanted.point, wanted.at))
        sections.append(Section("Similarity to one point", _by_layer(drawn, paints, _ABOUT_SIMILARITY)))
    sections += [
        Section("Coverage", paragraph(_ABOUT_COVERAGE) + drawn.panels(coverage_paint(frame)) + _coverage_table(frame)),
        Section("Occlusion", paragraph(_ABOUT_OCCLUSION) + drawn.panels(occlusion_paint(frame)) + _camera_table(frame)),
    ]
    return page(f"{frame.key}: {teacher}", sections, STYLE + drawn.photos() + _switch_style(len(layers)))


_ABOUT_FEATURES = (
    "Red, green and blue are the first three principal components of the features at all visible pairs of the frame: a "
    "colour means the same in every camera and on the sweep. Each layer has its own."
)
_ABOUT_SIMILARITY = (
    "Cosine between the feature of the marked point and that of every other one, after the mean of all is taken off. A "
    "point that several cameras see has the largest of its values on the sweep."
)
_ABOUT_COVERAGE = "By how many cameras each point is seen; one from which a nearer surface hides it does not count."
_ABOUT_OCCLUSION = "Points whose place lies within an image: seen there, or hidden by a nearer surface."


class _Page:
    """Draws panels as HTML figures and remembers which images they need."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        names = [name for name, size in scene.camera_sizes_px.items() if min(size) > 0]
        self.places = arrange(names)

    def photos(self) -> str:
        """CSS with every camera's image, dimmed."""
        rules = []
        for number, (name, image) in enumerate(self.scene.images.items()):
            if name in self.places:
                box = _box(self.scene.camera_sizes_px[name])
                figure = new_figure(box.width, box.height, DPI)
                axes = panels.panel(figure, box)
                axes.imshow(panels.dim(image), aspect="auto", interpolation="antialiased")
                url = data_url(saved(figure, "webp", **PHOTO), "image/webp")
                rules.append(f".photo-{number} {{ background-image: url({url}); }}")
        return "\n".join(rules)

    def panels(self, paint: Paint, *, in_perspective: bool = False) -> str:
        """All panels of a paint: cameras as they sit on the vehicle, then the sweep."""
        columns = 1 + max((column for _, column in self.places.values()), default=0)
        cameras = "".join(self._camera(name, paint) for name in sorted(self.places, key=lambda name: self.places[name]))
        found = [f'{_legend(paint)}<div class="rig" style="--columns:{columns}">{cameras}</div>']
        if self.scene.xyz_m is not None:
            found.append(f'<div class="sweeps">{self._sweeps(paint, in_perspective)}</div>')
        found.append(paragraph(paint.note + "."))
        return "\n".join(found)

    def _camera(self, name: str, paint: Paint) -> str:
        row, column = self.places[name]
        number = list(self.scene.camera_sizes_px).index(name)
        photo = list(self.scene.images).index(name) if name in self.scene.images else None
        count = int((paint.pairs.camera == number).sum())
        box = _box(self.scene.camera_sizes_px[name])
        drawn = _drawn(
            box, lambda axes: draw_camera_panel(axes, box, self.scene, paint, name, behind=False), transparent=True
        )
        alt = f"{paint.kind}, {paint.heading}: {count:,} points as {name} sees them"
        kind = "photo" if photo is None else f"photo photo-{photo}"
        words = f"{html.escape(name)}: {count:,} points"
        return (
            f'<figure style="--row:{row + 1};--column:{column + 1}"><div class="{kind}">{_image(drawn, alt)}</div>'
            f"<figcaption>{words}</figcaption></figure>"
        )

    def _sweeps(self, paint: Paint, in_perspective: bool) -> str:
        square, wide = Box(0, 0, WIDTH, WIDTH), Box(0, 0, WIDTH * 1.5, WIDTH * 1.5 * WIDE_ASPECT)
        above = _drawn(square, lambda axes: draw_map_panel(axes, square, self.scene, paint, forwards_up=True))
        found = _figure(above, f"{paint.kind}, {paint.heading}: the sweep from above, forwards up")
        if in_perspective:
            behind = _drawn(wide, lambda axes: draw_perspective_panel(axes, wide, self.scene, paint))
            found += _figure(behind, f"{paint.kind}, {paint.heading}: the sweep from behind and above the vehicle")
        return found


def _box(size_px: tuple[int, int]) -> Box:
    return Box(0, 0, WIDTH, WIDTH * size_px[1] / size_px[0])


def _drawn(box: Box, draw: Callable[[Axes], None], *, transparent: bool = False) -> bytes:
    figure = new_figure(box.width, box.height, DPI)
    axes = panels.panel(figure, box)
    draw(axes)
    if transparent:
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
    image: Image.Image = Image.open(io.BytesIO(saved(figure)))
    if transparent:
        image = image.quantize(COLOURS, Image.Quantize.FASTOCTREE)  # the only one that keeps transparency
    else:
        image = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, "png", optimize=True)
    return stream.getvalue()


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt, quote=True)}" src="{data_url(png, "image/png")}">'


def _figure(png: bytes, caption: str) -> str:
    return f"<figure>{_image(png, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _legend(paint: Paint) -> str:
    if isinstance(paint.legend, Swatches):
        return swatches(paint.legend.colours)
    bar: Bar = paint.legend
    steps = mapped(bar, np.linspace(bar.low, bar.high, 12))
    colours = ["#{:02x}{:02x}{:02x}".format(*np.rint(255 * rgb).astype(int)) for rgb in steps]
    return ramp(colours, *bar.ends, bar.about)


def _by_layer(made: _Page, paints: Sequence[Paint], about: str, *, in_perspective: bool = False) -> str:
    """The paints of all layers, of which the switch shows one."""
    found = [paragraph(about)]
    for number, paint in enumerate(paints):
        body = made.panels(paint, in_perspective=in_perspective)
        found.append(f'<div class="layer layer-{number}"><h3>{html.escape(paint.heading)}</h3>\n{body}</div>')
    return "\n".join(found)


def _switch(layers: Sequence[str]) -> str:
    """Radio buttons, one a layer; the last is on."""
    buttons = []
    for number, layer in enumerate(layers):
        on = " checked" if number == len(layers) - 1 else ""
        words = html.escape(layer)
        buttons.append(f'<label><input type="radio" name="layer" id="layer-{number}"{on}> {words}</label>')
    return f"<fieldset><legend>Layer</legend>{''.join(buttons)}</fieldset>"


def _switch_style(count: int) -> str:
    rules = [f"body:has(#layer-{k}:checked) .layer:not(.layer-{k}) {{ display: none; }}" for k in range(count)]
    return "\n" + "\n".join(rules) + "\n"


def _about(frame: Frame) -> str:
    recipe = frame.cache.manifest.recipe
    rows: list[tuple[str, object]] = [
        ("dataset", recipe.dataset.name),
        ("encoding", f"{recipe.encoding.kind} {recipe.encoding.dtype}"),
        ("pairs", f"{len(frame.pairs):,}"),
        *((f"absent: {name}", reason) for name, reason in frame.absent.items()),
    ]
    return table(("what", "value"), rows, "frame")


def _coverage_table(frame: Frame) -> str:
    count = np.bincount(cameras_per_point(frame), minlength=2)
    rows = [(cameras, int(points), points / max(count.sum(), 1)) for cameras, points in enumerate(count)]
    return table(("cameras", "points", "share"), rows, "coverage", "Points by the number of cameras that see them")


def _camera_table(frame: Frame) -> str:
    rows = []
    for number, (name, (width, height)) in enumerate(frame.camera_sizes_px.items()):
        visible = frame.pairs.visible[frame.pairs.camera == number]
        rows.append((name, f"{width} x {height}", len(visible), int(visible.sum()), int((~visible).sum())))
    return table(("camera", "image, px", "points", "visible", "hidden"), rows, "cameras", "Points of each camera")
