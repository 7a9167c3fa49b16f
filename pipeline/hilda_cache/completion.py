"""The words that `hilda-cache` completes with; said here because what defines them imports numpy."""

from __future__ import annotations

DATASETS = ("argoverse2", "kitti_raw", "nuscenes", "pandaset", "semantickitti")
ENCODINGS = ("grid", "grid-int8", "point", "point-int8")
PRECISIONS = ("auto", "float32", "bfloat16")
MISSING = ("fail", "skip")
EXPORT_TARGETS = ("webdataset", "datasets")
LIDARS = ("pandar64", "pandargt", "both")
