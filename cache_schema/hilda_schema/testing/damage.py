"""Damaged stores: those that a reader must refuse, and the tools to make more, with checksums that are right again.

A store whose bytes were changed is caught by its hashes; one that was changed and then resealed is what a careless
writer makes, or an attacker, and only the rules of the format catch it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hilda_schema.manifest import canonical_json, sha256_hex
from hilda_schema.shard import CRC_BYTES, crc32c
from hilda_schema.testing import rules
from hilda_schema.testing.rules import Rule
from hilda_schema.testing.tiny import tiny_cache

Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True, slots=True)
class DamagedCase:
    """A store that a reader must refuse: on opening, or when everything of one frame is read."""

    name: str
    store: Path
    frame: int | None  # row in frames.parquet whose reading must fail; None: the store must not open
    rule: Rule  # that the store breaks, or that a reader would break by going on


def damaged_cases(folder: Path) -> Iterator[DamagedCase]:
    """Stores that a reader must refuse, each broken in one way.

    Args:
        folder: where the stores are made, one folder each.

    Yields:
        One case a store.
    """
    whole = tiny_cache(folder / "whole", scenes=1, frames=5, points=40)
    for name, (rule, changes) in _MANIFEST_CHANGES.items():
        store = Path(shutil.copytree(whole, folder / name))
        sign(store / "manifest.json", lambda content: content.update(changes))  # noqa: B023 - called at once
        yield DamagedCase(name, store, None, rule)
    parts = [entry["part"] for entry in _content(whole / "manifest.json")["parts"]]
    for name, (frame, rule, damage) in _DAMAGES.items():
        store = Path(shutil.copytree(whole, folder / name))
        damage(store, *(store / "parts" / part for part in parts))
        yield DamagedCase(name, store, frame, rule)
    shutil.rmtree(whole)


def sign(path: Path, change: Change) -> str:
    """Change a self-checked file (`manifest.json`, `seal.json`) and give it the right checksum.

    Args:
        path: the file.
        change: called with its fields, all but `self_sha256`.

    Returns:
        The file's new hash.
    """
    content = _content(path)
    change(content)
    data = canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})
    path.write_bytes(data)
    return sha256_hex(data)


def reseal(store: Path, change: Change) -> None:
    """Change the first part's seal, and let the manifest vouch for it; frames.parquet is left as it is.

    Args:
        store: a complete store.
        change: called with the seal's fields.
    """
    part = store / "parts" / _content(store / "manifest.json")["parts"][0]["part"]
    seal_sha256 = sign(part / "seal.json", change)
    files = _content(part / "seal.json")["files"].values()
    size = (part / "seal.json").stat().st_size + sum(file["size"] for file in files)

    def vouch(manifest: dict[str, Any]) -> None:
        manifest["parts"][0] |= {"seal_sha256": seal_sha256, "bytes": size}
        rows = [[entry["part"], entry["seal_sha256"]] for entry in manifest["parts"]]
        manifest["root_sha256"] = sha256_hex(canonical_json(rows))

    sign(store / "manifest.json", vouch)


def reseal_files(store: Path, *changed: str) -> None:
    """Let the first part's seal describe files of it as they now are, with right checksums of every chunk.

    Args:
        store: a complete store.
        changed: paths below the part; one that is no longer there is taken out of the seal.
    """
    part = store / "parts" / _content(store / "manifest.json")["parts"][0]["part"]

    def update(seal: dict[str, Any]) -> None:
        for path in changed:
            seal["files"].pop(path, None)
            if (part / path).exists():
                seal["files"][path] = _file_seal(part / path)

    reseal(store, update)


def set_values(store: Path, array: str, change: Callable[[np.ndarray], object]) -> None:
    """Change the values of an array of the first part, in its shard, and reseal it.

    Args:
        store: a complete store.
        array: path of the array below the part.
        change: called with all chunks one behind the other, padding included: (rows, ...), to be changed in place.
    """
    part = store / "parts" / _content(store / "manifest.json")["parts"][0]["part"]
    meta, shard = _shard_of(part / array)
    shape = meta["codecs"][0]["configuration"]["chunk_shape"]
    stride = int(np.prod(shape)) * np.dtype(meta["data_type"]).itemsize + CRC_BYTES
    data = bytearray(shard.read_bytes())
    chunks = len(data) // (stride + 16)
    pieces = [data[k * stride : (k + 1) * stride - CRC_BYTES] for k in range(chunks)]
    values = np.frombuffer(bytearray(b"".join(pieces)), meta["data_type"]).reshape(chunks * shape[0], *shape[1:])
    change(values)
    for k, piece in enumerate(np.split(values, chunks)):
        raw = piece.tobytes()
        data[k * stride : (k + 1) * stride] = raw + crc32c(raw).to_bytes(CRC_BYTES, "little")
    shard.write_bytes(data)
    reseal_files(store, shard.relative_to(part).as_posix())


def _shard_of(array: Path) -> tuple[dict[str, Any], Path]:
    meta: dict[str, Any] = json.loads((array / "zarr.json").read_bytes())
    return meta, array / ("c" + ".0" * len(meta["shape"]))


def _file_seal(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    crcs = None
    if path.name != "zarr.json":
        meta, _ = _shard_of(path.parent)
        shape = meta["codecs"][0]["configuration"]["chunk_shape"]
        stride = int(np.prod(shape)) * np.dtype(meta["data_type"]).itemsize + CRC_BYTES
        crcs = [crc32c(data[k * stride : (k + 1) * stride - CRC_BYTES]) for k in range(len(data) // (stride + 16))]
    return {"size": len(data), "sha256": sha256_hex(data), "chunk_crc32c": crcs}


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    del content["self_sha256"]
    return content


def _flip(path: Path, at: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def _append(path: Path, data: bytes) -> None:
    path.write_bytes(path.read_bytes() + data)


def _replace(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


def _last_to_7(values: np.ndarray) -> None:
    """One camera index of a frame beyond the cameras; sorted order is kept."""
    values[np.flatnonzero(values == values.max())[-1]] = 7


def _swap_chunks(path: Path) -> None:
    """Exchange the first two chunks with their own checksums."""
    data = path.read_bytes()
    chunks = json.loads((path.parent / "zarr.json").read_bytes())["codecs"][0]["configuration"]["chunk_shape"]
    stride = 2 * int(np.prod(chunks)) + 4  # float16
    path.write_bytes(data[stride : 2 * stride] + data[:stride] + data[2 * stride :])


def _link(store: Path, path: Path) -> None:
    """Replace a file by a link to it: only its being a link is wrong."""
    aside = store.parent / f"{store.name}.aside"
    path.rename(aside)
    path.symlink_to(aside)


def _exchange(one: Path, other: Path) -> None:
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


_MANIFEST_CHANGES: dict[str, tuple[Rule, dict[str, Any]]] = {
    "unknown-version": (rules.VERSION, {"schema_version": "2.0"}),
    "unknown-field": (rules.FIELDS, {"colour": "red"}),
    "mistyped-field": (rules.FIELDS, {"planned_parts": "2"}),
    "root-hash": (rules.ROOT_HASH, {"root_sha256": "0" * 64}),
    "planned-parts": (rules.PLANNED, {"planned_parts": 9}),
    "partial": (
        rules.COMPLETE,
        {"state": "partial", "parts": [], "frames": 0, "encoding_error": {}}
        | dict.fromkeys(("frames_sha256", "group_sha256", "root_sha256"), ""),
    ),
}
_TOKENS, _OTHER_TOKENS = (f"vit/layer_{layer}/tokens/c.0.0.0.0.0" for layer in (2, 4))
_RING = "points/ring/zarr.json"
# name -> row of the frame that cannot be read (None: the store cannot be opened), the rule, the damage to a store whose
# first and second part are given too
_DAMAGES: dict[str, tuple[int | None, Rule, Callable[[Path, Path, Path], object]]] = {
    "manifest-bit": (None, rules.SELF_CHECKSUM, lambda s, a, b: _flip(s / "manifest.json", -4)),
    "not-canonical": (None, rules.CANONICAL, lambda s, a, b: _append(s / "manifest.json", b"\n")),
    "manifest-is-a-link": (None, rules.LINKS, lambda s, a, b: _link(s, s / "manifest.json")),
    "table-bit": (None, rules.DERIVED, lambda s, a, b: _flip(s / "frames.parquet", 40)),
    "no-table": (None, rules.DERIVED, lambda s, a, b: (s / "frames.parquet").unlink()),
    "root-group-bit": (None, rules.GROUPS, lambda s, a, b: _flip(s / "zarr.json", 20)),
    "no-seal": (0, rules.SEAL, lambda s, a, b: (a / "seal.json").unlink()),
    "seals-exchanged": (0, rules.PART_ID, lambda s, a, b: _exchange(a / "seal.json", b / "seal.json")),
    "seal-changed": (0, rules.ENTRY, lambda s, a, b: sign(a / "seal.json", lambda seal: seal.update(sources={}))),
    "no-shard": (0, rules.FILES, lambda s, a, b: (a / _TOKENS).unlink()),
    "short-shard": (0, rules.SHARD, lambda s, a, b: (a / _TOKENS).write_bytes((a / _TOKENS).read_bytes()[:-1])),
    "long-shard": (0, rules.SHARD, lambda s, a, b: _append(a / _TOKENS, b"\0")),
    "shard-is-a-link": (0, rules.LINKS, lambda s, a, b: _link(s, a / _TOKENS)),
    "stranger": (0, rules.STRANGERS, lambda s, a, b: (a / "notes.txt").write_text("mine")),
    "fill-value": (0, rules.METADATA, lambda s, a, b: _replace(a / _RING, b'_value":255', b'_value":254')),
    "chunk-bit": (0, rules.READ, lambda s, a, b: _flip(a / _TOKENS)),
    "index-bit": (0, rules.SHARD, lambda s, a, b: _flip(a / _TOKENS, -5)),
    "chunks-exchanged": (0, rules.READ, lambda s, a, b: _swap_chunks(a / _TOKENS)),
    "layers-exchanged": (0, rules.READ, lambda s, a, b: _exchange(a / _TOKENS, a / _OTHER_TOKENS)),
    "camera-beyond-the-last": (2, rules.PAIRS, lambda s, a, b: set_values(s, "pairs/camera", _last_to_7)),
}
