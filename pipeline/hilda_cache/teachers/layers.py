"""Which layers, which image sizes: what a user asked for against what the model has.

Legend: steps are the pixels, vertical and horizontal, from one token to the next in the coarsest grid.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from hilda_schema.errors import TeacherError


def select_layers(asked: Sequence[str | int], names: Sequence[str], teacher: str) -> tuple[int, ...]:
    """Find layers by name, by number from 1, or by negative index from the end.

    Args:
        asked: as users write them.
        names: all of the model's layers, shallow to deep.
        teacher: its name, for messages.

    Returns:
        Positions in `names`, shallow to deep whatever the order of asking, so that one set of layers is one recipe.

    Raises:
        TeacherError: a layer that the model does not have, or the same one twice.
    """
    found: dict[int, str] = {}
    for text in map(str, asked):
        position = _position(text, names)
        if position is None:
            raise TeacherError(f"teacher {teacher!r} has no layer {text!r}", _hint(text, names))
        if position in found:
            raise TeacherError(
                f"teacher {teacher!r}: layers {found[position]!r} and {text!r} are the same", "name each layer once"
            )
        found[position] = text
    return tuple(sorted(found))


def _position(text: str, names: Sequence[str]) -> int | None:
    if text in names:
        return names.index(text)
    try:
        number = int(text)
    except ValueError:
        return None
    position = len(names) + number if number < 0 else number - 1
    return position if 0 <= position < len(names) else None


def _hint(text: str, names: Sequence[str]) -> str:
    span = f"it has {len(names)} layers, {names[0]} to {names[-1]} (or -{len(names)} to -1)"
    close = difflib.get_close_matches(text, names, n=1)
    return f"did you mean {close[0]!r}? {span}" if close else span


def check_image_size(size: tuple[int, int], steps: tuple[int, int], teacher: str) -> None:
    """Make sure that whole tokens cover the whole image.

    Args:
        size: (height, width) in pixels.
        steps: (vertical, horizontal) in pixels.
        teacher: its name, for messages.

    Raises:
        TeacherError: a side is not a multiple of its step; names the nearest sizes that are.
    """
    if all(side % step == 0 for side, step in zip(size, steps, strict=True)):
        return
    below = [max(side // step, 1) * step for side, step in zip(size, steps, strict=True)]
    above = [-(-side // step) * step for side, step in zip(size, steps, strict=True)]
    sizes = dict.fromkeys(f"{height}x{width}" for height, width in (below, above))
    raise TeacherError(
        f"teacher {teacher!r}: image size {size[0]}x{size[1]} is not a multiple of {steps[0]}x{steps[1]} pixels",
        f"use --image-size {' or '.join(sizes)}",
    )
