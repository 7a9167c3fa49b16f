"""A folder's store to a URL.

Parts first, each with its seal last; then the root, with the manifest last. A part that no manifest lists is seen by
nobody, what a manifest lists is never changed, so a reader has the old store or the new one at every moment. Everything
written is read back and hashed: that needs no trust in what a server says of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hilda_cache.share.files import SMALL_BYTES, batches, is_sound
from hilda_cache.share.pool import Moved, Transfer, move_parts
from hilda_cache.share.refuse import refuse_forgotten, refuse_other_recipe
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheError, CacheIncomplete, CacheNotFound
from hilda_schema.layout import group_metadata, root_metadata
from hilda_schema.manifest import FileSeal, Manifest, PartEntry, Recipe, Seal, sha256_hex
from hilda_schema.part import SEAL, SEAL_LIMIT, open_part, verify_command
from hilda_schema.remote import RemoteStorage
from hilda_schema.root import (
    FRAMES,
    FRAMES_LIMIT,
    GROUP,
    HISTORY,
    MANIFEST,
    MANIFEST_LIMIT,
    OWN_FILES,
    PARTS_GROUP,
    SIGNATURE,
    SIGNATURE_LIMIT,
    load_manifest,
    load_root,
)
from hilda_schema.storage import LocalStorage

ROOT_FILES = {PARTS_GROUP, *OWN_FILES}


def complete_manifest(store: LocalStorage) -> Manifest:
    """The manifest of a store that is to be pushed.

    Raises:
        CacheIncomplete: its extraction has not finished.
    """
    manifest = load_manifest(store)
    if manifest.state != "complete":
        raise CacheIncomplete(
            f"{store.name} is not complete, so there is no store to push yet", "run the same extraction again first"
        )
    return manifest


def check_remote(
    remote: RemoteStorage, here: Manifest, source: LocalStorage, *, replace: bool
) -> tuple[bytes | None, list[str]]:
    """Refuse a target that a push would damage.

    Args:
        remote: the target.
        here: what is to be pushed.
        source: where it lies.
        replace: whether the target may lose parts that are not here.

    Returns:
        The target's manifest as it is now, None where there is none; the parts that it lists and will not.

    Raises:
        CacheConflict: another recipe, a part with other bytes, parts that are not here, or frames that were removed.
        CacheCorrupt: its manifest is damaged, and `replace` is not set.
    """
    before = read_or_none(remote, MANIFEST, MANIFEST_LIMIT)
    try:
        there = load_manifest(remote)
    except CacheNotFound:
        return before, []
    except CacheCorrupt:
        if replace:
            return before, []
        raise
    if there.state != "complete":
        return before, []
    store = source.name
    refuse_other_recipe(remote.name, there.recipe, store, here.recipe)
    if there.forgotten and (table := load_root(source)[1]) is not None:
        refuse_forgotten(remote.name, there, table["key"].to_pylist())
    listed = {entry.part: entry for entry in there.parts}
    for entry in here.parts:
        if entry.part in listed and listed[entry.part].seal_sha256 != entry.seal_sha256:
            raise CacheConflict(
                f"part {entry.part} (scene {entry.scene}) has other bytes at {remote.name} than in {store}, from the "
                "same inputs: it was made on another kind of machine",
                "push to another URL, or pull that store and go on from it",
            )
    gone = [entry for entry in there.parts if entry.part not in {each.part for each in here.parts}]
    if gone and not replace:
        raise CacheConflict(
            f"{remote.name} lists {len(gone)} parts that {store} does not have, the first of scene {gone[0].scene}",
            "unite both first (hilda-cache pull, then hilda-cache merge), or let them go with --replace",
        )
    return before, [entry.part for entry in gone]


def push(
    store: Path,
    remote: RemoteStorage,
    *,
    jobs: int,
    replace: bool = False,
    recheck: bool = False,
    on_part: Callable[[Transfer], None] = lambda transfer: None,
) -> tuple[Manifest, Transfer]:
    """Bring a URL to hold exactly a folder's store.

    Args:
        store: the folder, complete.
        remote: the target.
        jobs: parts at a time.
        replace: let the target lose parts that are not here; they stay there, unlisted.
        recheck: also read what is there already, and send again what is damaged.
        on_part: called after every part.

    Returns:
        The manifest that is there now, and what was done.

    Raises:
        CacheIncomplete: the store is not complete.
        CacheConflict: the target holds something else; see `check_remote`.
        CacheCorrupt: the store is damaged, or what was written came back otherwise, twice.
        CacheError: the target cannot be reached or written; the same call again goes on.
    """
    source = LocalStorage(store)
    manifest = complete_manifest(source)
    root = _root_files(source, manifest)
    versions = {path: remote.version(path) for path in (FRAMES, MANIFEST)}  # before they are looked at
    before, unlisted = check_remote(remote, manifest, source, replace=replace)
    sender = _Sender(source, remote, manifest.recipe, recheck)
    transfer = Transfer(unlisted=unlisted)
    move_parts(transfer, manifest.parts, sender.send, jobs, remote.stop, on_part)
    transfer.raise_damage()
    _send_root(sender, root, before, versions)
    _send_signature(sender)
    return manifest, transfer


def _root_files(source: LocalStorage, manifest: Manifest) -> dict[str, bytes]:
    """Everything at the root in the order in which it is written."""
    frames = _read(source, FRAMES, FRAMES_LIMIT)
    if sha256_hex(frames) != manifest.frames_sha256:
        raise CacheCorrupt(f"{source.name}/{FRAMES} is not the one that the manifest names", verify_command(source))
    return {
        PARTS_GROUP: group_metadata(),
        GROUP: root_metadata(manifest.recipe),
        HISTORY: manifest.history().to_bytes(),
        FRAMES: frames,
        MANIFEST: manifest.to_bytes(),
    }


def _send_root(sender: _Sender, root: dict[str, bytes], before: bytes | None, versions: dict[str, str | None]) -> None:
    """Write the root, the manifest last and only over the one that was looked at.

    Of two pushes at a time, the second to write the table or the manifest is refused by a server that knows conditional
    writes; by others, what it reads before and after tells it.

    Raises:
        CacheConflict: somebody else pushed meanwhile.
    """
    remote, manifest = sender.remote, root[MANIFEST]
    conflict = CacheConflict(
        f"another push to {remote.name} finished meanwhile", "run the same command again to see what it brought"
    )
    for path in (PARTS_GROUP, GROUP):
        sender.put_small({path: root[path]})
    if read_or_none(remote, MANIFEST, MANIFEST_LIMIT) not in (before, manifest):
        raise conflict
    sender.put_small({HISTORY: root[HISTORY]})
    try:
        sender.put_over(FRAMES, root[FRAMES], versions[FRAMES])
        if read_or_none(remote, MANIFEST, MANIFEST_LIMIT) not in (before, manifest):
            raise conflict
        _send_manifest(sender, manifest, before, versions[MANIFEST])
    except CacheConflict:
        raise conflict from None
    if read_or_none(remote, FRAMES, FRAMES_LIMIT) != root[FRAMES]:
        raise conflict


def _send_manifest(sender: _Sender, manifest: bytes, before: bytes | None, version: str | None) -> None:
    """Write the manifest; where it does not arrive as it is, the one before comes back."""
    try:
        sender.put_over(MANIFEST, manifest, version)
    except CacheCorrupt:
        with suppress(CacheError):
            sender.remote.write_many({MANIFEST: before}) if before else sender.remote.remove(MANIFEST)
        raise


def _send_signature(sender: _Sender) -> None:
    """Send the signature of this content; one of another content goes."""
    try:
        data = sender.source.read(SIGNATURE, SIGNATURE_LIMIT)
    except FileNotFoundError:
        if read_or_none(sender.remote, SIGNATURE, SIGNATURE_LIMIT) is not None:
            sender.remote.remove(SIGNATURE)
    else:
        sender.put_small({SIGNATURE: data})


class _Sender:
    """Sends parts of one store; used by several threads."""

    def __init__(self, source: LocalStorage, remote: RemoteStorage, recipe: Recipe, recheck: bool) -> None:
        self.source, self.remote, self.recipe, self.recheck = source, remote, recipe, recheck

    def send(self, entry: PartEntry) -> Moved:
        """Send what is missing of one part, its seal last."""
        folder = f"parts/{entry.part}"
        sealed = _read(self.source, f"{folder}/{SEAL}", SEAL_LIMIT)
        there = read_or_none(self.remote, f"{folder}/{SEAL}", SEAL_LIMIT)
        if there == sealed and not self.recheck:
            return Moved(kept_parts=1)
        open_part(self.source, entry.part, self.recipe, entry.seal_sha256)
        if there not in (None, sealed):
            self.remote.remove(f"{folder}/{SEAL}")  # of a part that no manifest lists: see `check_remote`
        seal = Seal.from_bytes(sealed, f"{self.source.name}/{folder}/{SEAL}")
        moved = Moved()
        large = {path: file for path, file in seal.files.items() if file.size > SMALL_BYTES}
        small = {path: file for path, file in seal.files.items() if path not in large}
        begun = self._send_small(folder, small, moved) or there is not None
        for path, file in large.items():
            self._send_large(f"{folder}/{path}", file, moved, begun)
        self._count(moved, self.put_small({f"{folder}/{SEAL}": sealed}))
        moved.parts, moved.kept_parts = (1, 0) if moved.files else (0, 1)
        return moved

    def _send_small(self, folder: str, small: dict[str, FileSeal], moved: Moved) -> bool:
        """Send a part's small files; whether some of them were there already."""
        begun = False
        for group in batches({path: file.size for path, file in small.items()}):
            files = {}
            for path in group:
                data = _read(self.source, f"{folder}/{path}", SMALL_BYTES)
                if sha256_hex(data) != small[path].sha256:
                    raise self._damaged(f"{folder}/{path}")
                files[f"{folder}/{path}"] = data
            sent = self.put_small(files)
            self._count(moved, sent)
            begun = begun or len(sent) < len(files)
        return begun

    def _count(self, moved: Moved, sent: dict[str, bytes]) -> None:
        moved.files += len(sent)
        moved.bytes += sum(map(len, sent.values()))

    def _send_large(self, path: str, file: FileSeal, moved: Moved, begun: bool) -> None:
        """Send a large file, unless an earlier push did."""
        if begun and is_sound(self.remote, path, file):
            return
        if not is_sound(self.source, path, file):
            raise self._damaged(path)
        for _ in range(2):
            refused = None
            try:
                self.remote.put(path, Path(self.source.name, path), file.size)
            except CacheError as error:
                refused = error
            moved.files, moved.bytes = moved.files + 1, moved.bytes + file.size
            if is_sound(self.remote, path, file):  # also where only the answer was lost
                return
            if refused:
                raise refused
        self._give_up([path])

    def put_small(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """Write small files that are not there yet, and read them back; those that were written."""
        written = missing = self._not_there(files)
        for _ in range(2):
            if not missing:
                return written
            refused = None
            try:
                self.remote.write_many(missing)
            except CacheError as error:
                refused = error
            missing = self._not_there(missing)  # also where only the answer was lost
            if missing and refused:
                raise refused
        if missing:
            self._give_up(list(missing))
        return written

    def put_over(self, path: str, data: bytes, version: str | None) -> None:
        """Write a small file over the version that was seen, and read it back; nothing where it is there already.

        Raises:
            CacheConflict: somebody else wrote it.
        """
        for _ in range(2):
            if self._is_there(path, data):
                return
            refused = None
            try:
                self.remote.write_over(path, data, version)
            except CacheError as error:
                refused = error
            if refused and not self._is_there(path, data):  # it is where only the answer was lost
                raise refused
            version = self.remote.version(path) if version != "" else ""  # of what arrived, if that is not `data`
        if not self._is_there(path, data):
            self._give_up([path])

    def _not_there(self, files: dict[str, bytes]) -> dict[str, bytes]:
        if len(files) > 1:
            with suppress(CacheCorrupt):
                found = self.remote.read_found(list(files), SMALL_BYTES)
                return {path: data for (path, data), each in zip(files.items(), found, strict=True) if each != data}
        return {path: data for path, data in files.items() if not self._is_there(path, data)}

    def _is_there(self, path: str, data: bytes) -> bool:
        try:
            return read_or_none(self.remote, path, len(data)) == data
        except CacheCorrupt:
            return False

    def _damaged(self, path: str) -> CacheCorrupt:
        return CacheCorrupt(f"{self.source.name}/{path} is not what was sealed", verify_command(self.source))

    def _give_up(self, paths: list[str]) -> None:
        for path in paths:
            if path not in ROOT_FILES:  # readers of the store that is there need them; they check what they read
                with suppress(CacheError):
                    self.remote.remove(path)
        raise CacheCorrupt(
            f"{self.remote.name}/{paths[0]} came back twice with other bytes than were written",
            "something between here and there changes bytes: look at the network, then run the same command again",
        )


def _read(source: LocalStorage, path: str, limit: int) -> bytes:
    """A file that the store to be pushed must have."""
    try:
        return source.read(path, limit)
    except FileNotFoundError:
        raise CacheCorrupt(f"{source.name}/{path} is missing", verify_command(source)) from None


def read_or_none(storage: RemoteStorage, path: str, limit: int) -> bytes | None:
    """A file, None where it is not there."""
    try:
        return storage.read(path, limit)
    except FileNotFoundError:
        return None
