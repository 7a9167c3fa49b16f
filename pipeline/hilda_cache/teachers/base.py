"""The protocol every frozen vision model is put behind.

Legend: B images, C channels, H x W token grid, D width of the global token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # a command line reads specs and cards without paying for torch
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an RGB image becomes the model's input: resized (not cropped), scaled to 0..1, standardised."""

    height_px: int
    width_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The token grid of one stored layer."""

    name: str  # "12" for a transformer block, or the model's own name such as "stage4"
    channels: int
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class TeacherCard:
    """What a stranger needs to know of a teacher to trust or repeat its features."""

    name: str
    source: str  # hub id, folder name or "module:factory"; never an absolute path
    revision: str
    architecture: str
    weights_sha256: str
    licence: str
    norm: str  # "pre" or "post" the model's final normalisation
    preprocessing: Preprocessing
    layers: tuple[LayerShape, ...]  # shallow to deep
    global_width: int  # D; 0 where the model has no global token


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """A batch of images seen by a teacher."""

    layers: dict[str, Tensor]  # name -> (B, C, H, W)
    global_token: Tensor | None  # (B, D)


@runtime_checkable
class Teacher(Protocol):
    """A frozen vision model: normalised images in, token grids and a global token out."""

    card: TeacherCard

    def __call__(self, images: Tensor) -> Features:
        """See images.

        Args:
            images: (B, 3, height_px, width_px) float32, RGB, standardised as `card.preprocessing` says.

        Returns:
            Features of every layer in `card.layers`, float32 whatever precision the model runs in, on the device of
            `images`.

        Raises:
            TeacherError: the images are not as described, or the model fails on them.
        """
        ...

    def to_precision(self, dtype: torch.dtype) -> None:
        """Run the model in `dtype` (float32 or bfloat16) from now on; going back to float32 restores it exactly."""
        ...
