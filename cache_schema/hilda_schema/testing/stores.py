"""The writer's check: every rule of docs/cache-format.md that a store breaks, not only the first.

`hilda_schema.verify` says which bytes are not as they were sealed; this says which sentence of the page a writer has
not followed, down to the field of a `zarr.json`, and ends with `verify`, so that whatever passes here reads.

Legend: F frames, N points, P pairs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from hilda_schema.errors import CacheError, HildaError, UsageError
from hilda_schema.layout import ArraySpec, check_names, group_metadata, layer_path, root_metadata
from hilda_schema.manifest import (
    SCHEMA_VERSIONS,
    Manifest,
    Recipe,
    Seal,
    SelfChecked,
    canonical_json,
    key_digests,
    parse_json,
    sha256_hex,
)
from hilda_schema.part import METADATA_LIMIT, SEAL, SEAL_LIMIT, OpenPart, arrays_of, metadata_files
from hilda_schema.root import FRAMES, GROUP, MANIFEST, MANIFEST_LIMIT, PARTS_GROUP, root_sha256
from hilda_schema.shard import index_bytes, shard_bytes
from hilda_schema.storage import Storage, open_storage
from hilda_schema.testing import rules
from hilda_schema.testing.rules import Rule, Violation
from hilda_schema.testing.seals import check_seal
from hilda_schema.verify import Problem, verify

M = TypeVar("M", bound=SelfChecked)


def check_store(store: str | os.PathLike[str]) -> list[Violation]:
    """Check a store that some program wrote against the specification.

    Args:
        store: folder or URL.

    Returns:
        Every rule that it breaks, and where; empty for a store that conforms. A partial store can conform.

    Raises:
        CacheNotFound: there is no store.
        CacheError: the storage cannot be reached.
    """
    storage = open_storage(store)
    check = _StoreCheck(storage)
    if MANIFEST in storage.walk(""):
        check.run()
    if not any(each.rule == rules.VERSION for each in check.violations):
        check.take(verify(store).problems)
    return check.violations


def validate(store: str | os.PathLike[str]) -> None:
    """Check that a store conforms, is complete, and holds nothing else.

    Raises:
        AssertionError: listing every violation, one a line.
    """
    found = check_store(store)
    report = verify(store)
    lines = [*map(str, found), *(f"{name}: belongs to nothing" for name in report.extra)]
    if lines or not report.complete:
        raise AssertionError("\n".join(lines or [f"{report.store} is not complete"]))


def check_same_ids(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> list[Violation]:
    """Compare two complete stores of one writer: parts of one id must have the same bytes.

    Returns:
        A violation for each id that means two things; empty also where no id is in both.
    """
    seals = []
    for store in (first, second):
        data = open_storage(store).read(MANIFEST, MANIFEST_LIMIT)
        seals.append({entry.part: entry.seal_sha256 for entry in Manifest.from_bytes(data, MANIFEST).parts})
    return [
        Violation(rules.PART_ID, f"parts/{part}", "has other bytes in the other store")
        for part in sorted(seals[0].keys() & seals[1].keys())
        if seals[0][part] != seals[1][part]
    ]


class _StoreCheck:
    """One check of one store."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.violations: list[Violation] = []

    def run(self) -> None:
        """Check everything that `verify` does not name rule by rule."""
        manifest = self._load(MANIFEST, MANIFEST_LIMIT, Manifest)
        if manifest is None:
            return
        self._names(manifest.recipe)
        self._versions(MANIFEST, manifest.schema_version, manifest.recipe)
        if manifest.state == "complete":
            self._root(manifest)
        for part in [entry.part for entry in manifest.parts] or self._sealed():
            self._part(part, manifest)

    def take(self, problems: list[Problem]) -> None:
        """Add what `verify` found in files that nothing is said of yet."""
        known = {each.file for each in self.violations}
        for problem in map(_located, problems):
            if not {problem.file, problem.file.rpartition("/")[0]} & known:
                frame = f" (frame {problem.frame})" if problem.frame else ""
                self._tell(_rule_of(problem), problem.file, problem.what + frame)

    def _tell(self, rule: Rule, file: str, what: str) -> None:
        self.violations.append(Violation(rule, file, what.removeprefix(f"{self.storage.name}/{file} ")))

    def _load(self, path: str, limit: int, model: type[M]) -> M | None:
        """A self-checked file, with everything that is wrong about its form; None where it cannot be used."""
        data = self._read(path, limit)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._tell(rules.CANONICAL, path, "is not a JSON object")
            return None
        if value.get("schema_version") not in SCHEMA_VERSIONS:
            self._tell(rules.VERSION, path, f"schema_version is {value.get('schema_version')!r:.40}")
            return None
        try:
            parse_json(data, path)
        except CacheError as error:
            self._tell(rules.CANONICAL, path, error.message.removeprefix(f"{path} "))
        content = {name: field for name, field in value.items() if name != "self_sha256"}
        if value.get("self_sha256") != sha256_hex(canonical_json(content)):
            self._tell(rules.SELF_CHECKSUM, path, "self_sha256 is not that of the content")
        return self._validated(path, value, model)

    def _validated(self, path: str, value: dict[str, Any], model: type[M]) -> M | None:
        try:
            found = model.model_validate(value)
        except ValidationError as error:
            for each in error.errors(include_url=False, include_input=False):
                self._tell(rules.FIELDS, path, f"{'.'.join(map(str, each['loc']))[:200]}: {each['msg'][:200]}")
            return None
        written = found.model_dump(mode="json", exclude={"self_sha256"})
        content = {name: field for name, field in value.items() if name != "self_sha256"}
        for difference in differences(content, written):
            self._tell(rules.FIELDS, path, difference)
        return found

    def _read(self, path: str, limit: int) -> bytes | None:
        try:
            return self.storage.read(path, limit)
        except FileNotFoundError:
            self._tell(rules.SEAL if path.endswith(SEAL) else rules.GROUPS, path, "is missing")
        except CacheError as error:
            self._tell(rules.LINKS, path, error.message)
        return None

    def _sealed(self) -> list[str]:
        folders = (name for name in self.storage.folders("parts") if not name.startswith("."))
        return [name for name in folders if SEAL in self.storage.walk(f"parts/{name}")]

    def _versions(self, path: str, found: str, recipe: Recipe) -> None:
        if found != recipe.schema_version:
            self._tell(rules.VERSION, path, f"schema_version is {found}, its recipe needs {recipe.schema_version}")

    def _names(self, recipe: Recipe) -> None:
        try:
            check_names(recipe)
        except UsageError as error:
            self._tell(rules.NAMES, MANIFEST, error.message)
        for teacher in recipe.teachers:
            if teacher.source.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", teacher.source):
                self._tell(rules.SOURCE, MANIFEST, f"teacher {teacher.name}: source is an absolute path")

    def _root(self, manifest: Manifest) -> None:
        if manifest.planned_parts != len(manifest.parts):
            said = f"planned_parts is {manifest.planned_parts}, parts has {len(manifest.parts)}"
            self._tell(rules.PLANNED, MANIFEST, said)
        if manifest.root_sha256 != root_sha256(manifest.parts):
            self._tell(rules.ROOT_HASH, MANIFEST, "root_sha256 is not that of the parts listed")
        self._metadata(GROUP, root_metadata(manifest.recipe), rules.GROUPS)
        self._metadata(PARTS_GROUP, group_metadata(), rules.GROUPS)

    def _metadata(self, path: str, expected: bytes, rule: Rule) -> None:
        """Compare a `zarr.json` with what it must be, field by field."""
        data = self._read(path, METADATA_LIMIT)
        if data is None or data == expected:
            return
        try:
            found = list(differences(json.loads(data), json.loads(expected)))
        except (ValueError, RecursionError):
            found = ["is not JSON"]
        for difference in found:
            self._tell(rule, path, difference)
        if not found:
            self._tell(rules.CANONICAL, path, "is not in canonical form")

    def _part(self, part: str, manifest: Manifest) -> None:
        folder, recipe = f"parts/{part}", manifest.recipe
        seal = self._load(f"{folder}/{SEAL}", SEAL_LIMIT, Seal)
        if seal is None:
            return
        before = len(self.violations)
        self._versions(f"{folder}/{SEAL}", seal.schema_version, recipe)
        for rule, what in check_seal(seal, part, recipe):
            self._tell(rule, f"{folder}/{SEAL}", what)
        gone = {digest for each in manifest.forgotten for digest in each.frames}
        if manifest.state == "complete" and gone & key_digests(seal):  # a partial one may be about to remove it
            self._tell(rules.FORGOTTEN, f"{folder}/{SEAL}", "holds a frame that was removed from the store")
        try:
            arrays = arrays_of(seal, recipe)
        except UsageError:
            return  # a name of the recipe is wrong, which has been said
        for path, expected in metadata_files(arrays, recipe).items():
            is_array = path.rpartition("/")[0] in arrays
            self._metadata(f"{folder}/{path}", expected, rules.METADATA if is_array else rules.GROUPS)
        self._files(seal, arrays, recipe)
        if len(self.violations) == before:
            self._values(seal, arrays, recipe)

    def _files(self, seal: Seal, arrays: dict[str, ArraySpec], recipe: Recipe) -> None:
        """Check which files there are, against the recipe and against the seal."""
        folder = f"parts/{seal.part}"
        shards = {spec.shard_path: spec for spec in arrays.values() if spec.chunks}
        wanted = metadata_files(arrays, recipe).keys() | shards.keys()
        on_disk = self.storage.walk(folder)
        for path in sorted(wanted ^ seal.files.keys()):
            said = "is sealed, but no such array or group belongs here" if path in seal.files else "is not sealed"
            self._tell(rules.ARRAYS, f"{folder}/{path}", said)
        for path in sorted(on_disk.keys() - seal.files.keys() - {SEAL}):
            self._tell(rules.STRANGERS, f"{folder}/{path}", "is in no seal")
        for path, sealed in seal.files.items():
            if path.endswith(GROUP):
                if sealed.chunk_crc32c is not None:
                    self._tell(rules.CHUNK_SEALS, f"{folder}/{SEAL}", f"files.{path}.chunk_crc32c is not null")
            elif (spec := shards.get(path)) is not None:
                self._shard(f"{folder}/{path}", spec, on_disk.get(path), len(sealed.chunk_crc32c or ()))

    def _shard(self, path: str, spec: ArraySpec, size: int | None, checksums: int) -> None:
        if checksums != spec.chunks:
            self._tell(rules.CHUNK_SEALS, path, f"{checksums} chunk checksums are sealed, it has {spec.chunks} chunks")
        if size is None:
            return  # missing, or a link: verify says so
        if size != shard_bytes(spec):
            self._tell(rules.SHARD, path, f"is {size} bytes, {shard_bytes(spec)} follow from its array")
            return
        expected = index_bytes(spec)
        found = bytearray(len(expected))
        self.storage.read_into(path, size - len(expected), [memoryview(found)])
        if found != expected:
            self._tell(rules.SHARD, path, "its index does not give chunks one after the other without gaps")

    def _values(self, seal: Seal, arrays: dict[str, ArraySpec], recipe: Recipe) -> None:
        """Check values that `verify` leaves to the writer."""
        shards = {spec.path: seal.files[spec.shard_path] for spec in arrays.values() if spec.chunks}
        part = OpenPart(self.storage, seal.part, seal.frames, seal.cameras, arrays, shards)
        try:
            for rule, path, what in _check_more_values(part, recipe):
                self._tell(rule, f"parts/{seal.part}/{path}", what)
        except HildaError:
            return  # bytes are not as sealed: verify names them


def _check_more_values(part: OpenPart, recipe: Recipe) -> Iterator[tuple[Rule, str, str]]:
    depth_m = part.read_rows("pairs/depth_m", 0, part.arrays["pairs/depth_m"].shape[0])
    if (depth_m < np.float16(recipe.projection.min_depth_m)).any():  # rounding may take one to the bound, not below
        yield rules.DEPTH, "pairs/depth_m", f"is below min_depth_m, {recipe.projection.min_depth_m}"
    for teacher in recipe.teachers if recipe.encoding.dtype == "int8" else ():
        for layer in teacher.layers:
            path = f"{layer_path(teacher.name, layer.name)}/channel_scale"
            if not (part.read_whole(path) > 0).all():
                yield rules.INT8, path, "is not above 0 in every channel"
    for spec in part.arrays.values():
        over = spec.chunks * spec.chunk_rows - spec.shape[0]
        if over and not _padded(part, spec, over):
            yield rules.PADDING, spec.path, f"the {over} rows beyond the last are not {spec.fill}"


def _padded(part: OpenPart, spec: ArraySpec, over: int) -> bool:
    row_bytes = spec.chunk_bytes // spec.chunk_rows
    found = memoryview(bytearray(over * row_bytes))
    end = spec.chunks * (spec.chunk_bytes + 4) - 4
    part.storage.read_into(f"parts/{part.part}/{spec.shard_path}", end - len(found), [found])
    return bool(np.array_equal(np.frombuffer(found, spec.dtype), np.full(len(found) // spec.fill.nbytes, spec.fill),
                               equal_nan=spec.dtype.startswith("float")))  # fmt: skip


def differences(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ, in words; `1` and `1.0` differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for name in sorted(found.keys() | expected.keys()):
            inner = f"{where}.{name}" if where else name
            if name not in expected:
                yield f"{inner} must not be there"
            elif name not in found:
                yield f"{inner} is missing"
            else:
                yield from differences(found[name], expected[name], inner)
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for k, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{where}[{k}]")
    elif type(found) is not type(expected) or found != expected:
        yield f"{where} is {json.dumps(found)[:80]}, must be {json.dumps(expected)[:80]}"


_RULES_BY_PATH = (
    (r"manifest\.json", rules.DERIVED),
    (r"(parts/)?zarr\.json", rules.GROUPS),
    (r"parts/[^/]+/seal\.json", rules.ENTRY),
    (r".*/zarr\.json", rules.FILES),
    (r"parts/[^/]+/(points|pairs)/offset", rules.OFFSETS),
    (r"parts/[^/]+/points/.*", rules.FINITE_POINTS),
    (r"parts/[^/]+/pairs/depth_m", rules.DEPTH),
    (r"parts/[^/]+/pairs/.*", rules.PAIRS),
    (r"parts/[^/]+/present", rules.PRESENT),
    (r".*/channel_(mean|scale)", rules.INT8),
    (r".*/basis", rules.BASIS),
)


def _located(problem: Problem) -> Problem:
    """A problem with the file that its words name, where it was met while a whole frame was read."""
    match = re.match(r"\S*?(parts/[^/]+/\S+) \(frame [^)]*\):? (.*)", problem.what)
    return Problem(match[1], match[2], problem.frame) if match else problem


def _rule_of(problem: Problem) -> Rule:
    """The rule behind something that `verify` found."""
    if "link" in problem.what:
        return rules.LINKS
    if "not part of the cache" in problem.what:
        return rules.STRANGERS
    if "stored plainly" in problem.what:
        return rules.PLAIN
    if re.search(r"/c(\.0)+$", problem.file):
        return rules.FILES if re.search(r"missing|bytes", problem.what) else rules.READ
    if problem.file == FRAMES:
        return rules.TABLE if re.search(r"columns|rows|Parquet", problem.what) else rules.DERIVED
    return next((rule for pattern, rule in _RULES_BY_PATH if re.fullmatch(pattern, problem.file)), rules.ABSENT)
