"""What a report says: numbers and figures of one run, section by section.

Legend: P pairs, N points, D teacher channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hilda_schema.colours import Palette
from hilda_schema.errors import UsageError
from hilda_train.config import FitConfig
from hilda_train.data.clips import Clip
from hilda_train.evaluate.agreement import Agreement, agreement, predict
from hilda_train.evaluate.forecast import IoU, can_forecast, forecast, regions_of, scores
from hilda_train.evaluate.restore import Restored, restore_run, spread
from hilda_train.report.figures import draw_curves, draw_features, draw_forecasts
from hilda_train.report.page import Section, download, folded, paragraph, picture, table
from hilda_train.run import CONFIG

JUDGED_CLIPS = 6
DRAWN_FORECASTS = 3
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
    return Section("The run", table(("", ""), rows, "run"))


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
        figures.append(picture(data, path.stem))
    return [Section("What the teacher saw", "\n".join(figures))] if figures else []


def evaluated(results: Sequence[Path]) -> list[Section]:
    """Results of `hilda-train probe` and `finetune` beside each other, a column for each file.

    Raises:
        UsageError: not such a file, or files about different classes.
    """
    if not results:
        return []
    found = {path.stem: _result(path) for path in results}
    first = next(iter(found.values()))
    for name, each in found.items():
        if each["classes"] != first["classes"]:
            raise UsageError(f"{name} is about the classes {each['classes']}, not {first['classes']}")
    rows: list[list[object]] = [["mIoU, %", *(_percent(each["miou"]) for each in found.values())]]
    rows.append(["accuracy, %", *(_percent(each["accuracy"]) for each in found.values())])
    for number, row in enumerate(first["per_class"]):
        rows.append([row["name"], *(_percent(each["per_class"][number]["iou"]) for each in found.values())])
    about = (
        f"{first['evaluation']} by the protocol {first['protocol']['name']}, {first['classes']}, seed {first['seed']}: "
        f"{first['train']['frames']} training frames, {first['test']['frames']} test frames. One seed; a difference "
        "means something only where it is larger than the spread over seeds."
    )
    return [Section("What it is good for", paragraph(about) + table(("", *found), rows, "evaluations"))]


def _result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", "give a file of hilda-train probe --out") from None
    if not isinstance(result, dict) or result.get("evaluation") not in {"probe", "finetune"}:
        raise UsageError(f"{path} holds no result", "give a file of hilda-train probe --out")
    return result


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def curves(lines: Sequence[Mapping[str, Any]]) -> Section:
    """The loss, its terms and what they report."""
    names = [name for name in dict.fromkeys(key for line in lines for key in line) if name not in HIDDEN_CURVES]
    found = {}
    for name in names:
        points = [(int(line["step"]), float(line[name])) for line in lines if name in line]
        if np.isfinite([value for _, value in points]).all():
            steps, values = zip(*points, strict=True)
            found[name] = (steps, values)
    header = ("step", *names)
    rows = [(line["step"], *(line.get(name, "") for name in names)) for line in lines]
    body = picture(draw_curves(found), f"{len(found)} curves over {lines[-1]['step']} steps")
    return Section("Curves", f"{body}\n{download(header, rows, 'curves')}")


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
    figure = feature_picture(restored, judged[len(judged) // 2])
    header = ("layer", "student", "constant")
    return Section("Features", f"{paragraph(words)}\n{table(header, rows, 'agreement')}\n{figure}")


def feature_picture(restored: Restored, clip: Clip) -> str:
    """Teacher against student at the pixels of every camera and from above, for one clip's current frame."""
    frame = restored.prepared.caches[clip.cache][clip.current]
    target = restored.prepared.tokens.layers[-1]
    seen = predict(restored, clip)
    palette = Palette.of(_unit(seen.teacher))
    teacher, student = palette.colours(_unit(seen.teacher)), palette.colours(_unit(seen.student))
    colours = {"teacher": teacher, "student": student}
    cameras = {
        name: (size_px, seen.uv_px[seen.camera == k], {who: c[seen.camera == k] for who, c in colours.items()})
        for k, (name, size_px) in enumerate(frame.camera_sizes_px.items())
        if min(size_px) > 0
    }
    taught = np.full((len(seen.xyz_m), 3), np.nan)
    taught[seen.point] = teacher
    above = {"teacher": taught, "student": palette.colours(_unit(seen.everywhere))}
    is_seen = np.isin(np.arange(len(seen.xyz_m)), seen.point)
    words = (
        f"{frame.key}: layer {target.layer} of {target.teacher}. Red, green and blue are the teacher's first three "
        "principal components; the student is coloured by the same. The teacher knows only points that a camera sees."
    )
    return picture(draw_features(cameras, seen.xyz_m, above, is_seen), words)


def _unit(features: NDArray[np.floating]) -> NDArray[np.floating]:
    """Rows of length one: the losses compare directions."""
    units: NDArray[np.floating] = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return units


def _forecasts(restored: Restored, where: str) -> Section:
    whole = [clip for clip in restored.clips if clip.whole]
    sums: dict[str, dict[str, IoU]] = {}
    made = []
    for clip in spread(whole, JUDGED_CLIPS):
        made.append(forecast(restored, clip))
        scores(made[-1], regions_of(made[-1]), sums)
    rows = [(region, row["model"].value, row["carried forward"].value) for region, row in sums.items()]
    words = (
        f"Occupancy {restored.prepared.config.data.gap_s:g} s ahead, on {where}: intersection over union of the "
        "model's forecast and of the present carried forward. Cells around a change are those within a cell of one "
        "that became occupied or free between two sweeps that both saw it."
    )
    drawn = draw_forecasts(spread(made, DRAWN_FORECASTS))
    legend = "green: foreseen rightly; blue: foreseen, but free; red: missed; dark grey: not seen by the sweep"
    body = table(("cells", "model", "carried forward"), rows, "forecast")
    return Section("Occupancy forecast", f"{paragraph(words)}\n{body}\n{picture(drawn, legend)}")


def details(run: Path, described: Mapping[str, Any]) -> Section:
    """The effective config and what the run ran on."""
    environment = "\n".join(f"{name}: {value}" for name, value in described["environment"].items())
    config = folded("effective config", (run / CONFIG).read_text())
    return Section("Details", f"{config}\n{folded('environment', environment)}")
