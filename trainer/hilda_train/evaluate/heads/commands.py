"""From options to a result: what `hilda-train detect`, `flow` and `occupancy` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from hilda_schema.boxes import BoxLabels
from hilda_schema.errors import UsageError
from hilda_schema.reader import Cache, open_cache
from hilda_train.commands import pick_device
from hilda_train.evaluate.backbones import config_of, load_subject
from hilda_train.evaluate.commands import (
    Asked,
    choose_frames,
    describe,
    deterministic,
    number,
    require_places,
    tell,
    with_drop_path,
)
from hilda_train.evaluate.heads.bev import BevHead, Seen
from hilda_train.evaluate.heads.items import FrameItems, ItemOptions, Tensors
from hilda_train.evaluate.heads.protocol import HeadProtocol
from hilda_train.evaluate.heads.training import Learner, looked
from hilda_train.evaluate.protocols import StageConfig
from hilda_train.evaluate.splits import Place
from hilda_train.evaluate.sweeps import require_sensors, sweep_scan_options
from hilda_train.evaluate.training import LossMeter
from hilda_train.prepare import pinned_urls
from hilda_train.run import describe_caches
from hilda_train.students import Student
from hilda_train.train_state import seed_random

T = TypeVar("T", bound=Tensors)


@dataclass(frozen=True, slots=True)
class Score:
    """One number of a result."""

    name: str
    value: float  # NaN where there is none
    unit: str = ""  # "%", "m", ...
    better: str = "higher"

    def to_json(self) -> dict[str, Any]:
        """As a result file has it."""
        return {"name": self.name, "value": number(self.value), "unit": self.unit, "better": self.better}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the test frames say."""

    scores: tuple[Score, ...]  # the first is the one to compare by
    more: dict[str, Any]  # for the result file


class HeadTask(ABC, Generic[T]):
    """A task: everything about it but the backbone, the frames and the training."""

    name: str
    """Of the command and of its results."""

    protocol: HeadProtocol

    @abstractmethod
    def usable(self, caches: Sequence[Cache], places: Sequence[Place]) -> list[Place]:
        """Which frames have what the task needs; UsageError where none has."""

    @abstractmethod
    def items(self, urls: Sequence[str], places: Sequence[Place], options: ItemOptions) -> FrameItems[T]:
        """The frames as items."""

    @abstractmethod
    def head(self, student: Student, *, frozen: bool) -> BevHead[T]:
        """The backbone with the task's head."""

    @abstractmethod
    def judge(self, model: BevHead[T], seen: Iterable[Seen[T]]) -> Verdict:
        """Predict the test frames, and score."""

    def about(self) -> dict[str, Any]:
        """What else a result says of the task: classes, label file."""
        return {}


def evaluate_head(asked: Asked, task: HeadTask[Any]) -> None:
    """Train a head, test it, tell the result.

    Raises:
        HildaError: whatever is wrong with the request, the caches, the labels or the weights.
    """
    device = pick_device(asked.device)
    require_places(asked)
    result = head_result(asked, task, device)
    tell(result, head_table(result), asked)


def head_result(asked: Asked, task: HeadTask[Any], device: torch.device) -> dict[str, Any]:
    """The result, as JSON can hold it.

    Raises:
        UsageError: no cache is given, or what is asked does not fit the caches.
        TrainError: the weights do not fit.
        CacheError: a cache cannot be opened.
    """
    config = config_of(asked.what, asked.like)
    protocol, frozen = task.protocol, asked.evaluation == "probe"
    urls = asked.caches or config.data.caches
    if not urls:
        raise UsageError("no cache is given", "add --cache STORE")
    caches = tuple(open_cache(url) for url in urls)
    urls = pinned_urls(urls, caches)
    scan, stage = sweep_scan_options(config, protocol.intensity, None), protocol.stage(frozen=frozen)
    require_sensors(scan, caches)
    all_train, train, test = choose_frames(asked, config.data, caches, task.usable)
    deterministic()
    subject = load_subject(asked.what, with_drop_path(config, stage.drop_path), asked.seed)
    seed_random(asked.seed)
    model = task.head(subject.student, frozen=frozen).to(device)
    augment = protocol.augmentation()
    taught = task.items(urls, train, ItemOptions(scan, augment, asked.seed, judged=False))
    judged = task.items(urls, test, ItemOptions(scan, None, asked.seed, judged=True))
    learner = Learner(model, taught, stage, asked.seed, asked.workers, device)
    meter = LossMeter(learner.work + len(judged))
    with meter:
        learned = learner.learn(meter)
        model.eval()
        verdict = task.judge(model, _advancing(looked(model, judged, asked.workers, device), meter))
    return {
        "evaluation": task.name,
        "backbone": "frozen" if frozen else "finetuned",
        "scores": [each.to_json() for each in verdict.scores],
        "weights": subject.about,
        **task.about(),
        "split": {"share_percent": asked.share_percent, "rule": asked.split, "of_frames": len(all_train)},
        "train": describe(caches, train),
        "test": describe(caches, test),
        "seed": asked.seed,
        "caches": describe_caches(caches),
        "protocol": _protocol(asked, protocol, stage),
        "training": {"steps": learned.steps, "loss_of_epochs": list(learned.losses)},
        **verdict.more,
    }


def _protocol(asked: Asked, protocol: HeadProtocol, stage: StageConfig) -> dict[str, Any]:
    """The protocol's name and all that was used of it."""
    shared = protocol.model_dump(mode="json", exclude={"about", "probe", "finetune"})
    return {"name": Path(asked.protocol).stem, **shared, asked.evaluation: stage.model_dump(mode="json")}


def _advancing(seen: Iterable[Seen[T]], meter: LossMeter) -> Iterable[Seen[T]]:
    for each in seen:
        yield each
        meter.advance()


def head_table(result: dict[str, Any]) -> str:
    """The result for people."""
    weights, train, test = result["weights"], result["train"], result["test"]
    what = f"{weights['name']}, step {weights['step']}" if weights["kind"] == "run" else weights["kind"]
    split = result["split"]
    share = f", {split['share_percent']:g} % by {split['rule']}" if split["share_percent"] < 100 else ""
    lines = [
        f"{result['evaluation']} with {what}, {result['backbone']} "
        f"({result['protocol']['name']}, seed {result['seed']})",
        f"trained on {train['frames']} frames of {len(train['scenes'])} scenes{share}; "
        f"tested on {test['frames']} of {len(test['scenes'])}",
    ]
    lines += [f"{each['name']:36}{shown(each):>10} {each['unit']}" for each in result["scores"]]
    return "\n".join(lines)


def shown(score: dict[str, Any]) -> str:
    """A score's number; per cents with two digits, others with three."""
    value = score["value"]
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if score["unit"] == "%" else f"{value:.3f}"


def annotated(labels: BoxLabels, caches: Sequence[Cache], places: Sequence[Place]) -> list[Place]:
    """Those frames that a label file has.

    Raises:
        UsageError: none.
    """
    found = [(cache, row) for cache, row in places if caches[cache].frames["key"][row].as_py() in labels]
    if not found:
        cache, row = places[0]
        raise UsageError(
            f"the label file has none of {len(places)} frames, e.g. not {caches[cache].frames['key'][row].as_py()}",
            "write it with hilda-cache labels from the drive that the cache was made of",
        )
    return found
