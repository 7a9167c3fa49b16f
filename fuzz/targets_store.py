"""Harnesses of a store's own files. What checks itself is signed again after a change, as an attacker would."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from crc32c import crc32c

from hilda_schema.errors import CacheCorrupt, HildaError
from hilda_schema.keys import Key
from hilda_schema.manifest import canonical_json, parse_json
from hilda_schema.part import read_seal
from hilda_schema.reader import Cache, open_cache
from hilda_schema.root import load_history
from hilda_schema.shard import CRC_BYTES, index_bytes
from hilda_schema.storage import LocalStorage, open_storage
from hilda_schema.testing import tiny_cache
from hilda_schema.verify import verify
from hilda_schema.writer import read_manifest

Prepared = tuple[Callable[[bytes], object], list[bytes]]
"""What to call with each input, and inputs that are right or nearly so."""


def keys(work: Path) -> Prepared:
    """The string form of a key."""

    def target(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        key = Key.parse(text)
        assert Key.parse(str(key)) == key
        assert ".." not in str(key).split("/")

    return target, [b"a/b/c", b"a/b%2Fc/d/e/f/g", b"a/%2e%2e/c", "ä/é %25/\x00".encode(), b"a//b", b"/"]


def canonical(work: Path) -> Prepared:
    """Canonical JSON: what is accepted is its own only form."""

    def target(data: bytes) -> None:
        assert canonical_json(parse_json(data, "x")) == data

    return target, [b'{"a":[1.0,1e-05,7],"b":"\xc3\xa9\\n"}', b"[" * 2000, b'{"a":1,"a":2}', b"[NaN,1e999,-0.0]"]


def manifest(work: Path) -> Prepared:
    """manifest.json of a complete store, signed again where it is an object."""
    store = _store(work)
    path = store / "manifest.json"

    def target(data: bytes) -> None:
        path.write_bytes(signed(data))
        _use(store)

    return target, [path.read_bytes(), _partial(path.read_bytes()), _reduced(_partial(path.read_bytes()))]


def history(work: Path) -> Prepared:
    """history.json beside a lost manifest, signed again."""
    store = _store(work)
    recipe = read_manifest(store).recipe
    path = store / "history.json"

    def target(data: bytes) -> None:
        path.write_bytes(signed(data))
        if load_history(LocalStorage(store), recipe) is None:
            raise CacheCorrupt("nobody believes it")

    return target, [path.read_bytes()]


def seal(work: Path) -> Prepared:
    """seal.json of a part of a partial store, signed again."""
    store = _store(work)
    path = next((store / "parts").glob("*/seal.json"))
    (store / "manifest.json").write_bytes(_partial((store / "manifest.json").read_bytes()))

    def target(data: bytes) -> None:
        path.write_bytes(signed(data))
        _use(store)

    return target, [path.read_bytes()]


def zarr_metadata(work: Path) -> Prepared:
    """A zarr.json (the first byte says which), its new hash sealed."""
    store = _store(work)
    part = next((store / "parts").glob("*/seal.json")).parent
    (store / "manifest.json").write_bytes(_partial((store / "manifest.json").read_bytes()))
    whole = (part / "seal.json").read_bytes()
    paths = sorted(path.relative_to(part).as_posix() for path in part.rglob("zarr.json"))
    before = {path: (part / path).read_bytes() for path in paths}

    def target(data: bytes) -> None:
        name = paths[data[0] % len(paths)] if data else paths[0]
        sealed = json.loads(whole)
        sealed["files"][name] |= {"size": len(data[1:]), "sha256": hashlib.sha256(data[1:]).hexdigest()}
        (part / name).write_bytes(data[1:])
        (part / "seal.json").write_bytes(signed(canonical_json(sealed)))
        try:
            _use(store)
        finally:
            (part / name).write_bytes(before[name])

    return target, [bytes([number]) + before[path] for number, path in enumerate(paths)]


def shard(work: Path) -> Prepared:
    """An array's values (the first byte says which), with right checksums, index and seal."""
    store = _store(work)
    part = next((store / "parts").glob("*/seal.json")).parent
    (store / "manifest.json").write_bytes(_partial((store / "manifest.json").read_bytes()))
    whole = (part / "seal.json").read_bytes()
    arrays = open_cache(store, allow_partial=True)[0]._part.arrays
    specs = [spec for _, spec in sorted(arrays.items()) if spec.chunks]
    before = {spec.path: (part / spec.shard_path).read_bytes() for spec in specs}

    def target(data: bytes) -> None:
        spec = specs[data[0] % len(specs)] if data else specs[0]
        size, values = spec.chunk_bytes, data[1:]
        chunks = [values[k * size : (k + 1) * size].ljust(size, b"\xff") for k in range(spec.chunks)]
        content = b"".join(chunk + crc32c(chunk).to_bytes(CRC_BYTES, "little") for chunk in chunks) + index_bytes(spec)
        sealed = json.loads(whole)
        sealed["files"][spec.shard_path] |= {
            "sha256": hashlib.sha256(content).hexdigest(),
            "chunk_crc32c": [crc32c(chunk) for chunk in chunks],
        }
        (part / spec.shard_path).write_bytes(content)
        (part / "seal.json").write_bytes(signed(canonical_json(sealed)))
        try:
            _use(store)
        finally:
            (part / spec.shard_path).write_bytes(before[spec.path])

    seeds = [
        bytes([number]) + before[spec.path][: spec.chunk_bytes]
        for number, spec in enumerate(specs)
        if spec.chunk_bytes < 4000
    ]
    return target, seeds


def frames(work: Path) -> Prepared:
    """frames.parquet of a complete store, its new hash in the manifest."""
    store = _store(work)
    whole = json.loads((store / "manifest.json").read_bytes())
    table = (store / "frames.parquet").read_bytes()

    def target(data: bytes) -> None:
        (store / "frames.parquet").write_bytes(data)
        manifest = whole | {"frames_sha256": hashlib.sha256(data).hexdigest()}
        (store / "manifest.json").write_bytes(signed(canonical_json(manifest)))
        cache = _use(store)
        from hilda_train.data.clips import clips_of

        clips_of(cache.frames, 0, 0.1)

    packed = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(table)), packed)
    return target, [table, packed.getvalue()]


def signed(data: bytes) -> bytes:
    """The same with the checksum that it claims made right, in canonical form, where it is a JSON object at all."""
    try:
        content = json.loads(data)
        content.pop("self_sha256", None)
        return canonical_json({**content, "self_sha256": hashlib.sha256(canonical_json(content)).hexdigest()})
    except (ValueError, AttributeError, RecursionError, TypeError):
        return data


def _partial(manifest: bytes) -> bytes:
    content = json.loads(manifest)
    nothing: dict[str, Any] = {"frames_sha256": "", "group_sha256": "", "root_sha256": "", "encoding_error": {}}
    return signed(canonical_json(content | nothing | {"state": "partial", "parts": [], "frames": 0}))


def _reduced(manifest: bytes) -> bytes:
    content = json.loads(manifest)
    content["recipe"]["teachers"][0]["layers"][0]["reduction"] = {
        "channels": 9,
        "basis_sha256": "0" * 64,
        "explained_variance": 0.5,
        "method": "by hand",
    }
    return signed(canonical_json(content | {"schema_version": "1.1"}))


def _store(work: Path) -> Path:
    """One part of two frames. What a run before this one has left is made anew."""
    shutil.rmtree(work / "store", ignore_errors=True)
    return tiny_cache(work / "store", kind="grid", dtype="int8", scenes=1, frames=2, points=12)


def _use(store: Path) -> Cache:
    """What every user does: verify, open, read every value of every frame."""
    verify(store)
    for part in (store / "parts").glob("[!.]*/seal.json"):
        read_seal(open_storage(store), part.parent.name)
    cache = open_cache(store, allow_partial=True)
    for index in range(len(cache)):
        frame = cache[index]
        cache.find(frame.key)
        assert np.isfinite(frame.world_SE3_lidar).all()
        points, pairs = frame.points, frame.pairs
        assert len(points.xyz_m) == len(points.intensity)
        assert frame.present.shape == (len(cache.camera_names),)
        for teacher in cache.teachers.values():
            for layer in teacher.layers:
                features = frame.point_features(teacher.name, layer.name)
                assert features.shape == (len(pairs.point), layer.channels)
            if teacher.global_width:
                frame.global_tokens(teacher.name)
    return cache


HARNESSES = {each.__name__: each for each in (keys, canonical, manifest, history, seal, zarr_metadata, shard, frames)}
__all__ = ["HARNESSES", "HildaError", "Prepared"]
