"""A linear probe on a teacher's own stored features: the ceiling of what its students can say about classes.

A point's feature is the mean over the cameras that see it, read as in pre-training. A point that no camera sees has
none: it is neither trained nor tested on, but counted.

Legend: F points of a recorded sweep, N chosen ones, P pairs, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hilda_schema.errors import HildaError, UsageError
from hilda_schema.reader import Cache, Frame
from hilda_train.data.scans import locate_pairs
from hilda_train.data.tokens import TeacherLayer, read_scan_tokens, sample_stored
from hilda_train.evaluate.classes import IGNORED, Classes
from hilda_train.evaluate.frames import CacheFrames
from hilda_train.evaluate.head import Encoded, Judged, SegmentationHead
from hilda_train.evaluate.protocols import Protocol
from hilda_train.evaluate.splits import Place
from hilda_train.evaluate.sweeps import classes_of, in_camera

POINTS_PER_FRAME = 4096
"""Labelled points of a frame that an epoch trains on, drawn anew each time: a bound on memory at any width."""

_HOST = torch.device("cpu")


def find_layer(text: str | None, caches: Sequence[Cache]) -> tuple[TeacherLayer, int]:
    """A stored layer by its name "teacher/layer", and its channels.

    Raises:
        UsageError: none is named, or a cache lacks it, naming those that there are; or caches store other widths.
    """
    widths = []
    for cache in caches:
        stored = {
            f"{name}/{layer.name}": layer.channels for name, each in cache.teachers.items() for layer in each.layers
        }
        if text is None or text not in stored:
            what = "which layer of which teacher?" if text is None else f"{cache.url} has no layer {text}"
            raise UsageError(what, f"--layer takes one of {', '.join(stored) or 'none: the cache has no teacher'}")
        widths.append(stored[text])
    if len(set(widths)) != 1:
        raise UsageError(f"the caches store {text} with {' and '.join(map(str, widths))} channels", "give one of them")
    assert text is not None
    teacher, layer = text.split("/", 1)
    return TeacherLayer(teacher, layer), widths[0]


def features_of(frame: Frame, layer: TeacherLayer, width: int, points: NDArray[np.int64]) -> NDArray[np.float32]:
    """A teacher's features of some points: the mean over the cameras that see each.

    Args:
        frame: from a cache.
        layer: a stored layer.
        width: D, its channels.
        points: (N,) distinct rows of the frame's points.

    Returns:
        (N, D); NaN for a point that no camera with an image sees.

    Raises:
        HildaError: the frame cannot be read.
    """
    row_of = np.full(len(frame.points), -1, np.int64)
    row_of[points] = np.arange(len(points))
    rows = row_of[frame.pairs.point]
    pairs = np.flatnonzero(rows >= 0)
    (stored,) = read_scan_tokens(frame.cache, frame.index, pairs, (layer,), None).layers
    sampled = sample_stored(stored, *locate_pairs(frame, pairs), width, _HOST)
    assert sampled is not None  # `find_layer` has looked
    known = ~sampled.isnan().any(dim=1)
    row = torch.from_numpy(rows[pairs])[known]
    sums = torch.zeros((len(points), width)).index_add_(0, row, sampled[known])
    means: NDArray[np.float32] = (sums / torch.bincount(row, minlength=len(points))[:, None]).numpy()
    return means


@dataclass(frozen=True, slots=True, eq=False)
class TeacherPoints:
    """What a teacher says of points of a frame, or of several."""

    key: str  # of the first frame
    feats: Tensor  # (N, D) finite
    target: Tensor  # (N,) int64 classes
    unseen: int  # points of the frame that no camera sees

    def to(self, device: torch.device) -> TeacherPoints:
        """The same on a device."""
        return replace(self, feats=self.feats.to(device), target=self.target.to(device))

    def pin_memory(self) -> TeacherPoints:
        """The same in page-locked memory."""
        return replace(self, feats=self.feats.pin_memory(), target=self.target.pin_memory())


@dataclass(frozen=True, slots=True)
class TeacherOptions:
    """What is read of a frame."""

    layer: TeacherLayer
    width: int  # D, the layer's channels
    classes: Classes
    seed: int
    most: int | None  # labelled points that are drawn, anew in every epoch; None: every point that a camera sees


class TeacherFrames(CacheFrames[TeacherPoints]):
    """Frames of caches as points with a teacher's features."""

    def __init__(self, urls: Sequence[str], places: Sequence[Place], options: TeacherOptions) -> None:
        super().__init__(urls, places, options.seed)
        self.options = options

    def prepare(self, frame: Frame, rng: np.random.Generator) -> TeacherPoints:
        """A frame's features and classes at the points that a camera sees."""
        options, target = self.options, classes_of(frame, self.options.classes)
        points = np.flatnonzero(in_camera(frame))
        if options.most is not None:
            points = np.sort(rng.permutation(points[target[points] != IGNORED])[: options.most])
        feats = features_of(frame, options.layer, options.width, points)
        known = np.isfinite(feats).all(axis=1)
        unseen = len(target) - int(known.sum())
        return TeacherPoints(
            str(frame.key), torch.from_numpy(feats[known]), torch.from_numpy(target[points[known]]), unseen
        )


def join_points(frames: Sequence[TeacherPoints | HildaError]) -> TeacherPoints | HildaError:
    """A batch; the first error among the frames, where there is one."""
    good: list[TeacherPoints] = []
    for each in frames:
        if isinstance(each, HildaError):
            return each
        good.append(each)
    feats, target = torch.cat([each.feats for each in good]), torch.cat([each.target for each in good])
    return TeacherPoints(good[0].key, feats, target, sum(each.unseen for each in good))


class TeacherProbe(nn.Module):
    """A linear head on a teacher's features.

    Args:
        width: D.
        classes: K.
        norm: batch normalisation before the linear layer.
    """

    def __init__(self, width: int, classes: int, *, norm: bool) -> None:
        super().__init__()
        self.head = SegmentationHead(width, classes, norm=norm, steady=True)

    def encode(self, batch: TeacherPoints, protocol: Protocol) -> Encoded:
        """Points and their classes; a teacher has no voxels, so that the loss is at the points in every protocol."""
        return Encoded(batch.feats, None, batch.target)

    def judge(self, points: TeacherPoints, device: torch.device) -> Judged:
        """Predict the points of a frame that a camera sees.

        Raises:
            TrainError: a prediction is not finite.
        """
        predicted = self.head.classes_of(points.feats.to(device), points.key).cpu().numpy()
        truth = points.target.numpy()
        return Judged(points.key, truth, predicted, np.ones(len(truth), np.bool_), unseen=points.unseen)
