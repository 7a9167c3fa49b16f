"""Models of the transformers library: which ones, and how they are loaded without being trusted.

Whatever its name, a source ends as a folder here (the hub's local cache is one). The model's type, as config.json
states it, decides between a plain vision transformer (`vit.py`) and a pyramid of stages (`pyramid.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging as transformers_logging

from hilda_cache.teachers.base import Preprocessing, Teacher
from hilda_cache.teachers.checkpoint import Checkpoint, check_loaded, open_checkpoint, stored_mean_std
from hilda_cache.teachers.frozen import first_line
from hilda_cache.teachers.spec import Source, TeacherSpec
from hilda_schema.errors import TeacherError

# Parts of a checkpoint that no image teacher needs: text towers and heads. Nothing else may be left over.
_NOT_FOR_IMAGES = re.compile(
    r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias|classifier)\b|(^|\.)position_ids$"
)


def load_huggingface_teacher(spec: TeacherSpec, source: Source, device: str) -> Teacher:
    """Load a teacher from a model folder or the hub; see `load_teacher`."""
    from hilda_cache.teachers import pyramid, vit

    checkpoint = open_checkpoint(spec, source)
    kind = str(checkpoint.config.get("model_type", ""))
    if kind in pyramid.FAMILIES:
        return pyramid.Pyramid(spec, checkpoint, pyramid.FAMILIES[kind], device)
    if kind in vit.FAMILIES:
        return vit.VisionTransformer(spec, checkpoint, vit.FAMILIES[kind], device)
    if spec.trust_remote_code and "auto_map" in checkpoint.config:
        return vit.VisionTransformer(spec, checkpoint, vit.REMOTE, device)
    raise TeacherError(
        f"{checkpoint.shown} is a model of type {kind or 'unknown'!r}, which is no known image teacher",
        f"known are {', '.join(sorted(vit.FAMILIES | pyramid.FAMILIES))}; for another, write a function and give "
        "module:factory",
    )


def preprocessing(
    spec: TeacherSpec,
    checkpoint: Checkpoint,
    default: tuple[Sequence[float], Sequence[float]],
) -> Preprocessing:
    """The user's image size, with the mean and std that lie beside the weights, else those of the model's family."""
    mean, std = stored_mean_std(checkpoint.folder, checkpoint.shown) or default
    return Preprocessing(*spec.image_size, tuple(mean), tuple(std))  # type: ignore[arg-type]


def builder(spec: TeacherSpec, checkpoint: Checkpoint, architecture: str, attention: str) -> Callable[[], nn.Module]:
    """A function that loads the model, whole or not at all.

    Args:
        spec: whether remote code is trusted.
        checkpoint: the folder.
        architecture: class name in transformers.
        attention: the attention implementation; named, because a configuration could ask for one that is downloaded.

    Raises:
        TeacherError: transformers has no such class; or, from the function, the model cannot be loaded whole.
    """
    loader = getattr(transformers, architecture, None)
    if loader is None:
        raise TeacherError(
            f"transformers {transformers.__version__} has no {architecture}", "pip install -U transformers"
        )

    def build() -> nn.Module:
        model: nn.Module
        try:
            with quiet_transformers():
                model, account = loader.from_pretrained(
                    checkpoint.folder,
                    dtype=torch.float32,
                    use_safetensors=not checkpoint.pickled,
                    local_files_only=True,
                    trust_remote_code=spec.trust_remote_code,
                    attn_implementation=attention,
                    ignore_mismatched_sizes=True,  # they are refused below, by name
                    output_loading_info=True,
                )
        except Exception as error:  # a foreign file, read by a library with no error tree of its own
            raise TeacherError(
                f"{checkpoint.shown} cannot be loaded: {first_line(error)}", "check the folder, or download it again"
            ) from error
        _check_account(account, checkpoint.shown)
        check_loaded(model, checkpoint)
        return model

    return build


def _check_account(account: dict[str, Any], shown: str) -> None:
    """Refuse a model of which a weight did not load: transformers would have made one up.

    Raises:
        TeacherError: naming some of the keys.
    """
    unexpected = [key for key in account.get("unexpected_keys", ()) if not _NOT_FOR_IMAGES.search(key)]
    # Transformers 4 gives names here, transformers 5 names with the two shapes.
    mismatched = [entry if isinstance(entry, str) else entry[0] for entry in account.get("mismatched_keys", ())]
    faults = {
        "not in the file": sorted(account.get("missing_keys", ())),
        "of another shape in the file": sorted(mismatched),
        "in the file and not in the model": sorted(unexpected),
    }
    said = [f"weights {what}: {_some(keys)}" for what, keys in faults.items() if keys]
    if said or account.get("error_msgs"):
        raise TeacherError(
            f"{shown} did not load whole: {'; '.join(said or map(str, account['error_msgs'][:1]))}",
            "config.json and weights must be of one model; download both again, or update transformers",
        )


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing reports and bars of its own; errors are raised here with more care."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
