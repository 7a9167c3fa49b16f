"""Segmentation without training: neighbours' votes on a backbone's features, prototypes on a head's output.

    knn         the backbone's last level against labelled rows of training sweeps
    zeroshot    the output of the head that learnt a teacher's layer against one vector for each class: of the class's
                name, or the mean of the teacher's features at the labelled points of training sweeps. The student has
                seen no label in either; the second needs no text, and some labels.

Legend: M rows of a level (voxels), N points, C channels of the backbone, D of a teacher, K classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hilda_schema.errors import TrainError, UsageError
from hilda_train.config import FitConfig
from hilda_train.data.clips import Clip
from hilda_train.data.loading import made
from hilda_train.evaluate.classes import Classes
from hilda_train.evaluate.head import Judged, Scores
from hilda_train.evaluate.nearest import ClassMeans, knn_classes, prototype_classes
from hilda_train.evaluate.restore import Restored
from hilda_train.evaluate.segment import one_label_a_row
from hilda_train.evaluate.splits import Place
from hilda_train.evaluate.sweeps import LabelledSweep, LabelledSweeps, SweepOptions, sweep_scan_options
from hilda_train.students import Level, Student

BANK = 20_000  # labelled rows that neighbours are looked for among


@dataclass(frozen=True, slots=True)
class Frames:
    """What is judged on what."""

    urls: tuple[str, ...]  # caches
    train: tuple[Place, ...]
    test: tuple[Place, ...]
    classes: Classes
    config: FitConfig  # of the pre-training: how a sweep is seen
    seed: int

    def sweeps(self, places: Sequence[Place]) -> Iterator[LabelledSweep]:
        """Frames as they were recorded.

        Raises:
            HildaError: one cannot be read.
        """
        scan = sweep_scan_options(self.config, {}, None)
        dataset = LabelledSweeps(self.urls, places, SweepOptions(scan, None, self.classes, self.seed, judged=True))
        return made(dataset[0, number, number] for number in range(len(places)))


@torch.no_grad()
def judge_rows(student: Student, frames: Frames, classify: Callable[[Tensor], Tensor], number: int = -1) -> Scores:
    """Judge whole test sweeps.

    Args:
        student: in evaluation mode, on the CPU.
        frames: of which the test frames are judged.
        classify: (M, C) features of a level -> (M,) classes.
        number: of the level.

    Returns:
        What the test set says.
    """
    scores = Scores.of(len(frames.classes.names))
    for sweep in frames.sweeps(frames.test):
        assert sweep.whole is not None
        truth, seen = sweep.whole.truth.numpy(), sweep.whole.in_camera.numpy()
        if not len(truth):
            continue
        level = student.encode(sweep.points)[number]
        predicted = classify(level.feats.float())[level.point_row][sweep.whole.reads].numpy()
        scores.add(Judged(sweep.key, truth, predicted, seen, borrowed=sweep.whole.borrowed))
    return scores


@torch.no_grad()
def knn(student: Student, frames: Frames, k: int) -> Scores:
    """Neighbours' votes; see `judge_rows` for what is returned.

    Raises:
        TrainError: no training point has a class.
    """
    bank, label = labelled_rows(student, frames)
    classes = len(frames.classes.names)
    return judge_rows(student, frames, lambda feats: knn_classes(feats, bank, label, classes, k))


def labelled_rows(student: Student, frames: Frames) -> tuple[Tensor, Tensor]:
    """(L, C) features and (L,) classes of rows of the training sweeps, as many of each sweep, at most `BANK`.

    Raises:
        TrainError: no point has a class.
    """
    each = max(1, BANK // len(frames.train))
    feats, labels = [], []
    for sweep in frames.sweeps(frames.train):
        level: Level = student.encode(sweep.points)[-1]
        label = one_label_a_row(level.point_row, sweep.target)
        known = (label >= 0).nonzero()[:, 0].numpy()
        rng = np.random.default_rng([frames.seed, zlib.crc32(sweep.key.encode())])
        chosen = torch.from_numpy(np.sort(rng.permutation(known)[:each]))
        feats.append(level.feats[chosen].float())
        labels.append(label[chosen])
    if not sum(map(len, labels)):
        raise TrainError(f"no point of {len(frames.train)} training frames has a class", "choose other frames")
    return torch.cat(feats), torch.cat(labels)


def head_of(restored: Restored, target: str | None) -> tuple[int, nn.Module]:
    """The number of a target "teacher/layer", that of the last level where none is named, and its head.

    Raises:
        UsageError: the run has no such target.
        TrainError: the run has no head.
    """
    names = [f"{each.teacher}/{each.layer}" for each in restored.prepared.tokens.layers]
    if restored.learner.point is None or not names:
        raise TrainError("this run has no head that predicts a teacher's features", "use hilda-train knn or probe")
    if target is not None and target not in names:
        raise UsageError(f"--target {target}: this run learnt {', '.join(names)}")
    number = names.index(target) if target is not None else len(names) - 1
    return number, restored.learner.point.heads[number]


def text_prototypes(path: Path, classes: Classes, width: int) -> Tensor:
    """(K, D) vectors of the classes, from a file of `hilda-cache prototypes`.

    Raises:
        UsageError: the file cannot be read, lacks a class, or holds vectors of another width.
    """
    try:
        vectors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read {path}: {error}", "give a file of hilda-cache prototypes") from None
    if missing := [name for name in classes.names if name not in vectors]:
        raise UsageError(f"{path} has no vector of {', '.join(missing)}", "add it to the file of class names")
    found = [vectors[name] for name in classes.names]
    if odd := [tuple(each.shape) for each in found if each.shape != (width,)]:
        raise UsageError(
            f"{path} has vectors of shape {odd[0]}, the head gives {width} channels",
            "make them with the teacher's own model, and --space tokens for its stored tokens",
        )
    return torch.stack(found).float()


def teacher_prototypes(restored: Restored, frames: Frames, number: int) -> Tensor:
    """(K, D) means of a target's teacher at the labelled points that its cameras see, over the training frames."""
    means = ClassMeans(len(frames.classes.names), restored.prepared.widths[number])
    for cache, row in frames.train:
        batch, targets = restored.batch(Clip(cache, None, row, None))
        frame = restored.prepared.caches[cache][row]
        label = frame.points.label
        assert label is not None
        seen = frame.pairs.point[batch.pair_row.numpy()]
        classes = frames.classes.merge(label[seen], frame.cache.manifest.recipe.dataset.name)
        taught = targets.taught[number]
        means.add(targets.layers[number][taught], torch.from_numpy(classes)[taught])
    return means.prototypes()


def zeroshot(restored: Restored, frames: Frames, number: int, head: nn.Module, prototypes: Tensor) -> Scores:
    """Classes by the head's output at every row of its level; see `judge_rows` for what is returned.

    `prototypes` are as `prototype_classes` takes them.
    """

    def classify(feats: Tensor) -> Tensor:
        return prototype_classes(head(feats), prototypes)

    return judge_rows(restored.learner.student, frames, classify, number)
