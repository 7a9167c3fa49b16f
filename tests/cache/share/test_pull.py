"""Pulling: what is here afterwards, parts of a store, faults of the network, kills, hostile sources."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from hilda_cache.reshape.subset import Cut, subset
from hilda_cache.share import pull as pull_module
from hilda_cache.share.pull import missing_parts, plan_pull, pull
from hilda_cache.share.push import push
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheError, CacheFull, CacheIncomplete, UsageError
from hilda_schema.manifest import Manifest, Seal, sha256_hex
from hilda_schema.reader import open_cache
from hilda_schema.remote import Stopped
from hilda_schema.root import root_sha256
from hilda_schema.storage import open_storage
from hilda_schema.testing import tiny_cache, validate
from hilda_schema.writer import read_manifest

Tree = Callable[[Path], dict[str, str]]


def slow(*values: Any) -> Any:
    """A case for the nightly run."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="session")
def url(store: Path) -> str:
    """The store in memory; do not change it."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(store), "/pull/store", recursive=True)
    return "memory://pull/store"


@pytest.fixture
def at_s3(store: Path, s3: Any) -> str:
    """The store on a server."""
    s3.files.put(str(store), s3.url, recursive=True)
    s3.files.invalidate_cache()
    return str(s3.url)


def network_plan(s3: Any, *cut: Any) -> Any:
    """A plan whose bytes will come over the network."""
    s3.use("network")
    return plan_pull(s3.url, *cut)


def test_from_a_folder_and_from_a_url_come_the_same_bytes(store: Path, url: str, tmp_path: Path, tree: Tree) -> None:
    for number, source in enumerate((str(store), url)):
        manifest, done = pull(plan_pull(source), tmp_path / str(number), jobs=2)
        assert tree(tmp_path / str(number)) == tree(store)
        assert manifest == read_manifest(store)
        assert done.moved.parts == 2
        again, done = pull(plan_pull(source), tmp_path / str(number), jobs=2)
        assert (again, done.moved.parts, done.moved.kept_parts) == (manifest, 0, 2)


def test_scenes_are_whole_parts_and_more_can_follow(store: Path, url: str, tmp_path: Path, tree: Tree) -> None:
    """The same store as `subset` makes, and in the end the whole one."""
    cut = Cut(scenes=("scene-0001",))
    _, done = pull(plan_pull(url, cut, "--scenes scene-0001"), tmp_path / "some", jobs=2)
    assert done.moved.parts == 1
    subset(str(store), tmp_path / "cut", cut, "--scenes scene-0001")
    assert tree(tmp_path / "some") == tree(tmp_path / "cut")
    with pytest.raises(CacheConflict, match="1 parts that are not asked for"):
        pull(plan_pull(url, Cut(scenes=("scene-0000",)), ""), tmp_path / "some", jobs=2)
    assert tree(tmp_path / "some") == tree(tmp_path / "cut")
    _, done = pull(plan_pull(url), tmp_path / "some", jobs=2)
    assert (done.moved.parts, done.moved.kept_parts) == (1, 1)
    assert tree(tmp_path / "some") == tree(store)


def test_layers_come_without_the_others(
    store: Path, at_s3: str, s3: Any, proxy: Any, tmp_path: Path, tree: Tree
) -> None:
    cut = Cut(layers={"vit": ("4",)})
    proxy.reset()
    pull(network_plan(s3, cut, "--layers vit=4"), tmp_path / "some", jobs=2)
    assert not [request.path for request in proxy.log if "layer_2" in request.path and "/c.0" in request.path]
    subset(str(store), tmp_path / "cut", cut, "--layers vit=4")
    assert tree(tmp_path / "some") == tree(tmp_path / "cut")
    validate(tmp_path / "some")
    assert [layer.name for layer in open_cache(tmp_path / "some").teachers["vit"].layers] == ["4"]
    again, done = pull(plan_pull(str(store), cut, "--layers vit=4"), tmp_path / "some", jobs=2)
    assert (done.moved.parts, again) == (0, read_manifest(tmp_path / "cut"))


def test_what_is_not_there_is_named(url: str, tmp_path: Path) -> None:
    for cut, words in (
        (Cut(scenes=("scene-0009",)), "scene 'scene-0009' is not in"),
        (Cut(teachers=("vitt",)), "no teacher 'vitt'"),
        (Cut(layers={"vit": ("7",)}), "no layer of vit '7'"),
    ):
        with pytest.raises(UsageError, match=words):
            plan_pull(url, cut, "")


class Killed(BaseException):
    """The process is gone."""


STEPS = ("unlink", "rename", "replace", "write_bytes")  # by which files appear, change and go


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pull_killed_at_any_point_goes_on(
    one_scene: Path, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Scenario 52: death at every file that appears or goes; never a part that is not whole; then the same command."""
    want, url = tree(one_scene), str(one_scene)
    names = {entry.part for entry in read_manifest(one_scene).parts}
    for point in itertools.count():
        here, count = tmp_path / str(point), itertools.count()
        with monkeypatch.context() as patch:
            for step in STEPS:
                patch.setattr(Path, step, _dying(getattr(Path, step), here, count, point, when))
            try:
                pull(plan_pull(url), here, jobs=1)
            except Killed:
                pass
            else:
                break
        parts = here / "parts"
        found = [path.name for path in parts.iterdir() if path.name in names] if parts.exists() else []
        for part in found:
            assert {name: sha for name, sha in tree(here).items() if part in name} == {
                name: sha for name, sha in want.items() if part in name
            }
        pull(plan_pull(url), here, jobs=1)
        assert tree(here) == want
        shutil.rmtree(here)
    assert point > 30


def _dying(step: Any, below: Path, count: Any, point: int, when: str) -> Any:
    def call(path: Path, *args: Any, **kwargs: Any) -> Any:
        # A lock would outlive its holder here, whose process goes on.
        last = below in path.parents and path.name != ".lock" and next(count) == point
        if last and when == "before":
            raise Killed
        try:
            return step(path, *args, **kwargs)
        finally:
            if last:
                raise Killed

    return call


def test_real_kill_of_a_pull_process(
    store: Path, at_s3: str, s3: Any, proxy: Any, command: Any, tmp_path: Path, tree: Tree
) -> None:
    """Scenario 52: kill -9 of the command while its second large file comes; the rest follows, no large file twice."""
    here = tmp_path / "here"
    process = command("pull", at_s3, here, "--jobs", "1")
    large = itertools.count()

    def die(request: Any) -> None:
        if "xyz_m/c.0.0" in request.path and next(large) == 1:
            process.kill()

    proxy.after = die
    process.communicate(timeout=120)
    assert process.returncode == -9
    finished = [path for path in (here / "parts").iterdir() if not path.name.startswith(".")]
    assert [path.name for path in finished] == [read_manifest(store).parts[0].part]
    with pytest.raises(CacheIncomplete):
        open_cache(here)
    proxy.reset()
    pull(network_plan(s3), here, jobs=1)
    assert tree(here) == tree(store)
    assert not [request for request in proxy.log if f"{finished[0].name}/" in request.path]
    assert proxy.bytes_given() < sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) * 0.7


def test_files_of_an_unfinished_part_are_kept_if_sound(
    store: Path, at_s3: str, s3: Any, proxy: Any, tmp_path: Path, tree: Tree
) -> None:
    """Scenario 52: of a part that was cut short, only what is missing or wrong comes again; strangers go."""
    part = read_manifest(store).parts[0].part
    begun = tmp_path / "here/parts" / f".tmp-pull-{part}"
    shutil.copytree(store / "parts" / part, begun)
    (begun / "seal.json").unlink()
    (begun / "pairs/camera/c.0").write_bytes(b"torn")
    (begun / "points/ring/zarr.json").unlink()
    (begun / "stranger").write_bytes(b"?")
    (begun / "points/label/zarr.json").unlink()
    (begun / "points/label/zarr.json").symlink_to("/etc/passwd")
    pull(network_plan(s3, Cut(scenes=("scene-0000",)), ""), tmp_path / "here", jobs=1)
    files = {request.path.split(f"{part}/")[1] for request in proxy.log if f"{part}/" in request.path}
    assert files == {"seal.json", "pairs/camera/c.0", "points/ring/zarr.json", "points/label/zarr.json"}
    assert {name: sha for name, sha in tree(tmp_path / "here").items() if part in name} == {
        name: sha for name, sha in tree(store).items() if part in name
    }


@pytest.mark.parametrize("fault", [*map(slow, (500, 429, "reset")), 503, "cut", "flip"])
def test_faults_that_pass_do_no_harm(
    store: Path, at_s3: str, s3: Any, proxy: Any, tmp_path: Path, tree: Tree, fault: str | int
) -> None:
    """Scenarios 54 and 58, once each: every file of the store fails when it is first asked for."""
    proxy.rule = lambda request: fault if request.nth == 0 and request.method == "GET" else None
    pull(network_plan(s3), tmp_path / "here", jobs=2)
    assert tree(tmp_path / "here") == tree(store)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (500, "cannot be reached: injected.*run the same command again"),
        slow(503, "cannot be reached: injected"),
        slow(429, "cannot be reached"),
        slow("reset", "cannot be reached"),
        slow("cut", "cannot be reached"),
        ("flip", "came (twice )?with other bytes than were.*hilda-cache verify"),
        (404, "is missing.*hilda-cache verify"),
        (403, "access is refused.*credentials"),
    ],
)
def test_faults_that_stay_end_in_an_error(
    store: Path, at_s3: str, s3: Any, proxy: Any, tmp_path: Path, tree: Tree, fault: str | int, words: str
) -> None:
    """Scenarios 54, 57, 58 and 60, always: one line, nothing bad left, and the same command goes on."""
    part = read_manifest(store).parts[1].part
    name = "pairs/offset/c.0" if fault in (500, 403) else "points/xyz_m/c.0.0"  # a small file and a large one
    proxy.rule = lambda request: fault if f"{part}/{name}" in request.path else None
    here = tmp_path / "here"
    with pytest.raises(CacheError, match=words) as caught:
        pull(network_plan(s3), here, jobs=1)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or fault == "reset"
    assert not (here / "parts" / part).exists()
    sealed = Seal.from_bytes((store / "parts" / part / "seal.json").read_bytes(), "").files
    for path in (here / "parts" / f".tmp-pull-{part}").rglob("*"):
        if path.is_file() and path.name != "c.0.0":
            relative = path.relative_to(here / "parts" / f".tmp-pull-{part}").as_posix()
            assert sha256_hex(path.read_bytes()) == sealed[relative].sha256
    if fault in ("flip", 404):
        assert not (here / "parts" / f".tmp-pull-{part}" / name).exists()
    proxy.reset()
    pull(network_plan(s3), here, jobs=1)
    assert tree(here) == tree(store)


def test_a_damaged_part_does_not_keep_the_others(store: Path, at_s3: str, s3: Any, proxy: Any, tmp_path: Path) -> None:
    first, second = (entry.part for entry in read_manifest(store).parts)
    proxy.rule = lambda request: "flip" if f"{first}/points/xyz_m" in request.path else None
    with pytest.raises(CacheCorrupt, match=first):
        pull(network_plan(s3), tmp_path / "here", jobs=1)
    assert [path.name for path in (tmp_path / "here/parts").iterdir() if not path.name.startswith(".")] == [second]


def test_stalls_end_in_bounded_time(
    at_s3: str, s3: Any, proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 55: a server that does not answer; twice the limit that the environment sets, and an error."""
    name, cut = "points/xyz_m/c.0.0", (Cut(scenes=("scene-0000",)), "")
    proxy.rule = lambda request: 403 if name in request.path else None
    with pytest.raises(CacheError, match="access is refused"):  # all but the large files are here
        pull(network_plan(s3, *cut), tmp_path / "here", jobs=1)
    monkeypatch.setenv("HILDA_REMOTE_TIMEOUT_S", "5")
    monkeypatch.setattr("hilda_schema.remote.SLOWEST_BYTES_PER_S", 1e9)
    proxy.log.clear()
    proxy.rule = lambda request: "stall" if name in request.path else None
    with pytest.raises(CacheError, match=r"xyz_m/c\.0\.0: no answer in 5 s, 2 times.*HILDA_REMOTE_TIMEOUT_S"):
        pull(network_plan(s3, *cut), tmp_path / "here", jobs=1)
    assert sum(name in request.path for request in proxy.log) == 2
    proxy.log.clear()
    proxy.rule = lambda request: "stall" if name in request.path and request.nth == 0 else None
    pull(network_plan(s3, *cut), tmp_path / "here", jobs=1)
    validate(tmp_path / "here")


def test_a_slow_server_is_waited_for_and_one_that_is_too_slow_given_up(
    at_s3: str, s3: Any, proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Tree
) -> None:
    """Scenario 56: the time a request may take grows with its bytes, and ends."""
    name, cut = "points/xyz_m/c.0.0", (Cut(scenes=("scene-0000",)), "")
    proxy.rule = lambda request: "slow" if name in request.path else None
    monkeypatch.setenv("HILDA_REMOTE_TIMEOUT_S", "1")  # for 576 kB, at 50 kB/s, 12.5 s
    assert proxy.slow_s > 1
    pull(network_plan(s3, *cut), tmp_path / "here", jobs=1)
    assert any(name in request.path for request in proxy.log)
    validate(tmp_path / "here")
    monkeypatch.setattr("hilda_schema.remote.SLOWEST_BYTES_PER_S", 1e9)
    monkeypatch.setenv("HILDA_REMOTE_TIMEOUT_S", "2")
    with pytest.raises(CacheError, match=r"xyz_m/c\.0\.0: no answer in 2 s, 2 times"):
        pull(network_plan(s3, *cut), tmp_path / "there", jobs=1)
    proxy.reset()
    pull(network_plan(s3, *cut), tmp_path / "there", jobs=1)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_an_old_listing_changes_nothing(
    store: Path, at_s3: str, s3: Any, tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 61: a listing that hides the store does nothing: push, pull and reading in place ask for none."""
    storage = s3.network()
    monkeypatch.setattr(type(storage._filesystem()[0]), "_lsdir", _no_listing)
    monkeypatch.setattr(type(storage._filesystem()[0]), "_find", _no_listing)
    _, done = push(store, storage, jobs=1)
    assert done.moved.kept_parts == 2
    pull(plan_pull(at_s3), tmp_path / "here", jobs=1)
    assert tree(tmp_path / "here") == tree(store)
    assert sum(len(frame.points) for frame in open_cache(at_s3)) == sum(
        len(frame.points) for frame in open_cache(store)
    )


async def _no_listing(*_: object, **__: object) -> None:
    raise AssertionError("a listing was asked for")


def test_a_store_that_changes_while_it_is_pulled(
    store: Path, one_scene: Path, s3: Any, proxy: Any, tmp_path: Path, tree: Tree
) -> None:
    """The plan's manifest is what arrives, whatever is pushed there meanwhile."""
    push(one_scene, s3.network(), jobs=1)
    plan = network_plan(s3)
    push(store, s3.network(), jobs=1)
    manifest, _ = pull(plan, tmp_path / "here", jobs=1)
    assert manifest.root_sha256 == read_manifest(one_scene).root_sha256
    validate(tmp_path / "here")


def resealed(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a part's seal as an attacker would, with every hash above it made right."""
    manifest = read_manifest(store)
    folder = store / "parts" / manifest.parts[0].part
    content = json.loads((folder / "seal.json").read_bytes())
    change(content)
    data = Seal.model_validate({**content, "self_sha256": ""}).to_bytes()
    (folder / "seal.json").write_bytes(data)
    first = manifest.parts[0].model_copy(update={"seal_sha256": sha256_hex(data)})
    parts = (first, *manifest.parts[1:])
    changed = manifest.model_copy(update={"parts": parts, "root_sha256": root_sha256(parts)})
    (store / "manifest.json").write_bytes(Manifest.model_validate(changed.model_dump()).to_bytes())


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped-absolute", "points/../../escaped"])
def test_no_path_of_a_seal_leaves_the_folder(store: Path, tmp_path: Path, name: str) -> None:
    """Threat 2: names in a seal become paths only when they are exactly those of the recipe."""
    copy = Path(shutil.copytree(store, tmp_path / "hostile/store"))

    def add(content: dict[str, Any]) -> None:
        content["files"][name] = content["files"]["zarr.json"]

    resealed(copy, add)
    with pytest.raises(CacheCorrupt, match="recipe disagree about"):
        pull(plan_pull(str(copy)), tmp_path / "here", jobs=1)
    assert not list(tmp_path.rglob("escaped*"))
    assert not Path("/tmp/escaped-absolute").exists()


def test_links_and_pipes_of_a_source_are_refused(store: Path, tmp_path: Path) -> None:
    """Threat 3: a link is not followed, a pipe does not block."""
    for number, replace in enumerate((lambda path: path.symlink_to("/etc/passwd"), os.mkfifo)):
        copy = Path(shutil.copytree(store, tmp_path / f"source-{number}"))
        path = copy / "parts" / read_manifest(copy).parts[0].part / "points/xyz_m/c.0.0"
        path.unlink()
        replace(path)
        with pytest.raises(CacheError, match="xyz_m"):
            pull(plan_pull(str(copy)), tmp_path / f"here-{number}", jobs=1)
        assert b"root:" not in b"".join(p.read_bytes() for p in (tmp_path / f"here-{number}").rglob("*") if p.is_file())


def test_folders_that_hold_something_else_are_left_alone(store: Path, url: str, tmp_path: Path, tree: Tree) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(b"jpg")
    with pytest.raises(CacheConflict, match="not a cache and not empty"):
        pull(plan_pull(url), tmp_path / "photos", jobs=1)
    other = tiny_cache(tmp_path / "other", scenes=1, frames=2)
    before = tree(other)
    with pytest.raises(CacheConflict, match=r"another recipe.*teachers"):
        pull(plan_pull(url), other, jobs=1)
    assert tree(other) == before


def test_a_part_that_is_here_with_other_bytes_is_kept(store: Path, tmp_path: Path, tree: Tree) -> None:
    here = Path(shutil.copytree(store, tmp_path / "here"))
    resealed(here, lambda content: content["sources"].update({"another": "0" * 64}))
    before = tree(here)
    with pytest.raises(CacheConflict, match=r"has other bytes.*another folder"):
        pull(plan_pull(str(store)), here, jobs=1)
    assert tree(here) == before


def test_a_damaged_part_here_is_replaced(store: Path, url: str, tmp_path: Path, tree: Tree) -> None:
    here = Path(shutil.copytree(store, tmp_path / "here"))
    (here / "parts" / read_manifest(here).parts[0].part / "points/xyz_m/c.0.0").write_bytes(b"short")
    assert len(missing_parts(plan_pull(url), here)) == 1
    pull(plan_pull(url), here, jobs=1)
    assert tree(here) == tree(store)


def test_what_the_disk_cannot_hold_is_not_begun(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(pull_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CacheFull, match=r"needs [\d.]+ MB and has 10\.0 kB free"):
        pull(plan_pull(url), tmp_path / "here", jobs=1)
    assert not (tmp_path / "here").exists()


def test_an_interruption_stops_all_that_is_under_way(at_s3: str, s3: Any, proxy: Any, tmp_path: Path) -> None:
    """Reads that other threads wait for are given up at once."""
    plan = network_plan(s3)
    proxy.rule = lambda request: "stall" if "xyz_m/c.0.0" in request.path else None
    release = itertools.count()

    def interrupt(request: Any) -> None:
        if "xyz_m/c.0.0" in request.path and next(release) == 1:
            plan.source.storage.stop()

    proxy.before = interrupt
    with pytest.raises(Stopped):
        pull(plan, tmp_path / "here", jobs=2)


def test_a_folder_can_be_pushed_to_as_well(store: Path, tmp_path: Path, tree: Tree) -> None:
    from hilda_cache.share import commands

    assert (
        commands.push(store, str(tmp_path / "here"), 2, replace=False, recheck=False, dry_run=False, as_json=False) == 0
    )
    assert tree(tmp_path / "here") == tree(store)


def test_the_pulled_root_is_the_same_in_another_schema_of_bytes(store: Path, url: str, tmp_path: Path) -> None:
    """The root at the source is copied; were its table of other bytes, the content's name would still be the same."""
    plan = plan_pull(url)
    manifest = plan.source.manifest.model_copy(update={"frames_sha256": "0" * 64})
    other = pull_module.PullPlan(
        type(plan.source)(plan.source.storage, manifest, plan.source.frames), plan.recipe, None, plan.parts
    )
    made, _ = pull(other, tmp_path / "here", jobs=1)
    assert made.root_sha256 == read_manifest(store).root_sha256
    validate(tmp_path / "here")
    assert isinstance(open_storage(tmp_path / "here").name, str)
