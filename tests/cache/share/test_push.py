"""Pushing: what is there afterwards, what a reader sees meanwhile, what is refused, what is resumed."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.reshape.subset import Cut, subset
from hilda_cache.share import files
from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import push
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheError, CacheIncomplete, CacheNotFound
from hilda_schema.reader import open_cache
from hilda_schema.remote import RemoteStorage
from hilda_schema.root import load_root
from hilda_schema.storage import open_storage
from hilda_schema.testing import tiny_cache, validate
from hilda_schema.verify import verify
from hilda_schema.writer import read_manifest

Tree = Callable[[Path], dict[str, str]]
_names = itertools.count()


def slow(*values: Any) -> Any:
    """A case for the nightly run."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def url() -> Iterator[str]:
    """A URL in memory: as fast as it gets, and every file all or nothing as in an object store."""
    name = f"push-{next(_names)}"
    yield f"memory://{name}/store"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists(f"/{name}"):
        filesystem.rm(f"/{name}", recursive=True)


def memory_tree(url: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return {path[len(root) + 1 :]: filesystem.cat_file(path) for path in filesystem.find(root)}


def remote(url: str) -> RemoteStorage:
    storage = open_storage(url)
    assert isinstance(storage, RemoteStorage)
    return storage


def folder_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Killed(BaseException):
    """The process is gone."""


class Mutations:
    """Calls back at every file that a push writes or removes, one file at a time."""

    def __init__(self, patch: pytest.MonkeyPatch, at: Callable[[int, str, str], None]) -> None:
        self.count = 0
        self.at = at  # number, path, "before" or "after"
        self._bounded = RemoteStorage._bounded
        patch.setattr(RemoteStorage, "_bounded", lambda *args, **kwargs: self._call(*args, **kwargs))

    def _call(self, storage: Any, filesystem: Any, method: str, seconds: float, *args: Any, **kwargs: Any) -> Any:
        if method == "pipe":
            for path, data in args[0].items():
                self._one(path, storage, filesystem, method, seconds, {path: data})
            return None
        if method == "pipe_file":
            return self._one(args[0], storage, filesystem, method, seconds, *args, **kwargs)
        if method in ("put_file", "rm_file"):
            return self._one(args[-1], storage, filesystem, method, seconds, *args, **kwargs)
        return self._bounded(storage, filesystem, method, seconds, *args, **kwargs)

    def _one(self, path: str, *args: Any, **kwargs: Any) -> Any:
        number, self.count = self.count, self.count + 1
        self.at(number, path, "before")
        result = self._bounded(*args, **kwargs)
        self.at(number, path, "after")
        return result


def test_a_push_and_a_pull_carry_a_store_byte_by_byte(store: Path, s3: Any, tmp_path: Path, tree: Tree) -> None:
    """Scenario 65, on a server in memory."""
    manifest, done = push(store, s3.network(), jobs=3)
    assert s3.tree() == tree(store)
    assert (done.moved.parts, done.moved.kept_parts) == (2, 0)
    parts = [path for path in tree(store) if path.startswith("parts/") and path != "parts/zarr.json"]
    assert done.moved.files == len(parts)
    assert done.moved.bytes == sum((store / path).stat().st_size for path in parts)
    pull(plan_pull(s3.url), tmp_path / "back", jobs=3)
    assert tree(tmp_path / "back") == tree(store)
    read = "import sys; from hilda_schema import open_cache; print(open_cache(sys.argv[1]).manifest.root_sha256)"
    elsewhere = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path / "back")], capture_output=True, text=True, check=True
    )
    assert elsewhere.stdout.strip() == manifest.root_sha256 == read_manifest(store).root_sha256


def test_between_two_processes_and_a_bad_network_the_root_hash_stays(
    store: Path, s3: Any, proxy: Any, command: Any, tmp_path: Path, tree: Tree
) -> None:
    """Every fifth request fails at first sight, each time in another way; one process pushes, another pulls."""
    faults, count, met = (
        itertools.cycle([500, "reset", "flip", "lost", 503, "cut", "flip-up"]),
        itertools.count(),
        set(),
    )

    def rule(request: Any) -> str | int | None:
        if request.nth or next(count) % 5:
            return None
        met.add(fault := next(faults))
        return fault

    proxy.rule = rule
    for words in (("push", store, s3.url), ("pull", s3.url, tmp_path / "back")):
        process = command(*words, "--jobs", "2")
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
        assert f"@sha256:{read_manifest(store).root_sha256}" in said
    assert met == {500, "reset", "flip", "lost", 503, "cut", "flip-up"}
    assert tree(tmp_path / "back") == tree(store)


def test_a_push_of_what_is_there_writes_nothing(store: Path, s3: Any, proxy: Any) -> None:
    push(store, s3.network(), jobs=2)
    proxy.reset()
    _, done = push(store, s3.network(), jobs=2)
    assert (done.moved.parts, done.moved.kept_parts, done.moved.bytes) == (0, 2, 0)
    assert not [request for request in proxy.log if request.writes]
    assert len(proxy.log) < 20


def test_a_reader_sees_the_old_store_or_the_new_one(
    store: Path, one_scene: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 53: a reader between any two files that a push writes; a new one, and one that was open before."""
    push(one_scene, remote(url), jobs=1)
    old, new = (read_manifest(each).root_sha256 for each in (one_scene, store))
    tables = {each: open_cache(path).frames for each, path in ((old, one_scene), (new, store))}
    earlier = open_cache(url)
    seen: list[str] = []

    def read(number: int, path: str, when: str) -> None:
        manifest, table = load_root(remote(url))
        assert table is not None
        assert table.equals(tables[manifest.root_sha256])
        seen.append(manifest.root_sha256)
        if "/parts/" not in path:
            cache = open_cache(url)
            assert sum(len(frame.points) for frame in cache) == sum(cache.frames["points"].to_pylist())
            assert len(earlier[1].points) == 24_000

    mutations = Mutations(monkeypatch, read)
    push(store, remote(url), jobs=1)
    assert mutations.count > 30
    assert seen == [old] * (len(seen) - 1) + [new]
    assert memory_tree(url) == folder_tree(store)


def test_before_its_first_manifest_there_is_no_store(store: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(number: int, path: str, when: str) -> None:
        if not (path.endswith("manifest.json") and when == "after"):
            with pytest.raises(CacheNotFound):
                open_cache(url)

    Mutations(monkeypatch, read)
    push(store, remote(url), jobs=1)
    assert len(open_cache(url)) == 4


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_push_killed_at_any_point_goes_on(
    store: Path, one_scene: Path, url: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Scenario 53: death at every file, before it is written and when it was; then the same command again."""
    want = folder_tree(store)
    old, new = (read_manifest(each).root_sha256 for each in (one_scene, store))
    push(one_scene, remote(url), jobs=1)
    start = memory_tree(url)
    filesystem, root = fsspec.core.url_to_fs(url)
    for point in itertools.count():
        filesystem.rm(root, recursive=True)
        filesystem.pipe({f"{root}/{path}": data for path, data in start.items()})

        def die(number: int, path: str, now: str, point: int = point) -> None:
            if (number, now) == (point, when):
                raise Killed

        with monkeypatch.context() as patch:
            mutations = Mutations(patch, die)
            try:
                push(store, remote(url), jobs=1)
            except Killed:
                pass
            else:
                break
        manifest, table = load_root(remote(url))
        assert manifest.root_sha256 in (old, new)
        assert table is not None
        assert table.num_rows == manifest.frames
        push(store, remote(url), jobs=1)
        assert memory_tree(url) == want
    assert point == mutations.count > 30


def test_a_push_killed_between_large_files_sends_only_the_rest(
    store: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def die(number: int, path: str, when: str) -> None:
        written.append(path)
        if path.endswith("xyz_m/c.0.0") and when == "after":
            raise Killed

    with monkeypatch.context() as patch:
        Mutations(patch, die)
        with pytest.raises(Killed):
            push(store, remote(url), jobs=1)
    before = set(written)
    assert any(path.endswith("xyz_m/c.0.0") for path in before)
    written.clear()
    Mutations(monkeypatch, lambda number, path, when: written.append(path))
    push(store, remote(url), jobs=1)
    assert not before & set(written)
    validate(url)


def test_real_kill_of_a_push_process(store: Path, s3: Any, proxy: Any, command: Any, tree: Tree) -> None:
    """Scenario 53: kill -9 of the command when its first large file has landed; the rest follows, no file twice."""
    process = command("push", store, s3.url, "--jobs", "1")
    landed = itertools.count()

    def die(request: Any) -> None:
        if request.writes and request.path.endswith("points/xyz_m/c.0.0") and next(landed) == 0:
            process.kill()

    proxy.after = die
    process.communicate(timeout=120)
    assert process.returncode == -9
    first = {request.path for request in proxy.log if request.writes}
    with pytest.raises(CacheNotFound):
        open_cache(s3.url)
    proxy.reset()
    push(store, s3.network(), jobs=1)
    assert s3.tree() == tree(store)
    assert not first & {request.path for request in proxy.log if request.writes}


def test_a_lost_answer_is_recognised_as_our_own(store: Path, s3: Any, proxy: Any, tree: Tree) -> None:
    """Scenario 59: every answer to the manifest's PUT is lost, and so are those of a seal and a large file."""
    lost = ("manifest.json", "seal.json", "points/xyz_m/c.0.0")
    proxy.rule = lambda request: "lost" if request.method == "PUT" and request.path.endswith(lost) else None
    _, done = push(store, s3.network(), jobs=2)
    assert done.moved.parts == 2
    assert s3.tree() == tree(store)


def test_a_bit_flipped_on_the_way_up_is_noticed_and_sent_again(store: Path, s3: Any, proxy: Any, tree: Tree) -> None:
    """Scenario 58, once: in a small file, in a large one, in a seal and in the manifest."""
    flipped = ("manifest.json", "seal.json", "points/xyz_m/c.0.0", "present/c.0.0")
    proxy.rule = lambda request: (
        "flip-up" if request.method == "PUT" and request.nth == 0 and request.path.endswith(flipped) else None
    )
    push(store, s3.network(), jobs=2)
    assert s3.tree() == tree(store)


@pytest.mark.parametrize("name", [slow("points/xyz_m/c.0.0"), slow("present/c.0.0"), "seal.json"])
def test_bits_that_always_flip_on_the_way_up_end_in_an_error(store: Path, s3: Any, proxy: Any, name: str) -> None:
    """Scenario 58, always: nothing damaged is left, and no manifest names what is not there."""
    proxy.rule = lambda request: "flip-up" if request.method == "PUT" and request.path.endswith(name) else None
    with pytest.raises(CacheCorrupt, match=rf"{name} came back twice with other bytes.*and 1 more parts"):
        push(store, s3.network(), jobs=2)
    assert not [path for path in s3.tree() if path.endswith((name, "manifest.json"))]


def test_a_manifest_that_never_arrives_leaves_the_old_store(store: Path, one_scene: Path, s3: Any, proxy: Any) -> None:
    push(one_scene, s3.network(), jobs=1)
    puts = itertools.count()
    proxy.rule = lambda request: (
        "flip-up" if request.method == "PUT" and request.path.endswith("manifest.json") and next(puts) < 2 else None
    )
    with pytest.raises(CacheCorrupt, match=r"manifest\.json came back twice"):
        push(store, s3.network(), jobs=1)
    assert open_cache(s3.url).manifest == read_manifest(one_scene)


def test_what_would_be_lost_is_refused_until_asked_for(store: Path, one_scene: Path, url: str, tmp_path: Path) -> None:
    push(store, remote(url), jobs=1)
    with pytest.raises(CacheConflict, match=r"lists 1 parts that .* does not have.*scene-0001.*--replace"):
        push(one_scene, remote(url), jobs=1)
    assert open_cache(url).manifest == read_manifest(store)
    earlier = open_cache(url)
    _, done = push(one_scene, remote(url), jobs=1, replace=True)
    assert done.unlisted == [read_manifest(store).parts[1].part]
    assert open_cache(url).manifest == read_manifest(one_scene)
    assert len(earlier[2].points) == 24_000  # who has the old store open still reads all of it
    assert verify(url).extra == [f"parts/{done.unlisted[0]}"]
    assert verify(url).sound


def test_another_recipe_is_refused_with_what_differs(store: Path, url: str, tmp_path: Path) -> None:
    push(store, remote(url), jobs=1)
    subset(str(store), tmp_path / "other", Cut(layers={"vit": ("2",)}), "")
    for replace in (False, True):
        with pytest.raises(CacheConflict, match=r"another recipe.*teachers\[0\]\.layers"):
            push(tmp_path / "other", remote(url), jobs=1, replace=replace)
    assert open_cache(url).manifest == read_manifest(store)


def test_a_part_with_other_bytes_is_never_written_over(store: Path, url: str, tmp_path: Path) -> None:
    """The same inputs on another kind of machine: one id, two seals."""
    recipe_store = tiny_cache(tmp_path / "a", scenes=1, frames=2)
    twin = tiny_cache(tmp_path / "b", scenes=1, frames=2, seed=1)
    names = [read_manifest(each).parts[0].part for each in (recipe_store, twin)]
    push(recipe_store, remote(url), jobs=1)
    other = Path(shutil.copytree(twin, tmp_path / "c"))
    _rename_part(other, names[1], names[0])
    before = memory_tree(url)
    with pytest.raises(CacheConflict, match=r"has other bytes.*another URL"):
        push(other, remote(url), jobs=1, replace=True)
    assert memory_tree(url) == before


def _rename_part(store: Path, old: str, new: str) -> None:
    """Give a part another id, with every hash made right."""
    from hilda_schema.manifest import Seal
    from hilda_schema.writer import rebuild

    seal = Seal.from_bytes((store / "parts" / old / "seal.json").read_bytes(), "")
    (store / "parts" / old).rename(store / "parts" / new)
    (store / "parts" / new / "seal.json").write_bytes(seal.model_copy(update={"part": new}).to_bytes())
    rebuild(store)


def test_a_damaged_store_is_not_pushed(store: Path, url: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    part = read_manifest(copy).parts[0].part
    for name in ("points/xyz_m/c.0.0", "pairs/camera/c.0"):
        path = copy / "parts" / part / name
        whole = path.read_bytes()
        path.write_bytes(files_flipped(whole))
        with pytest.raises(CacheCorrupt, match=rf"{name} is not what was sealed .*see all damage with"):
            push(copy, remote(url), jobs=1)
        path.write_bytes(whole)
        assert f"parts/{part}/seal.json" not in memory_tree(url)
    with pytest.raises(CacheNotFound):
        open_cache(url)


def files_flipped(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize("name", ["frames.parquet", "parts/PART/seal.json", "parts/PART/pairs/uv/zarr.json", "PART"])
def test_a_store_that_lacks_a_file_is_not_pushed(store: Path, url: str, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    part = read_manifest(copy).parts[0].part
    if name == "PART":
        shutil.rmtree(copy / "parts" / part)
    else:
        (copy / name.replace("PART", part)).unlink()
    with pytest.raises(CacheCorrupt, match="is missing") as caught:
        push(copy, remote(url), jobs=1)
    assert "hilda-cache verify" in caught.value.remedy
    assert "manifest.json" not in memory_tree(url)


def test_links_are_not_followed(store: Path, url: str, tmp_path: Path) -> None:
    """Threat 3: what a link in a store points at never leaves this machine."""
    canary = tmp_path / "canary"
    copy = Path(shutil.copytree(store, tmp_path / "copy"))
    path = copy / "parts" / read_manifest(copy).parts[0].part / "points/xyz_m/c.0.0"
    canary.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(canary)
    with pytest.raises(CacheCorrupt, match="link"):
        push(copy, remote(url), jobs=1)
    assert not [name for name in memory_tree(url) if name.endswith("xyz_m/c.0.0")][1:]


def test_damage_at_the_url_is_mended_by_a_recheck(store: Path, url: str) -> None:
    push(store, remote(url), jobs=1)
    filesystem, root = fsspec.core.url_to_fs(url)
    part = read_manifest(store).parts[0].part
    for name in ("points/xyz_m/c.0.0", "pairs/camera/c.0"):
        path = f"{root}/parts/{part}/{name}"
        filesystem.pipe_file(path, files_flipped(filesystem.cat_file(path)))
    filesystem.rm_file(f"{root}/parts/{part}/zarr.json")
    assert verify(url).damaged_parts == [part]
    _, done = push(store, remote(url), jobs=1)
    assert done.moved.parts == 0  # seals alone do not show it
    _, done = push(store, remote(url), jobs=1, recheck=True)
    assert (done.moved.parts, done.moved.files) == (1, 3)
    assert memory_tree(url) == folder_tree(store)


def test_a_damaged_manifest_at_the_url_can_be_replaced(store: Path, url: str) -> None:
    push(store, remote(url), jobs=1)
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(f"{root}/manifest.json", b"{}")
    with pytest.raises(CacheCorrupt, match="--replace"):
        push(store, remote(url), jobs=1)
    push(store, remote(url), jobs=1, replace=True)
    assert memory_tree(url) == folder_tree(store)


def test_an_unfinished_store_is_not_pushed(url: str, tmp_path: Path) -> None:
    with pytest.raises(CacheIncomplete):
        push(tiny_cache(tmp_path / "part", scenes=1, frames=2, finish=False), remote(url), jobs=1)
    assert not fsspec.filesystem("memory").exists(url)


def test_two_pushes_at_once_are_noticed(
    store: Path, one_scene: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest changes between the look at it and the write."""
    done: list[str] = []

    def other(number: int, path: str, when: str) -> None:
        if path.endswith("frames.parquet") and when == "after" and not done:
            done.append(path)
            push(one_scene, remote(url), jobs=1)

    Mutations(monkeypatch, other)
    with pytest.raises(CacheConflict, match="another push"):
        push(store, remote(url), jobs=1)
    assert open_cache(url).manifest == read_manifest(one_scene)


@pytest.mark.parametrize("name", ["frames.parquet", "manifest.json"])
@pytest.mark.parametrize("first", [True, False])
def test_a_server_refuses_the_later_of_two_pushes(
    store: Path, one_scene: Path, s3: Any, proxy: Any, name: str, first: bool
) -> None:
    """Another push finishes after the last look at the URL and before the write: only the server can notice."""
    if not first:
        push(one_scene, remote(s3.url), jobs=1)
    other = one_scene if first else merged_twice(store)
    done: list[str] = []

    def meanwhile(request: Any) -> None:
        if request.method == "PUT" and request.path.endswith(name) and not done:
            done.append(name)
            push(other, remote(s3.url), jobs=1)

    proxy.before = meanwhile
    with pytest.raises(CacheConflict, match=r"another push to .* finished meanwhile"):
        push(store, s3.network(), jobs=1)
    assert done
    proxy.reset()
    assert open_cache(s3.url).manifest == read_manifest(other)
    assert verify(s3.url).sound


def merged_twice(store: Path) -> Path:
    """The parts of a store under another manifest."""
    from hilda_cache.reshape.merge import merge

    out = store.parent / "merged"
    if not out.exists():
        merge([str(store)], out)
    return out


def test_a_server_without_conditional_writes_is_written_to_all_the_same(
    store: Path, s3: Any, proxy: Any, tree: Tree
) -> None:
    proxy.rule = lambda request: (
        501 if request.method == "PUT" and request.nth == 0 and request.path.endswith("manifest.json") else None
    )
    push(store, s3.network(), jobs=1)
    assert s3.tree() == tree(store)


def test_memory_is_bounded_by_pieces_not_by_files(store: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Pieces(bytearray):
        def __init__(self, size: int) -> None:
            sizes.append(size)
            super().__init__(size)

    monkeypatch.setattr(files, "bytearray", Pieces, raising=False)
    monkeypatch.setattr(files, "PIECE_BYTES", 2**16)
    push(store, remote(url), jobs=1)
    assert max(sizes) == 2**16
    assert memory_tree(url) == folder_tree(store)


def test_refused_access_is_one_line_and_resumable(store: Path, s3: Any, proxy: Any, tree: Tree) -> None:
    """Scenario 60: credentials end in the middle of a push."""
    puts = itertools.count()
    proxy.rule = lambda request: 403 if request.writes and next(puts) >= 40 else None
    with pytest.raises(CacheError, match=r"access is refused: injected.*renew or correct the credentials") as caught:
        push(store, s3.network(), jobs=1)
    assert type(caught.value) is CacheError
    assert "\n" not in str(caught.value)
    before = len(s3.tree())
    assert before >= 30
    proxy.reset()
    push(store, s3.network(), jobs=1)
    assert s3.tree() == tree(store)
    assert len([request for request in proxy.log if request.writes]) <= len(tree(store)) - before


@pytest.mark.parametrize("fault", [*map(slow, (503, 429, "reset", "cut")), 500, "lost"])
def test_faults_that_pass_do_no_harm(store: Path, s3: Any, proxy: Any, tree: Tree, fault: str | int) -> None:
    """Scenario 54, once each: on every third request at first sight."""
    count = itertools.count()
    proxy.rule = lambda request: fault if request.nth == 0 and next(count) % 3 == 0 else None
    push(store, s3.network(), jobs=2)
    assert s3.tree() == tree(store)


@pytest.mark.slow
def test_a_reader_beside_every_request_of_a_push(store: Path, one_scene: Path, s3: Any, proxy: Any) -> None:
    """Scenario 53, on a real server: a reader before and after every request that writes."""
    push(one_scene, s3.network(), jobs=1)
    roots = {read_manifest(each).root_sha256: open_cache(each).frames for each in (one_scene, store)}
    seen: list[str] = []

    def read(request: Any) -> None:
        if request.writes:
            manifest, table = load_root(open_storage(s3.url))
            assert table is not None
            assert table.equals(roots[manifest.root_sha256])
            seen.append(manifest.root_sha256)

    failures: list[BaseException] = []

    def watched(request: Any) -> None:
        try:
            read(request)
        except BaseException as error:
            failures.append(error)

    proxy.before = proxy.after = watched
    push(store, s3.network(), jobs=1)
    assert not failures
    assert sorted(set(map(list(roots).index, seen))) == [0, 1]


@pytest.mark.slow
def test_random_kills_of_a_push_process(store: Path, s3: Any, proxy: Any, command: Any, tree: Tree) -> None:
    """Scenario 53: kill -9 at requests all over a push, each time going on from the last."""
    for point in (3, 11, 19, 27, 38, 52, 70):
        process = command("push", store, s3.url, "--jobs", "2")
        count = itertools.count()

        def die(request: Any, process: Any = process, count: Any = count, point: int = point) -> None:
            if request.writes and next(count) == point:
                process.kill()

        proxy.before = die
        process.communicate(timeout=120)
        proxy.reset()
        report = verify(s3.url) if "manifest.json" in s3.tree() else None
        assert report is None or report.sound
    push(store, s3.network(), jobs=2)
    assert s3.tree() == tree(store)


def test_the_command_line(store: Path, s3: Any, tree: Tree) -> None:
    def invoke(*words: object) -> Any:
        return CliRunner().invoke(app, ["push", str(store), s3.url, *map(str, words)], catch_exceptions=False)

    cost = json.loads(invoke("--dry-run", "--json").stdout)
    assert (cost["parts"], cost["parts_there"]) == (2, 0)
    assert not s3.tree()
    said = invoke("--json")
    done = json.loads(said.stdout)
    assert (done["parts_moved"], done["files"], done["bytes"]) == (2, cost["files"], cost["bytes"])
    assert f"{s3.url}@sha256:{done['root_sha256']}" in said.stderr
    assert s3.tree() == tree(store)


def test_a_bucket_that_is_not_there_is_one_line(store: Path, s3: Any) -> None:
    place = open_storage(s3.url.replace(s3.bucket, "nobody-made-this-bucket"))
    assert isinstance(place, RemoteStorage)
    with pytest.raises(CacheNotFound, match="its bucket is not there") as caught:
        push(store, place, jobs=1)
    assert "make the bucket" in caught.value.remedy
