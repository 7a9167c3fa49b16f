"""What all teachers share: one device, one precision, no gradients, and answers checked against the card.

Legend: B images, C channels, H x W token grid, D width of the global token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hilda_cache.teachers.attention import CpuAttention
from hilda_cache.teachers.base import Features, LayerShape, TeacherCard
from hilda_schema.errors import TeacherError


class FrozenTeacher(ABC):
    """A `Teacher` around a torch module.

    Args:
        build: makes the module, with its weights, in float32 on the CPU; called again to undo a rounding to bfloat16,
            so that no worker holds two copies of a large model.
        device: where the module runs.
    """

    card: TeacherCard

    def __init__(self, build: Callable[[], nn.Module], device: str) -> None:
        self._build = build
        self._device = torch.device(device)
        self._dtype = torch.float32
        self._model = self._placed(build())

    @abstractmethod
    def _see(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Layers (B, C, H, W) by name, and the global token (B, D), in whatever precision the model runs."""

    def __call__(self, images: Tensor) -> Features:
        """See images; `Teacher.__call__`."""
        pre = self.card.preprocessing
        if images.ndim != 4 or images.shape[1:] != (3, pre.height_px, pre.width_px):
            raise TeacherError(
                f"teacher {self.card.name!r} was shown images of shape {tuple(images.shape)}",
                f"prepare them as (B, 3, {pre.height_px}, {pre.width_px})",
            )
        layers, token = self._forward(images)
        wanted = {layer.name: (layer.channels, layer.height, layer.width) for layer in self.card.layers}
        found = {name: tuple(grid.shape[1:]) for name, grid in layers.items()}
        if found != wanted or (token.shape[1] if token is not None else 0) != self.card.global_width:
            raise TeacherError(f"teacher {self.card.name!r} gave grids of {found}, its card says {wanted}")
        return Features(layers, token)

    def _forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Run the model; float32 answers on the device of the images."""
        with torch.inference_mode():
            try:
                # First to the device: from pinned memory that copy overlaps with what the device computes.
                shown = images.to(self._device, non_blocking=True).to(self._dtype)
                with self._attention():
                    layers, token = self._see(shown)
            except TeacherError:
                raise
            except Exception as error:  # a library's or a user's code, with no error tree of its own
                model, shape = type(self._model).__name__, tuple(images.shape)
                raise TeacherError(
                    f"{model} failed on images of shape {shape}: {first_line(error)}",
                    "choose another --image-size, or fewer images at a time if memory ran out",
                ) from error
            back = {name: grid.to(images.device, torch.float32) for name, grid in layers.items()}
            return back, None if token is None else token.to(images.device, torch.float32)

    def _attention(self) -> AbstractContextManager[object]:
        return CpuAttention() if (self._device.type, self._dtype) == ("cpu", torch.bfloat16) else nullcontext()

    def _measure(self, height_px: int, width_px: int) -> tuple[tuple[LayerShape, ...], int]:
        """Shapes of the layers and the global token's width, seen on one black image."""
        layers, token = self._forward(torch.zeros(1, 3, height_px, width_px))
        shapes = tuple(LayerShape(name, *grid.shape[1:]) for name, grid in layers.items())
        return shapes, 0 if token is None else token.shape[1]

    def to_precision(self, dtype: torch.dtype) -> None:
        """Run the model in `dtype` from now on; `Teacher.to_precision`.

        Raises:
            TeacherError: neither float32 nor bfloat16.
        """
        if dtype not in {torch.float32, torch.bfloat16}:
            raise TeacherError(f"teacher {self.card.name!r} cannot run in {dtype}", "use float32 or bfloat16")
        if dtype == self._dtype:
            return
        self._dtype = dtype
        if dtype == torch.float32:
            self._model = self._placed(self._build())
        else:
            _round(self._model, dtype)

    def _placed(self, model: nn.Module) -> nn.Module:
        return model.requires_grad_(False).eval().to(self._device)


def _round(model: nn.Module, dtype: torch.dtype) -> None:
    """Round weights and statistics in place, but not rotary frequencies: an angle has no spare bits to lose."""
    exact = {name: buffer.clone() for name, buffer in model.named_buffers() if name.rpartition(".")[2] == "inv_freq"}
    model.to(dtype)
    for name, buffer in exact.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer)


def first_line(error: BaseException) -> str:
    """What went wrong in one line: libraries like to write pages."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


@contextmanager
def watching(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collect what modules put out, in their own shape, while the body runs; of a tuple its first element.

    Hooks see the same tensor in every version of a library, whatever it later calls "hidden states" (some versions
    put the last of those through the final normalisation, some do not).
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
