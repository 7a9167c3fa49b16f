"""A small DINOv2 with fixed random weights: a teacher for tests and demonstrations where nothing may be downloaded.

Random features are no substitute for learnt ones, but they are a smooth function of what the image shows, differ from
token to token and from layer to layer, and are the same on every machine.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from hilda_cache.teachers.huggingface import quiet_transformers
from hilda_schema.terminal import say

_CARD = """---
license: apache-2.0
---
# A DINOv2 of random weights

Written by hilda-cache with seed {seed}. It has learnt nothing: use it to try the pipeline, never for results.
"""


def save_random_dinov2(
    folder: str | Path, seed: int, *, hidden: int = 96, layers: int = 4, heads: int = 3, patch: int = 14
) -> Path:
    """Write a random DINOv2 as a transformers folder (config.json, model.safetensors, README.md).

    Args:
        folder: made if it is not there.
        seed: the weights depend on this and the sizes alone, not on torch's global generator, which is left alone.
        hidden: channels of a token.
        layers: transformer blocks.
        heads: attention heads; must divide `hidden`.
        patch: pixels per token, each way.

    Returns:
        The folder.
    """
    folder = Path(folder)
    config = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=16 * patch,
        patch_size=patch,
        layerscale_value=1.0,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        model = Dinov2Model(config).eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    with quiet_transformers():
        model.save_pretrained(folder, safe_serialization=True)
    (folder / "README.md").write_text(_CARD.format(seed=seed), encoding="utf-8")
    return folder


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that carry a signal of the same size through every layer: variance 1 / fan-in, as LeCun's."""
    for name, parameter in model.named_parameters():
        if name.endswith(("position_embeddings", "cls_token")):
            parameter.normal_(0.0, 0.1, generator=generator)  # present, but weaker than what the image says
        elif parameter.ndim >= 2:
            parameter.normal_(0.0, 1.0 / math.sqrt(parameter[0].numel()), generator=generator)
            if parameter.ndim == 4:  # patch filters: less of the mean brightness, which outshines all else in a photo
                parameter.sub_(0.9 * parameter.mean((2, 3), keepdim=True)).mul_(4.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:  # normalisations and layer scales
            parameter.fill_(1.0)


def main() -> None:
    """`python -m hilda_cache.teachers.random_vit FOLDER`: write one with seed 0."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hilda_cache.teachers.random_vit FOLDER")
    folder = save_random_dinov2(sys.argv[1], seed=0)
    say(f"{folder}: a DINOv2 of random weights; it has learnt nothing, so its features show structure, not meaning")


if __name__ == "__main__":
    main()
