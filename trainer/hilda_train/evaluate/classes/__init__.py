"""Which classes are told apart, and which of them a dataset's own label ids mean: one small YAML file for each choice.

    about: one line for people
    classes: [car, road]                # in the order of results
    datasets:
      nuscenes:                         # a cache's dataset
        ignored: [0, 31]                # ids that count nowhere
        car: [17]
        road: [24]

An id that the file does not mention is an error: a label nobody thought of must not vanish from a score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hilda_schema.errors import UsageError
from hilda_train.config.files import described, find_file, read_file, shipped_names
from hilda_train.config.section import Section
from hilda_train.config.text import validated

IGNORED = -1
"""Class of a point that counts nowhere."""
_UNKNOWN = -2
_IDS = 2**16

__all__ = ["IGNORED", "Classes", "class_files", "load_classes"]


class _File(Section):
    """A file as it is written."""

    about: str
    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    datasets: dict[str, dict[str, tuple[int, ...]]] = Field(min_length=1)

    @model_validator(mode="after")
    def _agrees(self) -> _File:
        if len(set(self.classes)) != len(self.classes) or "ignored" in self.classes:
            raise ValueError(f"classes = {list(self.classes)} has a name twice, or the name 'ignored'")
        for dataset, merged in self.datasets.items():
            if unknown := [name for name in merged if name not in (*self.classes, "ignored")]:
                raise ValueError(f"datasets.{dataset} names {unknown[0]!r}, which classes does not list")
            ids = [number for group in merged.values() for number in group]
            if twice := [number for number in ids if ids.count(number) > 1]:
                raise ValueError(f"datasets.{dataset} mentions id {twice[0]} twice")
            if outside := [number for number in ids if not 0 <= number < _IDS]:
                raise ValueError(f"datasets.{dataset} mentions id {outside[0]}; ids are 0 to {_IDS - 1}")
        return self


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of one file."""

    name: str  # of the file
    names: tuple[str, ...]  # of the classes, in order
    tables: dict[str, NDArray[np.int16]]  # dataset -> (65536,) class of each id

    def merge(self, label: NDArray[np.uint16], dataset: str) -> NDArray[np.int64]:
        """Classes of stored labels.

        Args:
            label: (N,) the dataset's own ids.
            dataset: whose.

        Returns:
            (N,) classes, `IGNORED` where a point counts nowhere.

        Raises:
            UsageError: the file says nothing of an id, or of the dataset.
        """
        merged = self.table(dataset)[label].astype(np.int64)
        unknown = merged == _UNKNOWN
        if unknown.any():
            raise UsageError(
                f"classes {self.name} say nothing of id {label[unknown][0]} of {dataset}",
                "name it in the file, under a class or under ignored",
            )
        return merged

    def table(self, dataset: str) -> NDArray[np.int16]:
        """(65536,) class of each id of a dataset.

        Raises:
            UsageError: the file says nothing of the dataset.
        """
        if dataset not in self.tables:
            raise UsageError(
                f"classes {self.name} say nothing of dataset {dataset!r}",
                f"they are for {', '.join(self.tables)}; give a .yaml file with the ids of {dataset}",
            )
        return self.tables[dataset]


def class_files() -> tuple[str, ...]:
    """Names of the files that are shipped, in alphabetical order."""
    return shipped_names(__name__)


def load_classes(name_or_path: str) -> Classes:
    """Read a class file.

    Args:
        name_or_path: a shipped name, or a YAML file.

    Raises:
        UsageError: there is none of that name, or something is wrong in it.
    """
    file = find_file(name_or_path, __name__, "class file")
    where = described(file, "classes")
    read = validated(_File, read_file(file, where), where, "classes: [car, road]")
    index = {name: number for number, name in enumerate(read.classes)} | {"ignored": IGNORED}
    tables = {}
    for dataset, merged in read.datasets.items():
        table = np.full(_IDS, _UNKNOWN, np.int16)
        for name, ids in merged.items():
            table[list(ids)] = index[name]
        tables[dataset] = table
    return Classes(file.name.removesuffix(".yaml"), read.classes, tables)
