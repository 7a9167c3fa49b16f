"""Checking everything: every file of a store against its seal, every count against every other.

`verify` reads all bytes and never raises for damage: it lists all of it, file by file. A store that passes reads
without an error, and every value read is the one that was written. `Depth` says how to read less.

Legend: F frames, V cameras, N points, P pairs.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from hilda_schema.encoding import errors_of_store
from hilda_schema.errors import CacheCorrupt, CacheError, HildaError, UsageError
from hilda_schema.layout import ArraySpec, group_metadata
from hilda_schema.manifest import FileSeal, Manifest, PartEntry, Recipe, Seal, sha256_hex
from hilda_schema.part import METADATA_LIMIT, SEAL, OpenPart, arrays_of, check_seal, entry_of, read_seal
from hilda_schema.root import (
    FRAMES,
    FRAMES_LIMIT,
    GROUP,
    HISTORY,
    MANIFEST,
    MANIFEST_LIMIT,
    OWN_FILES,
    PARTS_GROUP,
    load_manifest,
    recipe_of_part,
)
from hilda_schema.shard import CRC_BYTES, crc32c, index_bytes
from hilda_schema.storage import Storage, open_storage
from hilda_schema.table import frames_table, parse_table, reading_order
from hilda_schema.terminal import EXIT_INCOMPLETE
from hilda_schema.values import check_values
from hilda_schema.verify_progress import Progress

PIECE_BYTES = 2**24  # a file is read in pieces of about this size
LOCK = ".lock"  # held by an extraction while it runs


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a store that is not as it was sealed."""

    file: str  # below the store
    what: str
    frame: str = ""  # key of the first frame that it touches, empty where it touches none or all of a part

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" + (f" (frame {self.frame})" if self.frame else "")


@dataclass(frozen=True, slots=True)
class Depth:
    """How much of a store is read. Its root, and of every part the seal and the sizes of files, always are."""

    sample: float = 1.0
    """Share of the parts that are read whole, drawn anew each time: at least one, unless it is 0."""
    resume: bool = False
    """Whether parts that an interrupted verification found sound count as read."""


@dataclass(slots=True)
class Report:
    """What a verification found."""

    store: str
    parts: int = 0
    parts_read: int = 0  # whole, now or by the interrupted verification that was resumed
    parts_resumed: int = 0  # by that one
    planned_parts: int = 0
    complete: bool = False
    files: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)  # files and parts that belong to nothing; harmless

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """0, or 3 where something is wrong."""
        return 0 if self.sound else EXIT_INCOMPLETE

    @property
    def damaged_parts(self) -> list[str]:
        """Ids of the parts to make again, sorted."""
        paths = [problem.file.split("/") for problem in self.problems]
        return sorted({path[1] for path in paths if path[0] == "parts" and len(path) > 1 and path[1] != GROUP})


def verify(
    store: str | os.PathLike[str],
    on_progress: Callable[[int, int], None] | None = None,
    depth: Depth = Depth(),
) -> Report:
    """Check a store.

    Args:
        store: folder or URL.
        on_progress: called with files checked and files to check.
        depth: how much of it; all, where nothing is said.

    Raises:
        CacheNotFound: there is no store.
        CacheVersion: a newer program wrote it.
        CacheError: the storage cannot be reached.
    """
    audit = _Audit(open_storage(store), on_progress or (lambda done, total: None), depth)
    if depth.sample < 1:
        return audit.run()
    try:
        report = audit.run()
    except BaseException:  # an interruption, above all
        audit.progress.save()
        raise
    audit.progress.clear()
    return report


class _Audit:
    """One verification."""

    def __init__(self, storage: Storage, on_progress: Callable[[int, int], None], depth: Depth) -> None:
        self.storage, self.depth = storage, depth
        self.progress = Progress(storage.name, resume=depth.resume)
        self.passed = 0  # files that are not read
        self.on_progress = on_progress
        self.report = Report(storage.name)
        self.found: dict[str, int | None] = {}  # every file of the store -> size, None for what is no file

    def run(self) -> Report:
        report = self.report
        manifest = self._manifest()
        self.found = self.storage.walk("")
        if manifest is not None:
            self._count(len(manifest.to_bytes()))
        listed = [entry.part for entry in manifest.parts] if manifest else []
        parts = listed if manifest and manifest.state == "complete" else self._sealed()
        report.planned_parts = manifest.planned_parts if manifest else len(parts)
        report.complete = manifest is not None and manifest.state == "complete"
        report.parts = len(parts)
        known = {*OWN_FILES, PARTS_GROUP, LOCK}
        self._check_extra(known, set(parts))
        drawn = self._drawn(parts)
        sound = [found for part in parts if (found := self._part(part, manifest, part in drawn)) is not None]
        if manifest is not None:
            self._history(manifest)
        if manifest is not None and manifest.state == "complete":
            self._root(manifest, sound if len(sound) == len(parts) else None)
        return report

    def _drawn(self, parts: list[str]) -> set[str]:
        """The parts to read."""
        if self.depth.sample >= 1:
            return set(parts)
        count = -(-len(parts) * self.depth.sample // 1)
        return set(random.SystemRandom().sample(parts, int(count)))

    def _wrong(self, file: str, what: str, frame: str = "") -> None:
        self.report.problems.append(Problem(file, what.removeprefix(f"{self.storage.name}/{file} "), frame))

    def _count(self, size: int) -> None:
        self.report.files += 1
        self.report.bytes += size
        self.on_progress(self.report.files, max(len(self.found) - self.passed, self.report.files))

    def _manifest(self) -> Manifest | None:
        try:
            manifest = load_manifest(self.storage)
        except CacheCorrupt as error:
            self._wrong(MANIFEST, error.message)
            return None
        return manifest

    def _sealed(self) -> list[str]:
        """Folders below `parts` that have a seal."""
        paths = (path.split("/") for path in self.found)
        names = {path[1] for path in paths if len(path) == 3 and path[0] == "parts" and path[2] == SEAL}
        return sorted(name for name in names if not name.startswith("."))

    def _check_extra(self, known: set[str], parts: set[str]) -> None:
        """List what belongs to nothing; inside a part it is a problem, since readers refuse it."""
        strangers = set()
        for path, size in self.found.items():
            first, _, rest = path.partition("/")
            part = rest.split("/")[0]
            if path in known and size is None:
                self._wrong(path, "is neither a file nor a folder (a link or a device)")
            elif first == "parts" and part in parts:
                continue
            elif path not in known:
                strangers.add(f"parts/{part}" if first == "parts" else first)
        self.report.extra = sorted(strangers)

    def _root(self, manifest: Manifest, parts: list[tuple[Seal, PartEntry]] | None) -> None:
        """Check the files beside the manifest, and the table against the seals where all are sound."""
        for path, limit, sha256 in (
            (FRAMES, FRAMES_LIMIT, manifest.frames_sha256),
            (GROUP, METADATA_LIMIT, manifest.group_sha256),
            (PARTS_GROUP, METADATA_LIMIT, sha256_hex(group_metadata())),
        ):
            try:
                data = self.storage.read(path, limit)
                self._count(len(data))
                if sha256_hex(data) != sha256:
                    self._wrong(path, "is not the one that the manifest names")
                elif path == FRAMES:
                    table = parse_table(data, manifest.frames, f"{self.storage.name}/{path}")
                    if parts is not None and not table.equals(frames_table(reading_order(parts))):
                        self._wrong(path, "does not say the same as the seals of the parts")
            except FileNotFoundError:
                self._wrong(path, "is missing")
            except CacheError as error:
                self._wrong(path, error.message)
        if parts is not None:
            self._summary(manifest, reading_order(parts))

    def _history(self, manifest: Manifest) -> None:
        """Where there is a second account of what only the manifest knows, it is the same."""
        try:
            data = self.storage.read(HISTORY, MANIFEST_LIMIT)
        except FileNotFoundError:
            return
        except CacheError as error:
            self._wrong(HISTORY, error.message)
            return
        self._count(len(data))
        # Behind a URL a push writes it before the manifest: it may be newer.
        if self.storage.listed and data != manifest.history().to_bytes():
            self._wrong(HISTORY, "does not say the same as the manifest")

    def _summary(self, manifest: Manifest, ordered: list[tuple[Seal, PartEntry]]) -> None:
        """Check what the manifest derives from the seals beside their hashes."""
        if manifest.parts != tuple(entry for _, entry in ordered):
            self._wrong(MANIFEST, "does not list the parts in reading order")
        if manifest.encoding_error != errors_of_store([seal for seal, _ in ordered]):
            self._wrong(MANIFEST, "does not say the encoding error that the seals say")

    def _part(self, part: str, manifest: Manifest | None, whole: bool) -> tuple[Seal, PartEntry] | None:
        """Check one part, whole or by the sizes of its files; its seal and entry where the seal can be trusted."""
        path = f"parts/{part}/{SEAL}"
        try:
            seal, seal_sha256, seal_bytes = read_seal(self.storage, part)
            recipe = manifest.recipe if manifest else self._recipe_of(part)
            entry = entry_of(seal, seal_sha256, seal_bytes)
            if manifest and manifest.state == "complete" and entry not in manifest.parts:
                raise CacheCorrupt("is not the one that the manifest lists")
            arrays = arrays_of(seal, recipe)
            check_seal(seal, arrays, recipe, f"{self.storage.name}/{path}")
        except FileNotFoundError:
            self._wrong(path, "is missing")
            return None
        except (CacheError, UsageError) as error:
            self._wrong(path, error.message)
            return None
        self._count(seal_bytes)
        before = len(self.report.problems)
        resumed = whole and entry in self.progress
        self._files(seal, arrays, whole and not resumed)
        if whole and not resumed and len(self.report.problems) == before:
            self._values(seal, arrays, recipe)
        self.report.parts_read += whole
        self.report.parts_resumed += resumed
        if whole and len(self.report.problems) == before:
            self.progress.add(entry)
        return seal, entry

    def _recipe_of(self, part: str) -> Recipe:
        recipe = recipe_of_part(self.storage.read(f"parts/{part}/{GROUP}", METADATA_LIMIT))
        if recipe is None:
            raise CacheCorrupt("belongs to an unknown recipe")
        return recipe

    def _files(self, seal: Seal, arrays: dict[str, ArraySpec], read: bool) -> None:
        """Check every file of a part: its bytes, or only that it is there in the right size."""
        shards = {spec.shard_path: spec for spec in arrays.values()}
        folder = f"parts/{seal.part}/"
        here = {path.removeprefix(folder): size for path, size in self.found.items() if path.startswith(folder)}
        for path in sorted(here.keys() - seal.files.keys() - {SEAL}):
            self._wrong(folder + path, "is not part of the cache")
        for path, sealed in seal.files.items():
            hidden = path not in here and not self.storage.listed  # perhaps: a listing may be old
            if path not in here and not hidden:
                self._wrong(folder + path, "is missing")
            elif not hidden and here[path] is None:
                self._wrong(folder + path, "is neither a file nor a folder (a link or a device)")
            elif not hidden and here[path] != sealed.size:
                self._wrong(folder + path, f"is {here[path]} bytes, {sealed.size} were sealed")
            elif not read:
                self.passed += 1
            else:
                self._content(folder + path, sealed, shards.get(path), seal)
                self._count(sealed.size)

    def _content(self, path: str, sealed: FileSeal, spec: ArraySpec | None, seal: Seal) -> None:
        """Check the bytes of one file of the right size; those of a network twice before they are called wrong."""
        before = len(self.report.problems)
        for _ in range(self.storage.tries):
            del self.report.problems[before:]
            self._read_content(path, sealed, spec, seal)
            if len(self.report.problems) == before:
                return

    def _read_content(self, path: str, sealed: FileSeal, spec: ArraySpec | None, seal: Seal) -> None:
        try:
            if spec is None:
                if sha256_hex(self.storage.read(path, METADATA_LIMIT)) != sealed.sha256:
                    self._wrong(path, "is not what was sealed")
                return
            digest = hashlib.sha256()
            crcs = self._chunk_crcs(path, spec, digest)
            damaged = [
                k for k, (crc, right) in enumerate(zip(crcs, sealed.chunk_crc32c or (), strict=True)) if crc != right
            ]
        except FileNotFoundError:
            self._wrong(path, "is missing")
        except CacheError as error:
            self._wrong(path, error.message)
        else:
            if damaged:
                frame = _first_frame(spec, damaged[0], seal)
                self._wrong(path, f"{len(damaged)} of {spec.chunks} chunks are not what was sealed", frame)
            elif digest.hexdigest() != sealed.sha256:
                self._wrong(path, "its checksums or its index are not what was sealed")

    def _chunk_crcs(self, path: str, spec: ArraySpec, digest: hashlib._Hash) -> Iterator[int]:
        """Checksum of every chunk, while the whole file goes into `digest`."""
        stride = spec.chunk_bytes + CRC_BYTES
        at_once = max(1, PIECE_BYTES // stride)
        for first in range(0, spec.chunks, at_once):
            count = min(at_once, spec.chunks - first)
            piece = memoryview(bytearray(count * stride))
            self.storage.read_into(path, first * stride, [piece])
            digest.update(piece)
            yield from (crc32c(piece[k * stride : (k + 1) * stride - CRC_BYTES]) for k in range(count))
        index = bytearray(len(index_bytes(spec)))
        self.storage.read_into(path, spec.chunks * stride, [memoryview(index)])
        digest.update(index)

    def _values(self, seal: Seal, arrays: dict[str, ArraySpec], recipe: Recipe) -> None:
        """Check what the bytes say: counts, bounds, finite features."""
        shards = {spec.path: seal.files[spec.shard_path] for spec in arrays.values() if spec.chunks}
        part = OpenPart(self.storage, seal.part, seal.frames, seal.cameras, arrays, shards)
        for row, frame in enumerate(seal.frames):
            try:
                for path, what in check_values(part, recipe, row):
                    self._wrong(f"parts/{seal.part}/{path}", what, frame.key)
            except HildaError as error:
                self._wrong(f"parts/{seal.part}", error.message, frame.key)


def _first_frame(spec: ArraySpec, chunk: int, seal: Seal) -> str:
    """Key of the first frame whose rows are in a chunk; empty where every frame needs it."""
    row = chunk * spec.chunk_rows
    if spec.dims[0] == "frame":
        return seal.frames[row].key if spec.chunk_rows == 1 else ""
    counts = [getattr(frame, "points" if spec.dims[0] == "point" else "pairs") for frame in seal.frames]
    if spec.dims[0] not in ("point", "pair"):
        return ""
    return seal.frames[int(np.searchsorted(np.cumsum(counts), row, side="right"))].key
