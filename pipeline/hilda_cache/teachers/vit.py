"""Plain vision transformers of the transformers library: one grid of tokens, the same at every depth.

    image -> patches, row by row -> [global | registers] + patches -> block 1 -> ... -> block L -> final LayerNorm

A layer is what a block puts out (norm "pre"), or that through the model's final LayerNorm (norm "post"). Prefix tokens
(CLS, registers) are dropped from it. The global token never depends on `norm`:

    DINOv2, DINOv3   CLS of the last block after the final LayerNorm
    CLIP             CLS of the last block after `post_layernorm`, before the projection to text space
    SigLIP, SigLIP2  there is no CLS: what the attention-pooling head makes of all final tokens; for a model without
                     that head, the mean of the final tokens after the LayerNorm
    RADIO            its summary tokens, one after the other

Position embeddings are fitted to the image size by each model's own code: bicubic for DINOv2, CLIP and SigLIP,
bilinear for SigLIP2 and RADIO, rotary for DINOv3.

Legend: B images, C channels, H x W token grid, N = H W tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from hilda_cache.teachers.base import LayerShape, TeacherCard
from hilda_cache.teachers.checkpoint import Checkpoint, licence
from hilda_cache.teachers.frozen import FrozenTeacher, watching
from hilda_cache.teachers.huggingface import builder, preprocessing
from hilda_cache.teachers.layers import check_image_size, select_layers
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema.errors import TeacherError

_IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
_CLIP = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
_HALF = (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD)


def plain(images: Tensor, patch: tuple[int, int]) -> dict[str, Any]:
    """Inputs of a model that fits its positions to any image by itself; images (B, 3, height_px, width_px)."""
    return {"pixel_values": images}


def interpolated(images: Tensor, patch: tuple[int, int]) -> dict[str, Any]:
    """Inputs of a model that has to be asked to fit its positions; images as `plain`."""
    return {"pixel_values": images, "interpolate_pos_encoding": True}


def patchified(images: Tensor, patch: tuple[int, int]) -> dict[str, Any]:
    """Inputs of SigLIP2 with free aspect ratio: patches row by row, (row, column, colour) in each; see `plain`."""
    batch, _, height, width = images.shape
    grid = (height // patch[0], width // patch[1])
    cells = images.reshape(batch, 3, grid[0], patch[0], grid[1], patch[1])
    patches = cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid[0] * grid[1], -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=images.device),
        "spatial_shapes": torch.tensor([grid] * batch, device=images.device),
    }


def first_token(output: Any) -> Tensor:
    """(B, C) CLS, after the final LayerNorm."""
    token: Tensor = output.last_hidden_state[:, 0]
    return token


def pooled(output: Any) -> Tensor:
    """(B, C) what the model itself pools, else the mean of its final tokens."""
    token: Tensor | None = output.pooler_output
    tokens: Tensor = output.last_hidden_state
    return tokens.mean(1) if token is None else token


def summary(output: Any) -> Tensor:
    """(B, D) RADIO's summary tokens, one after the other."""
    token: Tensor = output.summary
    return token


@dataclass(frozen=True, slots=True)
class Family:
    """How one kind of vision transformer differs from the next."""

    architecture: str
    """Class in transformers."""
    norm: tuple[str, ...]
    """Attribute that holds the final LayerNorm; the first that is there counts, empty where the model has none."""
    prefix: tuple[str, ...]
    """Attributes of the configuration that count prefix tokens, beside `cls`."""
    cls: int
    """Prefix tokens that every model of the family has."""
    inputs: Callable[[Tensor, tuple[int, int]], dict[str, Any]]
    global_token: Callable[[Any], Tensor]
    mean_std: tuple[Any, Any] = _IMAGENET
    """Of RGB in 0..1, where nothing lies beside the weights."""
    attention: str = "sdpa"
    """Implementation, as transformers names it."""


_DINOV2 = Family("Dinov2Model", ("layernorm",), (), 1, plain, first_token)
_REGISTERS = Family("Dinov2WithRegistersModel", ("layernorm",), ("num_register_tokens",), 1, plain, first_token)
_DINOV3 = Family("DINOv3ViTModel", ("norm",), ("num_register_tokens",), 1, plain, first_token)
_CLIP_VISION = Family("CLIPVisionModel", ("post_layernorm",), (), 1, interpolated, pooled, _CLIP)
_SIGLIP = Family("SiglipVisionModel", ("post_layernorm",), (), 0, interpolated, pooled, _HALF)
_SIGLIP2 = Family("Siglip2VisionModel", ("post_layernorm",), (), 0, patchified, pooled, _HALF)
# RADIO standardises inside the model.
_RADIO = Family("RadioModel", (), ("num_cls_tokens", "num_registers"), 0, plain, summary, ((0, 0, 0), (1, 1, 1)))

FAMILIES = {
    "dinov2": _DINOV2,
    "dinov2_with_registers": _REGISTERS,
    "dinov3_vit": _DINOV3,
    "clip": _CLIP_VISION,
    "clip_vision_model": _CLIP_VISION,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "siglip2": _SIGLIP2,
    "siglip2_vision_model": _SIGLIP2,
    "radio": _RADIO,
}
"""model_type in config.json -> family."""

REMOTE = Family(
    "AutoModel",
    ("layernorm", "norm", "post_layernorm"),
    ("num_register_tokens",),
    1,
    plain,
    first_token,
    attention="eager",
)
"""A model that brings its own code: taken to be built like DINOv2, which its token count must bear out."""


class VisionTransformer(FrozenTeacher):
    """A teacher around a vision transformer of the transformers library.

    Raises:
        TeacherError: it does not load whole, or lacks a layer or the norm asked for, or the image size does not fit.
    """

    def __init__(self, spec: TeacherSpec, checkpoint: Checkpoint, family: Family, device: str) -> None:
        super().__init__(builder(spec, checkpoint, family.architecture, family.attention), device)
        self._family = family
        config: Any = self._model.config
        self._patch = _pair(config.patch_size)
        check_image_size(spec.image_size, self._patch, spec.name)
        self._prefix = family.cls + sum(int(getattr(config, name, 0)) for name in family.prefix)
        self._depth = int(config.num_hidden_layers)
        names = [str(number) for number in range(1, self._depth + 1)]
        self._chosen = {names[i]: i for i in select_layers(spec.layers, names, spec.name)}
        self._norm = _final_norm(self._model, family, spec.name) if spec.norm == "post" else ""
        # One token is enough to see the widths; that whole images give whole grids is checked on every call.
        shapes, global_width = self._measure(*self._patch)
        grid = (spec.image_size[0] // self._patch[0], spec.image_size[1] // self._patch[1])
        self.card = TeacherCard(
            name=spec.name,
            source=checkpoint.shown,
            revision=checkpoint.revision,
            architecture=type(self._model).__name__,
            weights_sha256=checkpoint.weights_sha256(),
            licence=licence(checkpoint.folder),
            norm=spec.norm,
            preprocessing=preprocessing(spec, checkpoint, family.mean_std),
            layers=tuple(LayerShape(shape.name, shape.channels, *grid) for shape in shapes),
            global_width=global_width,
        )

    def _see(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        blocks = _blocks(self._model, self._depth)
        with watching({name: blocks[i] for name, i in self._chosen.items()}) as seen:
            output = self._model(**self._family.inputs(images, self._patch))
        grid = (images.shape[2] // self._patch[0], images.shape[3] // self._patch[1])
        layers = {name: self._to_grid(seen[name], grid) for name in self._chosen}
        return layers, self._family.global_token(output)

    def _to_grid(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, prefix + N, C) -> (B, C, H, W), normalised where that was asked for."""
        if tokens.ndim != 3 or tokens.shape[1] != self._prefix + grid[0] * grid[1]:
            raise TeacherError(
                f"a block puts out {tuple(tokens.shape)}, not (B, {self._prefix} + {grid[0]} x {grid[1]}, C): "
                "this is not a plain vision transformer",
                "load the model in a function of your own and give module:factory",
            )
        patches: Tensor = tokens[:, self._prefix :]
        if self._norm:
            patches = self._model.get_submodule(self._norm)(patches)
        return patches.transpose(1, 2).reshape(len(tokens), -1, *grid)


def _pair(value: Any) -> tuple[int, int]:
    """A patch size as (height, width)."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _blocks(model: nn.Module, depth: int) -> nn.ModuleList:
    """The list of transformer blocks, wherever this version of the library keeps it."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not lists:
        raise TeacherError(f"{type(model).__name__} has no list of {depth} blocks")
    return lists[0]


def _final_norm(model: nn.Module, family: Family, teacher: str) -> str:
    """Path of the final LayerNorm: the outermost module of that name."""
    paths: list[str] = sorted((path for path, _ in model.named_modules()), key=lambda path: path.count("."))
    for wanted in family.norm:
        for path in paths:
            if path.rpartition(".")[2] == wanted:
                return path
    raise TeacherError(f"teacher {teacher!r} has no final normalisation", 'use norm "pre"')
