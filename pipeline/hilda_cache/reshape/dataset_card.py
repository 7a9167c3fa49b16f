"""README.md of a store: what a stranger reads before trusting it, in the form that dataset hubs show.

It is made from the manifest and the table of frames alone, so that the same store has the same card, and it says
nothing that they do not. Names come from strangers: they are shown as text, never as markup.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hilda_cache.card import totals
from hilda_cache.reshape.again import extract_command
from hilda_schema import __version__
from hilda_schema.durable import replace_file
from hilda_schema.errors import CacheConflict
from hilda_schema.manifest import LayerInfo, Manifest, Parent, TeacherInfo
from hilda_schema.reader import Cache, open_cache
from hilda_schema.root import CARD
from hilda_schema.terminal import counted, human_bytes

MARK = "<!-- written by hilda-cache card: edits are lost when it is written again -->"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_card(store: Path) -> None:
    """Write a store's README.md; one that another hand wrote is left alone.

    Raises:
        CacheConflict: there is a README.md that this program did not write.
        CacheError: the store cannot be read, or the file cannot be written.
    """
    text = card_markdown(open_cache(store, allow_partial=True))
    path = store / CARD
    if path.is_symlink() or (path.exists() and MARK not in path.read_text(errors="replace")):
        raise CacheConflict(f"{path} was not written by this program", "move it away, then: hilda-cache card --write")
    replace_file(store, CARD, text.encode())


def card_markdown(cache: Cache) -> str:
    """The card, with the front matter of the Hugging Face Hub."""
    manifest, sums = cache.manifest, totals(cache)
    blocks = [
        _front_matter(cache, sums),
        MARK,
        f"# Teacher cache: {_title(manifest)}",
        _what(cache, sums),
        "## Licence and privacy",
        _licence(manifest),
        "## How it was made",
        _made(cache),
        "## How to open it",
        _open(cache),
        "## What is in it",
        _contents(sums, manifest),
        _teachers(manifest),
        "## Lineage",
        _lineage(manifest),
        "## How to cite it",
        _cite(manifest),
    ]
    return "\n\n".join(blocks) + "\n"


def _title(manifest: Manifest) -> str:
    dataset = manifest.recipe.dataset
    names = ", ".join(teacher.name for teacher in manifest.recipe.teachers) or "points alone"
    return _text(f"{dataset.name} {dataset.version}".strip() + f", {names}")


def _text(value: str) -> str:
    """Somebody's words as they are: one line, no markup."""
    plain = "".join(each if each.isprintable() else " " for each in value)
    return "".join(f"\\{each}" if each in r"\`*_[]<>|#" else each for each in plain)


def _code(value: str) -> str:
    """Somebody's words as code."""
    plain = "".join(each if each.isprintable() and each != "`" else " " for each in value)
    return f"`{plain}`"


def _front_matter(cache: Cache, sums: dict[str, Any]) -> str:
    """YAML between two lines of dashes; every value is JSON, which is YAML too, so no name can end a line."""
    manifest = cache.manifest
    size = next((name for most, name in SIZES if sums["frames"] < most), "1M<n<10M")
    dataset = manifest.recipe.dataset.name
    fields: dict[str, object] = {
        "pretty_name": f"Teacher cache of {dataset}",
        "license": "other",
        "license_name": "recordings-and-weights",
        "tags": ["lidar", "camera", "distillation", "autonomous-driving", "hilda-lidar", dataset],
        "task_categories": ["image-feature-extraction"],
        "size_categories": [size],
    }
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---"])


def _what(cache: Cache, sums: dict[str, Any]) -> str:
    recipe = cache.manifest.recipe
    points = "LiDAR points, which" if recipe.store_points else "which LiDAR"
    return (
        f"What frozen vision models saw of {counted(sums['frames'], 'frame')} of a recorded drive: {points} point is "
        "seen at which pixel of which camera, and the models' features there. Written by hilda-lidar "
        f"(format {cache.manifest.schema_version}, a Zarr v3 hierarchy); it holds no images."
    )


def _licence(manifest: Manifest) -> str:
    weights = "; ".join(f"{_text(each.name)}: {_text(each.licence)}" for each in manifest.recipe.teachers)
    return (
        f"The recordings' own licence ({_text(manifest.recipe.dataset.name)}) covers points, poses and everything "
        f"derived from the images. Licences of the models' weights: {weights or 'none, there is no model'}.\n\n"
        "Features can be partly inverted into recognisable pictures, and points are a scan of the place: treat the "
        "store like the recordings. Frames can be removed on request with `hilda-cache forget`."
    )


def _made(cache: Cache) -> str:
    manifest = cache.manifest
    recipe = manifest.recipe
    lines = [
        f"- pairs: depth above {recipe.projection.min_depth_m} m; occlusion: {_text(recipe.projection.occlusion)}",
        f"- ground: {_text(recipe.projection.ground)}",
        f"- software: {_text(', '.join(f'{name} {each}' for name, each in sorted(manifest.software.items())))}",
    ]
    if manifest.parents or manifest.forgotten:
        lines.append("- made from other stores: see Lineage")
    else:
        lines.append("- by this command, with ROOT (and a model's SOURCE) filled in:")
        lines.append(f"\n```\n{extract_command(recipe, 'STORE')}\n```")
    return "\n".join(lines)


def _open(cache: Cache) -> str:
    teacher = next(iter(cache.manifest.recipe.teachers), None)
    read = [f"frame.point_features({teacher.name!r}, layer={teacher.layers[-1].name!r})"] if teacher else []
    example = ["from hilda_schema import open_cache", "", 'frame = open_cache("FOLDER")[0]', *read]
    return (
        f"```python\n{chr(10).join(example)}\n```\n\n"
        f"`pip install hilda-lidar` (this card: {__version__}); any Zarr v3 reader opens the arrays. Check every byte "
        "with `hilda-cache verify FOLDER`."
    )


def _contents(sums: dict[str, Any], manifest: Manifest) -> str:
    recipe = manifest.recipe
    coverage = sums["points_seen"] / sums["points"] if sums["points"] else 0.0
    absent = counted(sums["absences"], "image or sweep", "images or sweeps")
    kept = "" if recipe.store_points else " (not stored: the licence of the recordings, or its user, wanted it so)"
    rows = [
        ("frames", f"{sums['frames']:,} in {counted(sums['scenes'], 'scene')}, {human_bytes(sums['bytes'])}"),
        ("cameras", _text(", ".join(recipe.dataset.cameras)) or "none"),
        ("points", f"{sums['points']:,}{kept}, {sums['points_dropped']:,} dropped because they were not finite"),
        ("coverage", f"{coverage:.1%} of points seen by a camera, {sums['pairs']:,} point-camera pairs"),
        ("absent", f"{absent} in {counted(sums['frames_with_absences'], 'frame')}"),
        ("encoding", f"{recipe.encoding.kind} {recipe.encoding.dtype}"),
        ("state", manifest.state),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _teachers(manifest: Manifest) -> str:
    header = "| model | layer | grid | channels | cosine min | cosine mean | relative L2 max | mean |"
    lines = [header, "|" + "---|" * 8]
    for teacher in manifest.recipe.teachers:
        for layer in teacher.layers:
            error = manifest.encoding_error.get(f"{teacher.name}/{layer.name}")
            numbers = (
                [f"{error.cosine_min:.6f}", f"{error.cosine_mean:.6f}", f"{error.relative_l2_max:.2g}",
                 f"{error.relative_l2_mean:.2g}"] if error else ["?"] * 4
            )  # fmt: skip
            cells = [_text(teacher.name), _text(layer.name), f"{layer.height} x {layer.width}", _channels(layer)]
            lines.append(f"| {' | '.join([*cells, *numbers])} |")
    about = [_about(teacher) for teacher in manifest.recipe.teachers]
    told = "Error of the encoding: mean-centred cosine and relative L2 between what was stored and what is read."
    if any(layer.reduction for teacher in manifest.recipe.teachers for layer in teacher.layers):
        told += (
            " Where channels were left out, what is read is lifted first: the stored channels are coordinates along "
            "orthonormal axes, which every part holds (`cache.basis(teacher, layer)`)."
        )
    return "\n".join([*about, "", told, "", *lines])


def _channels(layer: LayerInfo) -> str:
    if layer.reduction is None:
        return str(layer.channels)
    return f"{layer.channels} of {layer.reduction.channels} ({layer.reduction.explained_variance:.1%} of the variance)"


def _about(teacher: TeacherInfo) -> str:
    revision = f"@{teacher.revision}" if teacher.revision else ""
    return (
        f"- {_text(teacher.name)}: {_code(teacher.source + revision)}, {_text(teacher.architecture)}, images of "
        f"{teacher.image_height_px} x {teacher.image_width_px}, {teacher.norm}-norm, "
        f"{_text(teacher.precision_reason)}, "
        f"weights sha256 `{teacher.weights_sha256[:64]}`"
    )


def _lineage(manifest: Manifest) -> str:
    lines = [line for parent in manifest.parents for line in _ancestors(parent, 0)]
    lines += [
        f"- {counted(len(each.frames), 'frame')} removed on request: {_text(each.reason)}"
        for each in manifest.forgotten
    ]
    return "\n".join(lines or ["Extracted from the recordings; made from no other store."])


def _ancestors(parent: Parent, depth: int) -> list[str]:
    detail = f" {_code(parent.detail)}" if parent.detail else ""
    line = f"{'  ' * depth}- {parent.operation}{detail} of `sha256:{parent.root_sha256}`"
    if parent.encoding_error:
        worst = max(error.relative_l2_max for error in parent.encoding_error.values())
        line += f", itself within relative L2 {worst:.2g} of the models; errors above are measured against it"
    return [line, *(each for older in parent.parents for each in _ancestors(older, depth + 1))]


def _cite(manifest: Manifest) -> str:
    if not manifest.root_sha256:
        return "Not complete yet: it has no content hash."
    return (
        f"By its content: `sha256:{manifest.root_sha256}`. Two stores with this hash hold the same bytes in every part."
    )
