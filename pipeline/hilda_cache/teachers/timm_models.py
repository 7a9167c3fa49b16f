"""Models of the timm library, where it is installed: `timm:name`, or `timm:folder` with its config.json and weights.

Weights come from the hub repository timm/<name> (or the folder) as safetensors, and go through the same checks as
those of transformers; timm itself only builds the architecture. timm imports torchvision, which must be installed too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hilda_cache.teachers.base import Preprocessing, TeacherCard
from hilda_cache.teachers.checkpoint import (
    Checkpoint,
    check_loaded,
    licence,
    open_checkpoint,
    stored_tensors,
    triple,
)
from hilda_cache.teachers.frozen import FrozenTeacher, first_line
from hilda_cache.teachers.layers import check_image_size, select_layers
from hilda_cache.teachers.spec import Source, TeacherSpec
from hilda_schema.errors import TeacherError


def load_timm_teacher(spec: TeacherSpec, source: Source, device: str) -> FrozenTeacher:
    """Load a teacher that timm builds; see `load_teacher`."""
    try:
        import timm
    except ImportError as error:
        raise TeacherError(
            f"teacher {spec.name!r} needs timm, which cannot be imported: {first_line(error)}",
            "pip install timm torchvision, or use the model through transformers",
        ) from error
    return TimmTeacher(timm, spec, source, device)


class TimmTeacher(FrozenTeacher):
    """A teacher around a timm model; its layers are timm's intermediates, numbered from 1.

    The global token is CLS after the final normalisation, or the mean of the deepest grid where there is no CLS.

    Raises:
        TeacherError: it does not load whole, or lacks a layer or the norm asked for, or the image size does not fit.
    """

    def __init__(self, timm: Any, spec: TeacherSpec, source: Source, device: str) -> None:
        local = Path(source.place).is_absolute()
        place = Source("folder", source.place) if local else Source("hub", f"timm/{source.place}")
        checkpoint = open_checkpoint(spec, place)
        if checkpoint.pickled:
            raise TeacherError(f"{source.public} has no safetensors weights", "convert them")
        super().__init__(lambda: _build(timm, checkpoint), device)
        step = max(int(entry["reduction"]) for entry in self._model.feature_info)  # type: ignore[union-attr]
        check_image_size(spec.image_size, (step, step), spec.name)
        self._tokens = bool(getattr(self._model, "num_prefix_tokens", 0))
        if spec.norm == "post" and not self._tokens:
            raise TeacherError(f"teacher {spec.name!r} has no final normalisation of every layer", 'use norm "pre"')
        self._post = spec.norm == "post"
        self._chosen: tuple[str, ...] | None = None  # all, until it is known how many there are
        everything, global_width = self._measure(*spec.image_size)
        chosen = [everything[i] for i in select_layers(spec.layers, [shape.name for shape in everything], spec.name)]
        self._chosen = tuple(shape.name for shape in chosen)
        pretrained = checkpoint.config.get("pretrained_cfg", {})
        self.card = TeacherCard(
            name=spec.name,
            source=source.public,
            revision=checkpoint.revision,
            architecture=str(checkpoint.config["architecture"]),
            weights_sha256=checkpoint.weights_sha256(),
            licence=licence(checkpoint.folder),
            norm=spec.norm,
            preprocessing=Preprocessing(
                *spec.image_size,
                triple(pretrained.get("mean"), f"{source.public}: mean"),
                triple(pretrained.get("std"), f"{source.public}: std"),
            ),
            layers=tuple(chosen),
            global_width=global_width,
        )

    def _see(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        model: Any = self._model
        final, maps = model.forward_intermediates(images, norm=self._post, output_fmt="NCHW")
        layers = {str(number): grid for number, grid in enumerate(maps, 1)}
        token = final[:, 0] if self._tokens else maps[-1].mean((2, 3))
        return {name: layers[name] for name in self._chosen or layers}, token


def _build(timm: Any, checkpoint: Checkpoint) -> nn.Module:
    """Let timm build the architecture, then load every weight into it, strictly."""
    config = checkpoint.config
    options = {"pretrained": False, "num_classes": config.get("num_classes"), **config.get("model_args", {})}
    try:
        try:  # a vision transformer fits its positions to any image when it is asked to
            model: nn.Module = timm.create_model(config["architecture"], dynamic_img_size=True, **options)
        except TypeError:
            model = timm.create_model(config["architecture"], **options)
        model.load_state_dict(dict(stored_tensors(checkpoint)), strict=True)
    except TeacherError:
        raise
    except Exception as error:  # a foreign file, read by a library with no error tree of its own
        raise TeacherError(
            f"{checkpoint.shown} cannot be loaded by timm: {first_line(error)}",
            "config.json and weights must be of one model",
        ) from error
    check_loaded(model, checkpoint)
    return model
