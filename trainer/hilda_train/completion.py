"""The words that `hilda-train` completes with; said here because what defines them imports torch."""

from __future__ import annotations

from hilda_schema.completion import packaged

DEVICES = ("auto", "cpu", "cuda")
EXPORT_TARGETS = (
    "safetensors", "minkowski", "pointcept", "torchsparse", "mmdet3d", "mmdet3d-spconv", "openpcdet", "scalr",
)  # fmt: skip
CORRUPTIONS = (
    "fog", "wet_ground", "snow", "motion_blur", "beam_missing", "crosstalk", "incomplete_echo", "cross_sensor",
)  # fmt: skip
recipes = packaged(__file__, "recipes")
classes = packaged(__file__, "evaluate/classes")
protocols = packaged(__file__, "evaluate/protocols")
