"""The command that makes a store's missing parts again, from what its recipe says."""

from __future__ import annotations

import shlex

from hilda_cache.drives import READER
from hilda_cache.options import ENCODINGS
from hilda_cache.request import ASKED
from hilda_schema.manifest import Recipe

ENCODING_WORDS = {encoding: word for word, encoding in ENCODINGS.items()}


def extract_command(recipe: Recipe, store: str) -> str:
    """`hilda-cache extract` with every option that the recipe follows from.

    A recipe holds no path: ROOT stands for the drive's folder, SOURCE for a model that was given as a folder or file.

    Args:
        recipe: the store's.
        store: its folder.
    """
    dataset, selection = recipe.dataset, recipe.selection
    options = dict(dataset.options)
    words = ["ROOT", "--dataset", options.pop(READER, dataset.name).split(" ")[0], "--out", store]
    for name, value in sorted(options.items()):
        words += ["--option", f"{name}={value}"]
    if selection.scenes is not None:
        words += ["--scenes", ",".join(selection.scenes)]
    if selection.frames != ":":
        words += ["--frames", selection.frames]
    words += ["--cameras", ",".join(dataset.cameras)]
    for each in recipe.teachers:
        hub = each.revision and "/" in each.source
        words += ["--teacher", f"{each.name}={f'{each.source}@{each.revision}' if hub else 'SOURCE'}"]
        words += ["--layers", f"{each.name}={','.join(layer.name for layer in each.layers)}"]
        words += ["--image-size", f"{each.name}={each.image_height_px}x{each.image_width_px}"]
        words += ["--norm", f"{each.name}={each.norm}"]
    words += ["--encoding", ENCODING_WORDS[recipe.encoding.kind, recipe.encoding.dtype]]
    asked = {each.precision for each in recipe.teachers if each.precision_reason.endswith(ASKED)}
    if len(asked) == 1:
        words += ["--precision", asked.pop()]
    words += ["--part-frames", str(recipe.part_frames)]
    if not recipe.store_points:
        words.append("--no-points")
    return "hilda-cache extract " + shlex.join(words)
