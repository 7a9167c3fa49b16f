"""Hierarchical backbones of the transformers library: a grid per stage, each half as fine as the one before.

    image -> stem (stride 4) -> stage1 (stride 4) -> stage2 (8) -> stage3 (16) -> stage4 (32)

A layer is what a stage's last block puts out, before the next stage merges cells. The final LayerNorm, where there is
one, belongs to the last stage alone. The global token is the model's own pooled output: Swin the mean of the
normalised last grid, ConvNeXt and DINOv3-ConvNeXt the normalised mean, ResNet the mean.

Legend: B images, C channels, H x W token grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hilda_cache.teachers.base import TeacherCard
from hilda_cache.teachers.checkpoint import Checkpoint, licence
from hilda_cache.teachers.frozen import FrozenTeacher, watching
from hilda_cache.teachers.huggingface import builder, preprocessing
from hilda_cache.teachers.layers import check_image_size, select_layers
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema.errors import TeacherError

_STEM_PX = 4


@dataclass(frozen=True, slots=True)
class Family:
    """How one kind of pyramid differs from the next."""

    architecture: str
    """Class in transformers."""
    windows: bool
    """Stages are lists of window-attention blocks over tokens, followed by a merger; else maps to maps."""
    whole_window: bool = False
    """Its position biases are tables for one window, so that no stage may have fewer cells than that."""


FAMILIES = {
    "swin": Family("SwinModel", windows=True, whole_window=True),
    "swinv2": Family("Swinv2Model", windows=True),
    "convnext": Family("ConvNextModel", windows=False),
    "convnextv2": Family("ConvNextV2Model", windows=False),
    "dinov3_convnext": Family("DINOv3ConvNextModel", windows=False),
    "resnet": Family("ResNetModel", windows=False),
}
"""model_type in config.json -> family."""


class Pyramid(FrozenTeacher):
    """A teacher around a hierarchical backbone of the transformers library.

    Raises:
        TeacherError: it does not load whole, or lacks a stage or the norm asked for, or the image size does not fit.
    """

    def __init__(self, spec: TeacherSpec, checkpoint: Checkpoint, family: Family, device: str) -> None:
        super().__init__(builder(spec, checkpoint, family.architecture, "eager"), device)
        self._windows = family.windows
        config: Any = self._model.config
        self._count = len(config.depths)
        self._stem_px = getattr(config, "patch_size", _STEM_PX) * (
            2 if getattr(config, "downsample_in_first_stage", False) else 1
        )
        coarsest = self._stem_px * 2 ** (self._count - 1)
        check_image_size(spec.image_size, (coarsest, coarsest), spec.name)
        if family.whole_window and min(spec.image_size) < coarsest * config.window_size:
            raise TeacherError(
                f"teacher {spec.name!r}: at {spec.image_size[0]}x{spec.image_size[1]} pixels its last stage is smaller "
                f"than one window of {config.window_size}x{config.window_size} cells",
                f"use sides of at least {coarsest * config.window_size} pixels",
            )
        names = [f"stage{number}" for number in range(1, self._count + 1)]
        self._chosen = {names[i]: i for i in select_layers(spec.layers, names, spec.name)}
        self._norm = self._final_norm(spec) if spec.norm == "post" else ""
        shapes, global_width = self._measure(*spec.image_size)
        self.card = TeacherCard(
            name=spec.name,
            source=checkpoint.shown,
            revision=checkpoint.revision,
            architecture=type(self._model).__name__,
            weights_sha256=checkpoint.weights_sha256(),
            licence=licence(checkpoint.folder),
            norm=spec.norm,
            preprocessing=preprocessing(spec, checkpoint, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)),
            layers=shapes,
            global_width=global_width,
        )

    def _see(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        stages = _stages(self._model, self._count)
        with watching({name: self._tap(stages[i]) for name, i in self._chosen.items()}) as seen:
            # Window attention pads by itself, but absolute positions (Swin, optional) must be fitted on request.
            extra = {"interpolate_pos_encoding": True} if self._windows else {}
            output = self._model(pixel_values=images, **extra)
        layers = {name: self._to_grid(seen[name], i, images) for name, i in self._chosen.items()}
        return layers, output.pooler_output.flatten(1)

    def _tap(self, stage: nn.Module) -> nn.Module:
        """The module whose output is the stage's grid."""
        return list(stage.get_submodule("blocks").children())[-1] if self._windows else stage

    def _to_grid(self, output: Tensor, stage: int, images: Tensor) -> Tensor:
        """(B, H W, C) or (B, C, H, W) -> (B, C, H, W), normalised where that was asked for."""
        step = self._stem_px * 2**stage
        grid = (images.shape[2] // step, images.shape[3] // step)
        maps = output.transpose(1, 2).reshape(len(output), -1, *grid) if output.ndim == 3 else output
        if maps.shape[2:] != grid:
            raise TeacherError(f"stage {stage + 1} puts out {tuple(maps.shape[2:])} cells, not {grid}")
        if not self._norm:
            return maps
        normalise = self._model.get_submodule(self._norm)
        normal: Tensor = normalise(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normal

    def _final_norm(self, spec: TeacherSpec) -> str:
        """Name of the final LayerNorm; it fits the last stage alone."""
        names = [name for name, _ in self._model.named_children() if name in {"layernorm", "layer_norm"}]
        if not names or list(self._chosen.values()) != [self._count - 1]:
            raise TeacherError(
                f"teacher {spec.name!r}: only the last stage of a pyramid can have a final normalisation"
                if names
                else f"teacher {spec.name!r} has no final normalisation",
                'use norm "pre"' + (", or the last stage alone" if names else ""),
            )
        return names[0]


def _stages(model: nn.Module, count: int) -> nn.ModuleList:
    """The outermost list of stages, wherever this version of the library keeps it."""
    found = [
        (path.count("."), module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and path.rpartition(".")[2] in {"stages", "layers"}
    ]
    if not found:
        raise TeacherError(f"{type(model).__name__} has no list of {count} stages")
    return min(found, key=lambda entry: entry[0])[1]
