"""A store's card: what a stranger needs to know before trusting it, as text for people and as JSON for scripts."""

from __future__ import annotations

import json
from typing import Any

from hilda_schema.manifest import LayerInfo, Manifest, TeacherInfo
from hilda_schema.reader import Cache
from hilda_schema.terminal import counted, human_bytes, plain


def card_json(cache: Cache) -> dict[str, Any]:
    """The manifest with the store's totals beside it."""
    return {"totals": totals(cache), "manifest": cache.manifest.model_dump(mode="json")}


def totals(cache: Cache) -> dict[str, Any]:
    """Counts over all frames."""
    frames = cache.frames
    absent = [row for text in frames.column("absent").to_pylist() if (row := json.loads(text))]
    return {
        "frames": len(cache),
        "scenes": len(set(frames.column("scene").to_pylist())),
        "parts": len(cache.parts),
        "bytes": sum(part.bytes for part in cache.parts),
        "points": _sum(frames, "points"),
        "points_dropped": _sum(frames, "points_dropped"),
        "points_seen": _sum(frames, "points_seen"),
        "pairs": _sum(frames, "pairs"),
        "frames_with_absences": len(absent),
        "absences": sum(len(row) for row in absent),
    }


def _sum(frames: Any, column: str) -> int:
    return sum(frames.column(column).to_pylist())


def card_text(cache: Cache) -> str:
    """The card for people."""
    manifest, sums = cache.manifest, totals(cache)
    recipe = manifest.recipe
    version = f" {recipe.dataset.version}" if recipe.dataset.version else ""
    coverage = sums["points_seen"] / sums["points"] if sums["points"] else 0.0
    lines = [
        f"Teacher cache of {recipe.dataset.name}{version}, schema {manifest.schema_version}, {manifest.state}",
        f"  content   sha256:{manifest.root_sha256}"
        if manifest.root_sha256
        else f"  content   not complete yet: {sums['parts']} of {counted(manifest.planned_parts, 'part')}",
        f"  frames    {sums['frames']:,} in {counted(sums['scenes'], 'scene')}, {counted(sums['parts'], 'part')}, "
        f"{human_bytes(sums['bytes'])}",
        f"  cameras   {', '.join(recipe.dataset.cameras) or 'none'}",
        f"  points    {sums['points']:,}, {coverage:.0%} seen by a camera, {sums['pairs']:,} point-camera pairs",
        f"  dropped   {counted(sums['points_dropped'], 'point')} that were not finite",
        f"  absent    {counted(sums['absences'], 'image or sweep', 'images or sweeps')} "
        f"in {counted(sums['frames_with_absences'], 'frame')}",
        f"  encoding  {recipe.encoding.kind} {recipe.encoding.dtype}{_error_text(manifest)}",
        f"  pairs     depth > {recipe.projection.min_depth_m} m; occlusion: {recipe.projection.occlusion}",
        f"  ground    {recipe.projection.ground}",
    ]
    lines += _history_lines(manifest)
    for teacher in recipe.teachers:
        lines += _teacher_lines(teacher)
    return "\n".join(map(plain, lines))


def _error_text(manifest: Manifest) -> str:
    errors = manifest.encoding_error.values()
    if not errors:
        return ""
    cosine = min(error.cosine_min for error in errors)
    relative = max(error.relative_l2_mean for error in errors)
    return f", measured: cosine >= {cosine:.6f}, relative L2 {relative:.1e} on average"


def _history_lines(manifest: Manifest) -> list[str]:
    """What the store was made from, and what was removed from it."""
    made = [f"  made by   {p.operation} of sha256:{p.root_sha256} {p.detail}".rstrip() for p in manifest.parents]
    removed = [f"  removed   {counted(len(each.frames), 'frame')}: {each.reason}" for each in manifest.forgotten]
    return made + removed


def _reduced(layer: LayerInfo) -> str:
    """What a layer has lost of its channels."""
    if layer.reduction is None:
        return ""
    return f" of {layer.reduction.channels}, {layer.reduction.explained_variance:.1%} of the variance"


def _teacher_lines(teacher: TeacherInfo) -> list[str]:
    revision = f"@{teacher.revision}" if teacher.revision else ""
    layers = ", ".join(
        f"{layer.name} ({layer.height}x{layer.width}x{layer.channels}{_reduced(layer)})" for layer in teacher.layers
    )
    return [
        f"  teacher   {teacher.name}: {teacher.source}{revision}, {teacher.architecture}, licence {teacher.licence}",
        f"    weights   sha256:{teacher.weights_sha256}",
        f"    images    {teacher.image_height_px}x{teacher.image_width_px}, {teacher.resize}",
        f"    layers    {layers}; {teacher.norm}-norm; global token {teacher.global_width or 'none'}",
        f"    computed  {teacher.precision} ({teacher.precision_reason})",
    ]
