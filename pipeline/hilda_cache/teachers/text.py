"""Class names as vectors: what a CLIP-like model's text tower makes of them, to classify features without training.

For each class, every word of it in every template is embedded, each embedding is made a unit vector, and so is their
mean (CLIP's prompt ensembling). A feature is then of the class whose vector has the largest product with it.

A cache holds a CLIP's tokens as they are before the projection to the space that images share with text. `space`
says which of the two the vectors are for:

    text      unit vectors t; for features of a model whose tokens lie in that space already
    tokens    W' t with W the model's visual projection, of the tokens' width. As (W f).t = f.(W' t), and |W f| is the
              same for all classes, the largest product is the largest cosine in the shared space. The projection was
              trained on tokens after the final normalisation: extract them with --norm post.

Legend: P prompts, D width of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hilda_cache.teachers.checkpoint import Checkpoint, open_checkpoint
from hilda_cache.teachers.frozen import first_line
from hilda_cache.teachers.huggingface import builder, quiet_transformers
from hilda_cache.teachers.spec import TeacherSpec, parse_source
from hilda_schema.errors import TeacherError, UsageError

Space = Literal["tokens", "text"]
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "there is a {} in the scene.", "a {} on the street.")
# model type -> (class in transformers, what the tower's pooled output goes through, how it was padded in training)
_TOWERS: dict[str, tuple[str, str | None, str | bool]] = {
    "clip": ("CLIPModel", "text_projection", True),
    "siglip": ("SiglipModel", None, "max_length"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """Vectors of some classes."""

    vectors: dict[str, NDArray[np.float32]]  # class -> (D,)
    about: dict[str, str]  # model, weights, templates, space


def read_classes(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a file of classes: one a line, "name" or "name: word, other word"; # begins a comment.

    Returns:
        Class -> the words that stand for it; the name itself, with spaces for underscores, where it says none.

    Raises:
        UsageError: the file cannot be read, is empty, or has a line that means nothing, or a class twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {path}: {first_line(error)}", "give a text file of classes, one a line"
        ) from None
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        name, colon, rest = (part.strip() for part in line.partition("#")[0].partition(":"))
        words = tuple(word.strip() for word in rest.split(",")) if colon else (name.replace("_", " "),)
        if not name and not colon:
            continue
        if not name or not all(words):
            raise UsageError(f"{path}, line {number}: {line.strip()!r} is no class", "write name: word, other word")
        if name in found:
            raise UsageError(f"{path}, line {number}: {name} is there twice", "give all of its words on one line")
        found[name] = words
    if not found:
        raise UsageError(f"{path} names no class", "write one a line")
    return found


def text_prototypes(
    source: str,
    classes: Mapping[str, Sequence[str]],
    templates: Sequence[str] = TEMPLATES,
    space: Space = "tokens",
) -> Prototypes:
    """Embed classes with the text tower of a CLIP or SigLIP.

    Args:
        source: a transformers folder or a hub id, with the tokeniser beside the weights.
        classes: name -> words that stand for it.
        templates: sentences with {} where the word goes.
        space: see above.

    Raises:
        UsageError: a template without {}, an unknown space, or a source that is no folder and no hub id.
        TeacherError: the model is not of a known type, or cannot be loaded whole.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f"template {template!r} has no place for the class", 'write {} once, "a photo of a {}."')
    if space not in get_args(Space):
        raise UsageError(f"--space {space} is not known", f"use {' or '.join(get_args(Space))}")
    checkpoint, model = _load(source)
    _, projection, padding = _TOWERS[checkpoint.config["model_type"]]
    tokenise = _tokeniser(source, checkpoint)
    back = _pull_back(model, checkpoint) if space == "tokens" else None
    vectors = {}
    for name, words in classes.items():
        prompts = [template.format(word) for word in words for template in templates]
        unit = F.normalize(_embed(model, tokenise, prompts, projection, padding), dim=1)
        mean = F.normalize(unit.mean(dim=0), dim=0)
        vectors[name] = (mean if back is None else back.T @ mean).numpy()
    about = {
        "model": checkpoint.shown,
        "weights_sha256": checkpoint.weights_sha256(),
        "templates": "\n".join(templates),
        "space": space,
    }
    return Prototypes(vectors, about)


def write_prototypes(prototypes: Prototypes, out: Path) -> None:
    """Write a safetensors file: class -> (D,) float32, and where they are from as its metadata.

    Raises:
        UsageError: it cannot be written.
    """
    from safetensors.numpy import save

    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_bytes(save(prototypes.vectors, metadata=prototypes.about))
        partial.replace(out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", "choose another --out") from None


def _load(source: str) -> tuple[Checkpoint, nn.Module]:
    place = parse_source(source)
    if place.kind not in {"folder", "hub"}:
        raise UsageError(f"{source} is no folder and no hub id", "give a CLIP or SigLIP of the transformers library")
    spec = TeacherSpec("text", source)
    checkpoint = open_checkpoint(spec, place)
    kind = str(checkpoint.config.get("model_type", ""))
    if kind not in _TOWERS:
        raise TeacherError(
            f"{checkpoint.shown} is a model of type {kind or 'unknown'!r}, which has no text tower known here",
            f"known are {', '.join(_TOWERS)}, with both towers in one model",
        )
    return checkpoint, builder(spec, checkpoint, _TOWERS[kind][0], "sdpa")().eval()


def _tokeniser(source: str, checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    place = parse_source(source)
    hub = place.kind == "hub"
    remedy = "put tokenizer.json (or vocab.json and merges.txt) beside its weights"
    try:
        with quiet_transformers():
            tokenise = AutoTokenizer.from_pretrained(
                place.place if hub else checkpoint.folder,
                revision=checkpoint.revision if hub else None,
                local_files_only=not hub,
            )
    except Exception as error:  # a foreign file, read by a library with no error tree of its own
        raise TeacherError(
            f"{checkpoint.shown} has no tokeniser that can be loaded: {first_line(error)}", remedy
        ) from error
    # Transformers 5 makes an empty one where there is no file: every letter is then the same unknown token.
    first, second = (set(tokens) for tokens in tokenise(["car", "tree"])["input_ids"])
    if first == second:
        raise TeacherError(f"{checkpoint.shown} has no tokeniser: all words are one to it", remedy)
    return tokenise


@torch.inference_mode()
def _embed(model: nn.Module, tokenise: Any, prompts: list[str], projection: str | None, padding: str | bool) -> Tensor:
    """(P, D) float32 embeddings in the space shared with images."""
    tower: Any = model.get_submodule("text_model")
    length = tower.config.max_position_embeddings
    tokens = tokenise(prompts, padding=padding, max_length=length, truncation=True, return_tensors="pt")
    mask = tokens.get("attention_mask") if padding is True else None  # SigLIP was trained to see its padding
    pooled: Tensor = tower(input_ids=tokens["input_ids"], attention_mask=mask).pooler_output
    return model.get_submodule(projection)(pooled) if projection else pooled


def _pull_back(model: nn.Module, checkpoint: Checkpoint) -> Tensor:
    """(D, C) the projection from tokens to the shared space."""
    try:
        projection = model.get_submodule("visual_projection")
    except AttributeError:
        raise TeacherError(
            f"{checkpoint.shown} has no linear projection from its tokens to the space of text",
            "use --space text, for features that lie in that space",
        ) from None
    weight = projection.weight
    assert isinstance(weight, Tensor)
    return weight.detach()
