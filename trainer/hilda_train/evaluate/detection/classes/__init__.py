"""Which boxes are told apart: one small YAML file for each choice.

    about: one line for people
    classes:                            # in the order of results
      car: {range_m: 50}                # boxes farther from the LiDAR count nowhere
      barrier: {range_m: 30, front: false, moves: false}      # its front is its back, it has no velocity
    datasets:
      nuscenes:                         # a label file's dataset
        ignored: [animal]
        car: [vehicle.car]

A category that the file does not mention is an error: an object nobody thought of must not vanish from a score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hilda_schema.boxes import Boxes
from hilda_schema.errors import UsageError
from hilda_train.config.files import described, find_file, read_file, shipped_names
from hilda_train.config.section import Positive, Section
from hilda_train.config.text import validated

IGNORED = -1
"""Class of a box that counts nowhere."""

__all__ = ["IGNORED", "BoxClass", "BoxClasses", "box_class_files", "load_box_classes"]


class BoxClass(Section):
    """One class."""

    range_m: Positive
    """Horizontal distance from the LiDAR within which boxes count."""
    front: bool = True
    """Whether it has a front: else a direction and its opposite are one."""
    turns: bool = True
    """Whether its direction is judged."""
    moves: bool = True
    """Whether its velocity is judged."""


class _File(Section):
    about: str
    classes: dict[str, BoxClass] = Field(min_length=1, max_length=64)
    datasets: dict[str, dict[str, tuple[str, ...]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _agrees(self) -> _File:
        if "ignored" in self.classes:
            raise ValueError("a class cannot be called 'ignored'")
        for dataset, merged in self.datasets.items():
            if unknown := [name for name in merged if name not in (*self.classes, "ignored")]:
                raise ValueError(f"datasets.{dataset} names {unknown[0]!r}, which classes does not list")
            names = [name for group in merged.values() for name in group]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"datasets.{dataset} mentions {twice[0]!r} twice")
        return self


@dataclass(frozen=True, slots=True)
class BoxClasses:
    """The classes of one file."""

    name: str  # of the file
    classes: dict[str, BoxClass]  # in order
    tables: dict[str, dict[str, int]]  # dataset -> category -> class

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes, in order."""
        return tuple(self.classes)

    def merge(self, boxes: Boxes, dataset: str) -> NDArray[np.int64]:
        """(M,) classes of a frame's boxes, `IGNORED` where a box counts nowhere.

        Raises:
            UsageError: the file says nothing of a category, or of the dataset.
        """
        table = self.table(dataset)
        for category in dict.fromkeys(boxes.category):
            if category not in table:
                raise UsageError(
                    f"classes {self.name} say nothing of category {category!r} of {dataset}",
                    "name it in the file, under a class or under ignored",
                )
        return np.array([table[category] for category in boxes.category], np.int64)

    def table(self, dataset: str) -> dict[str, int]:
        """Class of each category of a dataset.

        Raises:
            UsageError: the file says nothing of the dataset.
        """
        if dataset not in self.tables:
            raise UsageError(
                f"classes {self.name} say nothing of dataset {dataset!r}",
                f"they are for {', '.join(self.tables)}; give a .yaml file with the categories of {dataset}",
            )
        return self.tables[dataset]


def box_class_files() -> tuple[str, ...]:
    """Names of the files that are shipped, in alphabetical order."""
    return shipped_names(__name__)


def load_box_classes(name_or_path: str) -> BoxClasses:
    """Read a file of classes.

    Raises:
        UsageError: there is none of that name, or something is wrong in it.
    """
    file = find_file(name_or_path, __name__, "file of box classes")
    where = described(file, "box classes")
    read = validated(_File, read_file(file, where), where, "classes: {car: {range_m: 50}}")
    index = {name: number for number, name in enumerate(read.classes)} | {"ignored": IGNORED}
    tables = {
        dataset: {category: index[name] for name, group in merged.items() for category in group}
        for dataset, merged in read.datasets.items()
    }
    return BoxClasses(file.name.removesuffix(".yaml"), read.classes, tables)
