"""A writer of format 1.0, written from docs/cache-format.md alone; sections as there. Slow and small on purpose.

A part is a plain dict: `part`, `scene`, `cameras` (name -> width, height), `sources`, `calibration_sha256` and
`frames`, each a dict of `row` (what the seal says of it), `points` (column -> array or None), `pairs`, `grids`
((teacher, layer) -> (V, H, W, C) float32, NaN where absent) and `global` (teacher -> (V, D)).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from independent import (
    FILL,
    OPTIONAL,
    Array,
    arrays_of,
    canonical,
    crc32c,
    decode_int8,
    group,
    groups_of,
    recipe_digest,
    root_group,
    sample,
    sha256,
    signed,
)

Dict = dict[str, Any]


def write_store(store: Path, recipe: Dict, parts: list[Dict], writer: str, software: dict[str, str]) -> None:
    """Section 14."""
    (store / "parts").mkdir(parents=True)
    manifest: Dict = {"schema_version": "1.0", "writer": writer, "recipe": recipe, "state": "partial"}
    manifest |= {"planned_parts": len(parts), "parts": [], "frames": 0, "encoding_error": {}, "software": software}
    manifest |= {"frames_sha256": "", "group_sha256": "", "root_sha256": ""}
    replace(store, "manifest.json", signed(manifest))
    sealed = [write_part(store, recipe, part) for part in parts]
    sealed.sort(key=lambda pair: (pair[0]["scene"], pair[0]["frames"][0]["stamp_ns"], pair[0]["part"]))
    table = write_table(sealed)
    replace(store, "frames.parquet", table)
    replace(store, "parts/zarr.json", group())
    replace(store, "zarr.json", root_group(recipe))
    entries = [entry for _, entry in sealed]
    manifest |= {
        "state": "complete",
        "parts": entries,
        "frames": sum(entry["frames"] for entry in entries),
        "frames_sha256": sha256(table),
        "group_sha256": sha256(root_group(recipe)),
        "encoding_error": merge_errors([seal["encoding_error"] for seal, _ in sealed]),
        "root_sha256": sha256(canonical([[entry["part"], entry["seal_sha256"]] for entry in entries])),
    }
    replace(store, "manifest.json", signed(manifest))


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def replace(store: Path, name: str, data: bytes) -> None:
    temporary = store / "parts" / f".tmp-{Path(name).name}"
    temporary.write_bytes(data)
    sync(temporary)
    temporary.rename(store / name)
    sync((store / name).parent)


def write_part(store: Path, recipe: Dict, part: Dict) -> tuple[Dict, Dict]:
    """Its seal, and its entry in the manifest."""
    folder = store / "parts" / f".tmp-{part['part']}"
    frames = part["frames"]
    with_points = [frame for frame in frames if frame["row"]["points"]]
    optional = {name for name in OPTIONAL if any(frame["points"][name] is not None for frame in with_points)}
    counts = [sum(frame["row"][name] for frame in frames) for name in ("points", "pairs")]
    arrays = arrays_of(recipe, len(frames), *counts, optional)
    files: dict[str, bytes] = groups_of(recipe, arrays)
    crcs: dict[str, list[int]] = {}
    errors: Dict = {}
    for path, values in part_values(recipe, part, errors):
        if path in arrays:
            files[f"{path}/zarr.json"] = arrays[path].metadata()
            if arrays[path].chunks:
                files[arrays[path].shard], crcs[arrays[path].shard] = shard(arrays[path], values)
    assert {f"{path}/zarr.json" for path in arrays} <= files.keys()
    seal = seal_of(recipe, part, files, crcs, errors)
    publish(folder, files, signed(seal), store / "parts" / part["part"])
    size = len(signed(seal)) + sum(map(len, files.values()))
    entry = {"part": part["part"], "scene": part["scene"], "frames": len(frames), "bytes": size}
    return seal, entry | {"seal_sha256": sha256(signed(seal))}


def seal_of(recipe: Dict, part: Dict, files: dict[str, bytes], crcs: dict[str, list[int]], errors: Dict) -> Dict:
    """Section 6."""
    return {
        "schema_version": "1.0",
        "part": part["part"],
        "recipe_digest": recipe_digest(recipe),
        "scene": part["scene"],
        "cameras": [{"name": name, "width_px": w, "height_px": h} for name, (w, h) in part["cameras"].items()],
        "frames": [frame["row"] for frame in part["frames"]],
        "sources": part["sources"],
        "calibration_sha256": part["calibration_sha256"],
        "encoding_error": errors,
        "files": {
            path: {"size": len(data), "sha256": sha256(data), "chunk_crc32c": crcs.get(path)}
            for path, data in files.items()
        },
    }


def publish(temporary: Path, files: dict[str, bytes], seal: bytes, final: Path) -> None:
    """Section 14: all files, the seal, the name."""
    for path, data in files.items():
        (temporary / path).parent.mkdir(parents=True, exist_ok=True)
        (temporary / path).write_bytes(data)
    for path in temporary.rglob("*"):
        sync(path)
    (temporary / "seal.json").write_bytes(seal)
    sync(temporary / "seal.json")
    sync(temporary)
    temporary.rename(final)
    sync(final.parent)


def shard(array: Array, values: np.ndarray) -> tuple[bytes, list[int]]:
    """Section 7."""
    assert (values.shape, values.dtype) == (array.shape, array.dtype), array.path
    fill = FILL[array.dtype]
    padded = np.full(
        (array.chunks * array.chunk_rows, *array.shape[1:]), np.nan if fill == "NaN" else fill, values.dtype
    )
    padded[: len(values)] = values
    chunks = [chunk.tobytes() for chunk in np.split(padded, array.chunks)]
    crcs = [crc32c(chunk) for chunk in chunks]
    body = b"".join(chunk + struct.pack("<I", crc) for chunk, crc in zip(chunks, crcs, strict=True))
    return body + array.index(), crcs


def part_values(recipe: Dict, part: Dict, errors: Dict) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a part; `errors` is filled on the way."""
    frames = part["frames"]
    for name in frames[0]["points"]:
        columns = [frame["points"][name] for frame in frames if frame["points"][name] is not None]
        yield f"points/{name}", np.concatenate(columns) if columns else np.zeros(0)
    for name in ("points", "pairs"):
        yield f"{name}/offset", np.cumsum([0] + [frame["row"][name] for frame in frames], dtype=np.int64)
    positions = [quantise(frame["pairs"], part["cameras"]) for frame in frames]
    yield "pairs/uv", np.concatenate(positions)
    for name, dtype in (("point", "uint32"), ("camera", "uint8"), ("depth_m", "float16"), ("visible", "bool")):
        yield f"pairs/{name}", np.concatenate([frame["pairs"][name].astype(dtype) for frame in frames])
    yield "present", np.array([[name not in frame["row"]["absent"] for name in part["cameras"]] for frame in frames])
    for teacher in recipe["teachers"]:
        for layer in teacher["layers"]:
            values = [frame["grids"][teacher["name"], layer["name"]] for frame in frames]
            if recipe["encoding"]["kind"] == "point":
                values = [
                    sample(grid, frame["pairs"]["camera"], (q + 0.5) / 65536)
                    for grid, frame, q in zip(values, frames, positions, strict=True)
                ]
                values = np.concatenate(values)
            else:
                values = np.stack(values)
            key = f"{teacher['name']}/{layer['name']}"
            encoded, errors[key] = encode(values, recipe["encoding"]["dtype"])
            name = "features" if recipe["encoding"]["kind"] == "point" else "tokens"
            for path, array in encoded.items():
                yield f"{teacher['name']}/layer_{layer['name']}/{path or name}", array
        if teacher["global_width"]:
            vectors = np.stack([frame["global"][teacher["name"]] for frame in frames])
            yield f"{teacher['name']}/global", vectors.astype(np.float16)


def quantise(pairs: Dict, cameras: dict[str, tuple[int, int]]) -> np.ndarray:
    """Section 9."""
    sizes_px = np.array(list(cameras.values()))[pairs["camera"]]
    return np.clip(np.floor(65536 * ((pairs["uv_px"] + 0.5) / sizes_px)), 0, 65535).astype(np.uint16)


def encode(values: np.ndarray, dtype: str) -> tuple[dict[str, np.ndarray], Dict]:
    """Section 11: arrays by name ("" for the features themselves), and the measured error."""
    tokens = values.reshape(-1, values.shape[-1])
    there = ~np.isnan(tokens[:, 0])
    x = tokens[there]
    exact = x.astype(np.float64)
    mean = (exact.sum(axis=0) / max(1, len(x))).astype(np.float32)
    if dtype == "float16":
        stored = values.astype(np.float16)
        assert not np.isinf(stored).any()
        return {"": stored}, measure(exact, stored.reshape(tokens.shape)[there].astype(np.float64), mean)
    deviation = np.sqrt(((x - mean).astype(np.float64) ** 2).sum(axis=0) / max(1, len(x))).astype(np.float32)
    channel_scale = np.where(deviation > 0, deviation, np.float32(1))
    z = (x - mean) / channel_scale
    scale = (np.abs(z).max(axis=1) / np.float32(127)).astype(np.float16)
    assert np.isfinite(scale).all()
    d = np.where(scale > 0, scale.astype(np.float32), np.float32(1))
    levels, scales = np.full(tokens.shape, -128, np.int8), np.full(len(tokens), np.nan, np.float16)
    levels[there], scales[there] = np.clip(np.round(z / d[:, None]), -127, 127).astype(np.int8), scale
    decoded = decode_int8(levels[there], scale, mean, channel_scale).astype(np.float64)
    arrays = {"": levels.reshape(values.shape), "scale": scales.reshape(values.shape[:-1])}
    return arrays | {"channel_mean": mean, "channel_scale": channel_scale}, measure(exact, decoded, mean)


def three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def measure(x: np.ndarray, decoded: np.ndarray, centre: np.ndarray) -> Dict:
    norm = np.linalg.norm(x, axis=1)
    relative = np.linalg.norm(decoded - x, axis=1) / np.where(norm > 0, norm, 1)
    a, b = x - centre, decoded - centre
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    directed = lengths > 1e-9
    cosine = (a * b).sum(axis=1)[directed] / lengths[directed]
    return {
        "cosine_min": round(float(cosine.min()), 6) if len(cosine) else 1.0,
        "cosine_mean": round(float(cosine.mean()), 6) if len(cosine) else 1.0,
        "relative_l2_max": three_digits(relative.max()) if len(x) else 0.0,
        "relative_l2_mean": three_digits(relative.mean()) if len(x) else 0.0,
        "tokens": len(x),
    }


def merge_errors(parts: list[Dict]) -> Dict:
    """Section 11: over all parts."""
    merged = {}
    for key in parts[0]:
        found = [part[key] for part in parts if part[key]["tokens"]]
        tokens = sum(each["tokens"] for each in found)
        cosine, relative = (
            sum(each[name] * each["tokens"] for each in found) / max(1, tokens)
            for name in ("cosine_mean", "relative_l2_mean")
        )
        merged[key] = {
            "cosine_min": min((each["cosine_min"] for each in found), default=1.0),
            "cosine_mean": round(cosine, 6) if found else 1.0,
            "relative_l2_max": max((each["relative_l2_max"] for each in found), default=0.0),
            "relative_l2_mean": three_digits(relative),
            "tokens": tokens,
        }
    return merged


def write_table(sealed: list[tuple[Dict, Dict]]) -> bytes:
    """Section 4."""
    rows: list[Dict] = []
    places: list[tuple[str, int | None]] = []
    for seal, entry in sealed:
        for number, frame in enumerate(seal["frames"]):
            copied = (
                "stamp_ns",
                "world_SE3_lidar",
                "world_SE3_ego",
                "points",
                "points_dropped",
                "pairs",
                "points_seen",
            )
            rows.append(
                {name: frame[name] for name in ("key", *copied)}
                | {"index": len(rows), "scene": seal["scene"], "frame": unquote(frame["key"].split("/")[2])}
                | {"part": seal["part"], "row": number, "absent": canonical(frame["absent"]).decode()}
                | {"seal_sha256": entry["seal_sha256"], "prev": None, "next": None}
            )
            places.append((seal["scene"], frame["position"]))
    for k in range(len(rows) - 1):
        (scene, here), (other, there) = places[k : k + 2]
        if scene == other and (here is None or there is None or there == here + 1):
            rows[k]["next"], rows[k + 1]["prev"] = k + 1, k
    required = dict.fromkeys(("index", "stamp_ns", "row", "points", "points_dropped", "pairs", "points_seen"), False)
    integers = required | {"prev": True, "next": True}
    pose = pa.list_(pa.field("element", pa.float64(), nullable=False))
    order = (
        "index key scene frame stamp_ns world_SE3_lidar world_SE3_ego prev next part row points points_dropped pairs"
    )
    fields = [
        pa.field(
            name, pa.int64() if name in integers else pose if name.startswith("world") else pa.string()
        ).with_nullable(integers.get(name, False))
        for name in [*order.split(), "points_seen", "absent", "seal_sha256"]
    ]
    table = pa.table({field.name: [row[field.name] for row in rows] for field in fields}, schema=pa.schema(fields))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False)
    return bytes(sink.getvalue())
