"""A store under everything that may happen to it, in any order: a frame reads as it was written, or reading it fails.

The model is a dictionary, frame -> bytes. Hypothesis draws sequences of writing, dying, damaging, checking, mending and
copying; whatever came before, no frame may ever read as anything else, and a user who follows what the messages say
gets back the whole store. `HILDA_MACHINE=2000 pytest tests/faults/test_store_machine.py` draws as many sequences.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from hilda_cache.reshape.forget import forget
from hilda_cache.reshape.merge import merge
from hilda_cache.reshape.prune import prune
from hilda_cache.reshape.repair import repair
from hilda_cache.reshape.subset import Cut, subset
from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import push
from hilda_schema.content import FrameContent
from hilda_schema.errors import HildaError
from hilda_schema.reader import Frame, open_cache
from hilda_schema.remote import RemoteStorage
from hilda_schema.testing import tiny_parts, tiny_recipe
from hilda_schema.verify import verify
from hilda_schema.writer import finish_store, start_store, sweep_temporary, write_part

SCENES = 3
_whole = tiny_recipe(part_frames=2)
RECIPE = _whole.model_copy(
    update={"teachers": (_whole.teachers[0].model_copy(update={"layers": _whole.teachers[0].layers[:1]}),)}
)
PARTS = tiny_parts(RECIPE, scenes=SCENES, frames=2, points=12)
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}
_numbers = count()


def bytes_written(frame: FrameContent) -> bytes:
    """What a frame is: its points, pairs, tokens and global token."""
    arrays = (frame.xyz_m, frame.label, frame.pairs.point, frame.pairs.camera, frame.pairs.visible)
    tokens = (frame.tokens["vit", "2"].astype(np.float16), frame.global_tokens["vit"].astype(np.float16))
    return joined(*arrays, *(np.nan_to_num(each, nan=-1) for each in tokens))


def bytes_read(frame: Frame) -> bytes:
    points, pairs = frame.points, frame.pairs
    label = np.zeros(0, np.uint16) if points.label is None else points.label  # where no frame of a part has points
    arrays = (points.xyz_m, label, pairs.point, pairs.camera, pairs.visible)
    tokens = (frame.stored_tokens("vit", "2").values, frame.global_tokens("vit").astype(np.float16))
    return joined(*arrays, *(np.nan_to_num(each, nan=-1) for each in tokens))


def joined(*arrays: np.ndarray) -> bytes:
    return b"|".join(np.ascontiguousarray(array).tobytes() for array in arrays)


MODEL = {str(frame.key): bytes_written(frame) for part in PARTS for frame in part.frames}


def readable(store: Path | str) -> set[str]:
    """Keys of the frames that can be read; each of them has been compared with the model."""
    found = set()
    try:
        cache = open_cache(store, allow_partial=True)
    except HildaError:
        return found
    for index in range(len(cache)):
        try:
            frame = cache[index]
            key, data = str(frame.key), bytes_read(frame)
        except HildaError:
            continue
        assert data == MODEL[key], f"frame {key} reads as what nobody wrote"
        found.add(key)
    return found


def extract(store: Path) -> None:
    """What an extraction does, the first time and every other time."""
    start_store(store, RECIPE, planned_parts=len(PARTS))
    sweep_temporary(store)
    finish_store(store, RECIPE, [write_part(store, RECIPE, part) for part in PARTS])


def whole_repair(store: Path) -> None:
    repair(store, drop_damaged=True)


def dies_at(work: Callable[[], object], step: int) -> None:
    """Work in a forked process that ends, as by a power cut, at its `step`-th change to the file system."""
    if (child := os.fork()) == 0:
        left = step

        def on_event(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or writes:
                left -= 1
                if left == 0:
                    os._exit(9)

        import sys

        sys.addaudithook(on_event)
        try:
            work()
        except HildaError:
            pass
        except BaseException:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in {0, 9}


class StoreMachine(RuleBasedStateMachine):
    """One store, and what is made of it elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.store = self.folder / "store"

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def elsewhere(self) -> Path:
        return self.folder / f"other-{next(_numbers)}"

    @property
    def files(self) -> list[Path]:
        return sorted(path for path in self.store.rglob("*") if path.is_file() and not path.is_symlink())

    # What the program does

    @rule(number=st.integers(0, len(PARTS) - 1))
    def write_one(self, number: int) -> None:
        self.allowed(lambda: start_store(self.store, RECIPE, planned_parts=len(PARTS)))
        self.allowed(lambda: write_part(self.store, RECIPE, PARTS[number]))

    @rule()
    def resume(self) -> None:
        self.allowed(lambda: extract(self.store))

    @rule(work=st.sampled_from([extract, whole_repair]), step=st.integers(1, 120))
    def die(self, work: Callable[[Path], None], step: int) -> None:
        dies_at(lambda: work(self.store), step)

    @precondition(lambda self: self.store.exists())
    @rule(drop=st.booleans())
    def repair(self, drop: bool) -> None:
        self.allowed(lambda: repair(self.store, drop_damaged=drop))

    @precondition(lambda self: self.store.exists())
    @rule()
    def prune(self) -> None:
        self.allowed(lambda: prune(self.store, dry_run=False))

    @precondition(lambda self: self.store.exists())
    @rule()
    def verify(self) -> None:
        """A store that passes has all its frames, and each reads as it was written."""
        try:
            report = verify(self.store)
        except HildaError:
            return
        if report.sound and report.complete:
            assert len(readable(self.store)) == len(open_cache(self.store)) == 2 * report.parts

    @precondition(lambda self: self.store.exists())
    @rule()
    def mend(self) -> None:
        """What the messages tell a user to do brings everything back."""
        self.allowed(lambda: repair(self.store, drop_damaged=True))
        if not verified(self.store) and not list(self.store.glob("parts/[!.]*/seal.json")):
            shutil.rmtree(self.store)  # there is nothing to restore from
        extract(self.store)
        assert verified(self.store)
        assert readable(self.store) == MODEL.keys()

    # What happens to it

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(self.files).map(lambda path: path.relative_to(self.store)))
        path = self.store / victim
        kind = data.draw(st.sampled_from(["flip", "cut", "delete", "empty", "zero", "grow", "folder", "swap", "link"]))
        content = path.read_bytes()
        if kind == "flip" and content:
            at = data.draw(st.integers(0, 8 * len(content) - 1))
            path.write_bytes(content[: at // 8] + bytes([content[at // 8] ^ 1 << at % 8]) + content[at // 8 + 1 :])
        elif kind == "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        elif kind in {"delete", "folder", "link"}:
            path.unlink()
            if kind == "folder":
                path.mkdir()
            elif kind == "link":
                path.symlink_to("/etc/passwd")
        elif kind == "swap":
            other = data.draw(st.sampled_from(self.files))
            theirs = other.read_bytes()
            other.write_bytes(content)
            path.write_bytes(theirs)
        else:
            path.write_bytes({"zero": bytes(len(content)), "grow": content + b"\0"}.get(kind, b""))

    @precondition(lambda self: self.store.exists())
    @rule(place=st.sampled_from(["", "parts", "part"]), name=st.sampled_from(["x", ".tmp-x", "c.0", ".hidden"]))
    def add_a_foreign_file(self, place: str, name: str) -> None:
        parts = sorted(self.store.glob("parts/[!.]*/"))
        folder = {"": self.store, "parts": self.store / "parts"}.get(place, parts[0] if parts else self.store)
        if folder.is_dir() and not (folder / name).exists():
            (folder / name).write_bytes(b"foreign")

    # What is made of it

    @precondition(lambda self: self.store.exists())
    @rule(scene=st.integers(0, SCENES - 1))
    def divide_and_unite(self, scene: int) -> None:
        """A store cut in two and united is the store."""
        cuts = [[f"scene-{scene:04d}"], [f"scene-{each:04d}" for each in range(SCENES) if each != scene]]
        halves = [self.elsewhere() for _ in cuts]
        united = self.elsewhere()

        def work() -> None:
            for half, scenes in zip(halves, cuts, strict=True):
                subset(str(self.store), half, Cut(scenes=tuple(scenes)), "machine")
            merge([str(half) for half in halves], united)
            assert open_cache(united).manifest.root_sha256 == open_cache(self.store).manifest.root_sha256

        self.allowed(work)
        for each in (*halves, united):
            readable(each)

    @precondition(lambda self: self.store.exists())
    @rule(frame=st.sampled_from(sorted(MODEL)))
    def forget_in_a_copy(self, frame: str) -> None:
        """A frame that was removed can be read nowhere; the others read as before."""
        copy = self.elsewhere()
        shutil.copytree(self.store, copy, symlinks=True)
        before = readable(copy)
        try:
            forget(copy, (), (frame,), "asked for")
        except HildaError:
            readable(copy)
            return
        assert readable(copy) <= before - {frame}
        points = next(each.xyz_m for part in PARTS for each in part.frames if str(each.key) == frame).tobytes()
        if points:
            assert not any(points in path.read_bytes() for path in copy.rglob("*") if path.is_file())

    @precondition(lambda self: self.store.exists())
    @rule(damaged=st.booleans(), data=st.data())
    def push_and_pull(self, damaged: bool, data: st.DataObject) -> None:
        """What arrives is what was sent, or an error."""
        import fsspec

        url, back = f"memory://machine-{next(_numbers)}/store", self.elsewhere()
        files = fsspec.filesystem("memory")

        def work() -> None:
            push(self.store, RemoteStorage(url), jobs=1)
            if damaged:
                path = data.draw(st.sampled_from(sorted(files.find(url))))
                content = bytearray(files.cat_file(path))
                content[data.draw(st.integers(0, len(content) - 1))] ^= 1
                files.pipe_file(path, bytes(content))
            pull(plan_pull(url), back, jobs=1)
            assert verified(back)
            assert open_cache(back).manifest.root_sha256 == open_cache(self.store).manifest.root_sha256

        try:
            self.allowed(work)
            readable(url)
            readable(back)
        finally:
            files.rm(url.removesuffix("/store"), recursive=True) if files.exists(url) else None

    @invariant()
    def reads_as_written_or_not_at_all(self) -> None:
        readable(self.store)

    @staticmethod
    def allowed(work: Callable[[], object]) -> None:
        """An error is an answer; anything else that is raised is not."""
        with contextlib.suppress(HildaError):
            work()


def verified(store: Path) -> bool:
    try:
        report = verify(store)
    except HildaError:
        return False
    return report.sound and report.complete


def run_machine(examples: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no test cuts the power
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_frame_reads_as_written_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    run_machine(int(os.environ.get("HILDA_MACHINE", "8")), 15, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_frame_reads_as_written_or_not_at_all_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    run_machine(100, 30, monkeypatch)
