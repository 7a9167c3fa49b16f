"""LiDAR backbones ("students"), all behind one protocol: points in, features of the last levels at the points out.

    student = build_student({"name": "minkunet", "depth": 34, "in_channels": 4})
    features = student(batch)           # [(N, 96), (N, 96)] for block7 and block8

Read `student.py` for the protocol, `points.py` for the batch, `minkunet.py` and `waffleiron.py` for the networks and
`sparse/` for sparse convolution itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from hilda_schema.errors import UsageError
from hilda_train.students.points import PointBatch, Voxels, read_at_points
from hilda_train.students.student import Level, Student

__all__ = ["STUDENTS", "Level", "PointBatch", "Student", "Voxels", "build_student", "read_at_points"]

# name -> "module:class"; options are the class's own arguments
STUDENTS = {
    "minkunet": "hilda_train.students.minkunet:MinkUNet",
    "waffleiron": "hilda_train.students.waffleiron:WaffleIron",
}


def build_student(config: Mapping[str, Any]) -> Student:
    """Build a backbone, with fresh weights.

    Args:
        config: `name`, one of `STUDENTS`, and the options of that class.

    Raises:
        UsageError: an unknown name or option, or a value that the class refuses.
    """
    options = dict(config)
    name = options.pop("name", None)
    if name not in STUDENTS:
        raise UsageError(f"student {name!r} is not known", f"use one of {', '.join(sorted(STUDENTS))}")
    module, _, class_name = STUDENTS[name].partition(":")
    network = getattr(import_module(module), class_name)
    known = list(inspect.signature(network).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"student {name} has no option {unknown[0]!r}", f"it takes {', '.join(known)}")
    student: Student = network(**options)
    return student
