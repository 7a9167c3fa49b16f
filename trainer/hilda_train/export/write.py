"""Targets by name, and the files that an export consists of.

backbone.pth (or .pt, .safetensors)    the weights
backbone.json                          what they are, what they want to see, how the target is told to use them
openpcdet_minkunet.py                  for OpenPCDet only: the module that they belong to
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from hilda_schema.durable import write_synced
from hilda_schema.errors import UsageError
from hilda_schema.manifest import sha256_hex
from hilda_train.config.student import MinkUNetConfig
from hilda_train.export import minkowski, mmdet3d, openpcdet, pointcept, scalr, torchsparse
from hilda_train.export.backbone import Backbone, State

MODULE = "openpcdet_minkunet.py"


@dataclass(frozen=True, slots=True)
class Target:
    """How one kind of code wants its weights."""

    convert: Callable[[Backbone], State]
    suffix: str
    layout: str
    """Kernel layout, for people and for whoever converts on."""
    use: str
    """One sentence: how to load the file."""
    root: str = ""
    """The key under which the file holds the weights; empty where it holds nothing else."""
    model_config: Callable[[Backbone], dict[str, Any]] | None = None
    """What the target's own config should say."""
    extra: Callable[[Backbone], dict[str, Any]] | None = None
    """Other keys of the file."""


_ME = "(K^3, Cin, Cout), x fastest, then y, then z"
_TORCHSPARSE = "(K^3, Cin, Cout), odd K: x fastest; even K: z fastest"

TARGETS: Mapping[str, Target] = {
    "safetensors": Target(
        lambda backbone: dict(backbone.state),
        ".safetensors",
        _ME,
        "safetensors.torch.load_file, into hilda_train.students.build_student or your own module",
    ),
    "minkowski": Target(
        minkowski.convert,
        ".pt",
        _ME,
        "SLidR: downstream.py --pretraining_path; its MinkUNet must have the input channels of backbone.json, "
        "or its loader leaves the first layer out",
        root="model_points",
        extra=minkowski.slidr_config,
    ),
    "pointcept": Target(
        pointcept.convert,
        ".pth",
        _ME,
        "set weight=backbone.pth in the config; only backbone.final is missing afterwards",
        root="state_dict",
        model_config=pointcept.model_config,
    ),
    "torchsparse": Target(
        torchsparse.convert,
        ".pth",
        _TORCHSPARSE,
        "OpenPCSeg: --pretrained_model; SPVNAS-like code: load_state_dict of the key model_state",
        root="model_state",
        model_config=torchsparse.model_config,
    ),
    "mmdet3d": Target(
        mmdet3d.convert_torchsparse,
        ".pth",
        _TORCHSPARSE,
        "set load_from=backbone.pth in the config; only the decode head is missing afterwards",
        root="state_dict",
        model_config=partial(mmdet3d.model_config, sparseconv_backend="torchsparse"),
    ),
    "mmdet3d-spconv": Target(
        mmdet3d.convert_spconv,
        ".pth",
        "(Cout, Kx, Ky, Kz, Cin)",
        "set load_from=backbone.pth in the config, and batch_first=True in the data preprocessor",
        root="state_dict",
        model_config=partial(mmdet3d.model_config, sparseconv_backend="spconv"),
    ),
    "openpcdet": Target(
        openpcdet.convert,
        ".pth",
        "(Cout, Kz, Ky, Kx, Cin)",
        f"copy {MODULE} into pcdet/models/backbones_3d (it says how), then train.py --pretrained_model backbone.pth; "
        "INTENSITY_MEAN and INTENSITY_STD are those of your sensor",
        root="model_state",
        model_config=openpcdet.model_config,
    ),
    "scalr": Target(
        scalr.convert,
        ".pth",
        "dense 2D convolutions only",
        "ScaLR: finetune.py --pretrained_ckpt backbone.pth; a student with GELU needs its branch scalr_plus",
        root="model_point",
        model_config=scalr.model_config,
    ),
}


def export_backbone(backbone: Backbone, target: str, out: Path) -> list[Path]:
    """Write a backbone for a target.

    Args:
        backbone: from `load_backbone`.
        target: one of `TARGETS`.
        out: folder; made where it is missing.

    Returns:
        The files written.

    Raises:
        UsageError: an unknown target, one that cannot express this student, or files that are there already.
    """
    if target not in TARGETS:
        raise UsageError(f"there is no export target {target!r}", f"use one of {', '.join(TARGETS)}")
    chosen = TARGETS[target]
    weights = _weights(backbone, chosen)
    files = {f"backbone{chosen.suffix}": weights}
    files["backbone.json"] = _card(backbone, target, sha256_hex(weights))
    if target == "openpcdet":
        files[MODULE] = (resources.files("hilda_train.export") / MODULE).read_bytes()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "give a folder: an export is several files")
    present = [name for name in files if (out / name).exists()]
    if present:
        raise UsageError(f"{out / present[0]} is there already", "give another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        temporary = out / f".{name}.partial"
        temporary.unlink(missing_ok=True)
        write_synced(temporary, data)
        temporary.replace(out / name)
    return [out / name for name in files]


def _weights(backbone: Backbone, target: Target) -> bytes:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in target.convert(backbone).items()}
    if not target.root:
        # One entry alone: safetensors writes several in an order that changes from call to call.
        return bytes(save(state, metadata={"kernel_layout": target.layout}))
    content: dict[str, Any] = {target.root: state}
    if target.extra is not None:
        content |= target.extra(backbone)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _card(backbone: Backbone, target: str, weights_sha256: str) -> bytes:
    chosen, student = TARGETS[target], backbone.student
    card: dict[str, Any] = {
        "format": "hilda-backbone 1",
        "target": target,
        "weights": f"backbone{chosen.suffix}",
        "weights_sha256": weights_sha256,
        "use": chosen.use,
        "kernel_layout": chosen.layout,
        "input": {"channels": list(student.channels), "intensity": backbone.facts.get("intensity", {})},
        "student": student.model_dump(mode="json"),
        "facts": dict(backbone.facts),
    }
    if isinstance(student, MinkUNetConfig):
        card["input"]["voxels"] = student.voxels.model_dump(mode="json")
    if chosen.model_config is not None:
        card["model_config"] = chosen.model_config(backbone)
    return json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
