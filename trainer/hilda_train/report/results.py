"""Results beside each other, a column a result.

Of `hilda-train probe` and `finetune` a row a class, with bars; of `detect`, `flow` and `occupancy` a row a score.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hilda_schema.errors import UsageError
from hilda_schema.page import Section, Share, paragraph, table


@dataclass(frozen=True, slots=True)
class Result:
    """What is shown of a result file."""

    miou: float | None
    accuracy: float | None
    classes: str
    iou: dict[str, float | None]  # class -> IoU; None where neither labels nor predictions have the class
    about: str


HEADS = {"detect": "Detection", "flow": "Scene flow", "occupancy": "Semantic occupancy"}
"""Evaluations with a head of their own -> what their section is called."""

_REMEDY = "give a file of hilda-train probe --out, or of finetune, detect, flow or occupancy"


def evaluated(results: Sequence[Path]) -> list[Section]:
    """The sections about results, if there are any: one of segmentation, one of each other task.

    Raises:
        UsageError: not such a file, or files about different classes.
    """
    read = {path: _read(path) for path in results}
    sections = segmented([path for path, result in read.items() if result["evaluation"] not in HEADS])
    for task, title in HEADS.items():
        own = {path.stem: result for path, result in read.items() if result["evaluation"] == task}
        if own:
            sections.append(head_section(title, own))
    return sections


def head_section(title: str, results: dict[str, dict[str, Any]]) -> Section:
    """One task's scores: a row a score that some result has.

    Raises:
        UsageError: a file holds no scores, or files are about different classes.
    """
    try:
        scores = {name: {each["name"]: each for each in result["scores"]} for name, result in results.items()}
        named = {str(each): row for own in scores.values() for each, row in own.items()}
        first = next(iter(results.values()))
        about = (
            f"By the protocol {first['protocol']['name']}, seed {first['seed']}: {first['train']['frames']} training "
            f"frames, {first['test']['frames']} test frames. One seed; a difference means something only where it is "
            "larger than the spread over seeds."
        )
        backbones = [f"{result['backbone']} backbone" for result in results.values()]
        rows: list[list[object]] = [["", *backbones]]
        for score, row in named.items():
            label = f"{score}, {row['unit']}{' (lower is better)' if row['better'] == 'lower' else ''}"
            rows.append([label, *(_cell_of(own.get(score)) for own in scores.values())])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{', '.join(results)} holds no result: {error!r} is amiss", _REMEDY) from None
    classes = {str(result.get("classes")) for result in results.values()}
    if len(classes) > 1:
        raise UsageError(f"{', '.join(results)} are about different classes: {', '.join(sorted(classes))}")
    return Section(title, paragraph(about) + table(("score", *results), rows, title.lower().replace(" ", "-"), title))


def _cell_of(score: dict[str, Any] | None) -> object:
    if score is None or score["value"] is None:
        return "-"
    return Share(float(score["value"])) if score["unit"] == "%" else float(score["value"])


def segmented(results: Sequence[Path]) -> list[Section]:
    """The section about results of segmentation, if there are any.

    Raises:
        UsageError: not such a file, or files about different classes.
    """
    if not results:
        return []
    found = {path.stem: read_result(path) for path in results}
    first = next(iter(found.values()))
    for name, each in found.items():
        if (each.classes, list(each.iou)) != (first.classes, list(first.iou)):
            raise UsageError(f"{name} is about the classes {each.classes}, not {first.classes}")
    rows: list[list[object]] = [["mIoU, %", *(Share(each.miou) for each in found.values())]]
    rows.append(["accuracy, %", *(Share(each.accuracy) for each in found.values())])
    rows += [[name, *(Share(each.iou[name]) for each in found.values())] for name in first.iou]
    words = f"{first.about} One seed; a difference means something only where it is larger than the spread over seeds."
    caption = "Mean, accuracy, and intersection over union of each class, in percent"
    return [Section("What it is good for", paragraph(words) + table(("class", *found), rows, "evaluations", caption))]


def read_result(path: Path) -> Result:
    """Read what is shown of a file.

    Raises:
        UsageError: it cannot be read, or is not a result of segmentation.
    """
    result = _read(path)
    try:
        return Result(
            _share(result["miou"]),
            _share(result["accuracy"]),
            str(result["classes"]),
            {str(row["name"]): _share(row["iou"]) for row in result["per_class"]},
            f"{result['evaluation']} by the protocol {result['protocol']['name']}, {result['classes']}, seed "
            f"{result['seed']}: {result['train']['frames']} training frames, {result['test']['frames']} test frames.",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} holds no result: {error!r} is amiss", _REMEDY) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}", _REMEDY) from None
    if not isinstance(result, dict) or result.get("evaluation") not in {"probe", "finetune", *HEADS}:
        raise UsageError(f"{path} holds no result", _REMEDY)
    return result


def _share(value: Any) -> float | None:
    return None if value is None else float(value)
