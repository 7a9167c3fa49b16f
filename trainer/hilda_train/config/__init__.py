"""Everything that a pre-training run can be told, as one frozen, strict tree.

    student      which LiDAR backbone, and which of its levels learn
    targets      which stored teacher layer each of those levels learns from
    objectives   what "learn" means: the terms of the loss and their weights
    data         which clips, which points and cameras of them, how they are augmented
    optim, schedule, train

Read `fit.py` for the root, and `student.py`, `objectives.py`, `data.py` and `training.py` for the sections. A section
that comes in variants says which by its first key: `arch` for the student, `kind` elsewhere. `text.py` reads and writes
the tree as YAML, `mistakes.py` turns what is wrong with it into one line per key, and `resolve.py` settles "auto" and
durations once a cache is open. Recipes (`hilda_train.recipes`) are YAML files that hold only what differs.
"""

from hilda_train.config.fit import FitConfig, TargetConfig
from hilda_train.config.resolve import Facts, Resolved, resolve
from hilda_train.config.text import apply_set, differences, digest, dump_effective, from_mapping, overlay

__all__ = [
    "Facts",
    "FitConfig",
    "Resolved",
    "TargetConfig",
    "apply_set",
    "differences",
    "digest",
    "dump_effective",
    "from_mapping",
    "overlay",
    "resolve",
]
