"""What a report says: numbers and figures of one run, section by section.

Legend: P pairs, N points, D teacher channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_schema.colours import Palette
from hilda_schema.errors import UsageError
from hilda_schema.page import Section, download, folded, grid, paragraph, picture, ramp, swatches, table, wide
from hilda_schema.reader import Frame
from hilda_schema.style import DISAGREEMENT_MAP, REACH_M
from hilda_schema.viewpoint import forward_quarter, turn_about
from hilda_train.config import FitConfig
from hilda_train.data.clips import Clip
from hilda_train.evaluate.agreement import Agreement, Prediction, agreement, disagreement, predict
from hilda_train.evaluate.forecast import IoU, can_forecast, forecast, regions_of, scores
from hilda_train.evaluate.restore import Restored, restore_run, spread
from hilda_train.report import film as reels
from hilda_train.report.figures import (
    OUTCOMES,
    draw_camera,
    draw_curve,
    draw_forecasts,
    draw_sweep,
    mapped,
)
from hilda_train.report.film import film
from hilda_train.run import CONFIG

STYLE = (
    reels.STYLE
    + """
.pairs { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.pair { display: grid; gap: .3rem; grid-template-columns: 1fr 1fr; } .pair img { width: 100%; }
.film { margin-bottom: 1rem; }
.wide figure { min-width: 44rem; }
"""
)
JUDGED_CLIPS = 6
DRAWN_FORECASTS = 3
FILM_FRAMES = 10
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HIDDEN_CURVES = {"step", "seconds", "wait_share", "global/tokens", "point/cameras"}


def overview(config: FitConfig, described: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Section:
    """What was run, how far, how fast."""
    last = lines[-1]
    seconds = [float(line["seconds"]) for line in lines if "seconds" in line]
    waits = [float(line["wait_share"]) for line in lines if "wait_share" in line]
    rows: list[tuple[str, object]] = [
        ("recipe", config.about),
        ("student", f"{config.student.arch}, levels {', '.join(map(str, config.student.levels))}"),
        ("steps", f"{last['step']} of {config.train.max_steps}, {config.data.batch_size} clips each"),
        ("loss", f"{float(lines[0]['loss']):.3f} -> {float(last['loss']):.3f}"),
    ]
    if seconds:
        rows.append(("a step", f"{np.median(seconds):.2f} s, of which {np.median(waits):.0%} waiting for data"))
    rows += [("cache", f"{each['dataset']}, sha256:{each['root_sha256'][:16]}") for each in described["caches"]]
    return Section("The run", table(("what", "value"), rows, "run"))


def attached(pictures: Sequence[Path]) -> list[Section]:
    """Pictures that others made.

    Raises:
        UsageError: not a PNG file.
    """
    figures = []
    for path in pictures:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", "give a PNG file") from None
        if not data.startswith(PNG_SIGNATURE):
            raise UsageError(f"{path} is not a PNG file", "give one that hilda-cache show wrote")
        figures.append(wide(picture(data, path.stem), path.stem))
    return [Section("What the teacher saw", "\n".join(figures))] if figures else []


def curves(lines: Sequence[Mapping[str, Any]]) -> Section:
    """The loss, its terms and what they report: a figure and a file each, and a file with all."""
    names = [name for name in dict.fromkeys(key for line in lines for key in line) if name not in HIDDEN_CURVES]
    figures = []
    for name in names:
        points = [(int(line["step"]), float(line[name])) for line in lines if name in line]
        steps, values = zip(*points, strict=True)
        if np.isfinite(values).all():
            words = f"{name}: {values[0]:.3g} at step {steps[0]}, {values[-1]:.3g} at step {steps[-1]}"
            link = download(("step", name), points, name.replace("/", "-"))
            figures.append(f"<div>{picture(draw_curve(name, steps, values), words, kind='webp')}{link}</div>")
    header = ("step", *names)
    rows = [(line["step"], *(line.get(name, "") for name in names)) for line in lines]
    return Section("Curves", f"{grid(figures)}\n{paragraph('All of them:')}{download(header, rows, 'curves')}")


def what_was_learned(run: Path, caches: Sequence[str]) -> list[Section]:
    """What the newest checkpoint predicts, on scenes that were held out where there are any.

    Raises:
        TrainError: other caches than those of the run, or no checkpoint.
    """
    restored = restore_run(run, caches)
    judged = spread(restored.clips, JUDGED_CLIPS)
    where = (
        f"{len(judged)} frames of held-out scenes"
        if restored.held_out
        else f"{len(judged)} frames of the scenes that were trained on, since none was held out (data.held_out)"
    )
    found = []
    if restored.learner.point is not None:
        found.append(_features(restored, judged, where))
    if can_forecast(restored):
        found.append(_forecasts(restored, where))
    return found


def _features(restored: Restored, judged: Sequence[Clip], where: str) -> Section:
    total: dict[str, Agreement] = {}
    for clip in judged:
        for name, found in agreement(restored, clip).items():
            total[name] = total[name] + found if name in total else found
    rows = [(name, each.student, each.constant) for name, each in total.items()]
    words = (
        f"Cosine between the student's prediction and the teacher's feature at step {restored.step}, mean over the "
        f"point-camera pairs of {where}. Beside it what always predicting one and the same best vector would reach."
    )
    header = ("layer", "student", "constant")
    figures = feature_figures(restored, judged[len(judged) // 2])
    return Section("Features", f"{paragraph(words)}\n{table(header, rows, 'agreement')}\n{figures}")


def feature_figures(restored: Restored, clip: Clip) -> str:
    """Teacher against student from above and at the pixels of every camera, for one clip's current frame."""
    frame = restored.prepared.caches[clip.cache][clip.current]
    target = restored.prepared.tokens.layers[-1]
    seen = predict(restored, clip)
    palette = Palette.of(_unit(seen.teacher))
    colours = {"teacher": palette.colours(_unit(seen.teacher)), "student": palette.colours(_unit(seen.student))}
    words = (
        f"{frame.key}: layer {target.layer} of {target.teacher}. Red, green and blue are the teacher's first three "
        "principal components; the student is coloured by the same. The teacher knows only points that a camera sees."
    )
    sizes_px = {k: (name, size) for k, (name, size) in enumerate(frame.camera_sizes_px.items()) if min(size) > 0}
    cameras = []
    for k, (name, size_px) in sizes_px.items():
        mine = seen.camera == k
        pair = (
            picture(draw_camera(size_px, seen.uv_px[mine], rgb[mine]), f"{name}: {who}", kind="webp")
            for who, rgb in colours.items()
        )
        cameras.append(f'<div class="pair">{"".join(pair)}</div>')
    everywhere = palette.colours(_unit(seen.everywhere))
    return (
        f"<h3>On one sweep</h3>{paragraph(words)}"
        f"{_sweeps(seen, colours['teacher'], everywhere, forward_quarter_of(frame))}"
        f'<h3>In its cameras</h3><div class="pairs">{"".join(cameras)}</div>'
    )


def forward_quarter_of(frame: Frame) -> int:
    """Which way a frame's sweep is turned where it is drawn."""
    return forward_quarter(frame.camera_names, frame.pairs, frame.points.xyz_m)


def _sweeps(seen: Prediction, teacher: NDArray[np.float64], student: NDArray[np.float64], quarters: int) -> str:
    """Teacher, student, and how far they are apart, from above."""
    taught = np.full((len(seen.xyz_m), 3), np.nan)
    taught[seen.point] = teacher
    apart = disagreement(seen)
    known = apart[np.isfinite(apart)]
    most = max(float(np.percentile(known, 99)) if len(known) else 0.0, 0.01)
    xy_m = turn_about(seen.xyz_m, 1 - quarters)
    near = np.abs(xy_m[seen.point])  # of points that a camera sees
    reach_m = float(np.clip(np.percentile(near, 95) if len(near) else 0.0, *REACH_M))
    figures = [
        picture(draw_sweep(xy_m, seen.xyz_m[:, 2], rgb, reach_m), words, kind="webp")
        for rgb, words in (
            (taught, "teacher, from above, forwards up"),
            (student, "student"),
            (mapped(apart, DISAGREEMENT_MAP, 0.0, most), "where they disagree: 1 - cosine, bright for more"),
        )
    ]
    steps = mapped(np.linspace(0, most, 12), DISAGREEMENT_MAP, 0.0, most)
    colours = ["#{:02x}{:02x}{:02x}".format(*np.rint(255 * rgb).astype(int)) for rgb in steps]
    return grid(figures) + ramp(colours, "0", f"{most:.2f}", "1 - cosine of student and teacher")


def _unit(features: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows of length one: the losses compare directions."""
    units: NDArray[np.floating] = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return units


def _forecasts(restored: Restored, where: str) -> Section:
    whole = [clip for clip in restored.clips if clip.whole]
    sums: dict[str, dict[str, IoU]] = {}
    judged, shown = spread(whole, JUDGED_CLIPS), consecutive(restored, whole)[:FILM_FRAMES]
    made = {clip: forecast(restored, clip) for clip in dict.fromkeys([*judged, *shown])}
    for clip in judged:
        scores(made[clip], regions_of(made[clip]), sums)
    rows = [(region, row["model"].value, row["carried forward"].value) for region, row in sums.items()]
    gap_s = restored.prepared.config.data.gap_s
    words = (
        f"Occupancy {gap_s:g} s ahead, on {where}: intersection over union of the "
        "model's forecast and of the present carried forward. Cells around a change are those within a cell of one "
        "that became occupied or free between two sweeps that both saw it."
    )
    body = table(("cells", "model", "carried forward"), rows, "forecast", "Intersection over union of occupied cells")
    scene = restored.prepared.caches[shown[0].cache].frames["scene"][shown[0].current]
    moving = f"{len(shown)} sweeps of {scene} in turn, each with what was foreseen {gap_s:g} s ahead; forwards is up."
    quarters = forward_quarter_of(restored.prepared.caches[shown[0].cache][shown[0].current])
    drawn = draw_forecasts(spread([made[clip] for clip in judged], DRAWN_FORECASTS), quarters, webp=True)
    still = "Some of them, beside the present carried forward"
    parts = (
        paragraph(words),
        body,
        paragraph(moving),
        swatches(OUTCOMES),
        film([made[clip] for clip in shown], quarters),
    )
    return Section("Occupancy forecast", "\n".join((*parts, wide(picture(drawn, still, kind="webp"), still))))


def consecutive(restored: Restored, clips: Sequence[Clip]) -> list[Clip]:
    """The clips of the scene that has the most of them, in the order of time."""
    scenes: dict[tuple[int, str], dict[int, Clip]] = {}
    for clip in clips:
        row = restored.prepared.caches[clip.cache].frames.slice(clip.current, 1).to_pylist()[0]
        scenes.setdefault((clip.cache, row["scene"]), {})[row["stamp_ns"]] = clip
    longest = max(scenes.values(), key=len)
    return [longest[stamp_ns] for stamp_ns in sorted(longest)]


def details(run: Path, described: Mapping[str, Any]) -> Section:
    """The effective config and what the run ran on."""
    environment = "\n".join(f"{name}: {value}" for name, value in described["environment"].items())
    config = folded("effective config", (run / CONFIG).read_text())
    return Section("Details", f"{config}\n{folded('environment', environment)}")
