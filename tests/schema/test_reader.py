"""The reader's promises beyond values: clear errors, laziness, threads, processes, URLs, hostile stores."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hilda_schema import storage as storage_module
from hilda_schema.errors import (
    CacheConflict,
    CacheCorrupt,
    CacheError,
    CacheIncomplete,
    CacheNotFound,
    CacheVersion,
    HildaError,
    NotInCache,
    UsageError,
)
from hilda_schema.keys import Key
from hilda_schema.manifest import canonical_json, sha256_hex
from hilda_schema.reader import open_cache
from hilda_schema.root import root_sha256
from hilda_schema.table import table_bytes
from hilda_schema.testing import tiny_cache, tiny_parts, tiny_recipe
from hilda_schema.verify import verify
from hilda_schema.writer import read_manifest, start_store, write_part


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store; tests must not change it."""
    return tiny_cache(tmp_path_factory.mktemp("stores") / "cache")


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    """A store to be changed."""
    return Path(shutil.copytree(store, tmp_path / "cache"))


def test_a_cache_is_a_sequence_of_frames(store: Path) -> None:
    cache = open_cache(store)
    assert len(cache) == 10
    assert [str(frame.key) for frame in cache] == cache.frames["key"].to_pylist()
    assert cache[-1].key == cache[9].key == Key("toy", "scene-0001", "000004")
    assert cache[np.int64(3)].index == 3
    for index in (10, -11):
        with pytest.raises(IndexError):
            cache[index]
    assert cache.find("toy/scene-0001/000002").index == 7
    assert cache.camera_names == cache[0].camera_names == ("FRONT", "LEFT", "BACK")
    assert cache[0].camera_sizes_px["LEFT"] == (120, 96)
    assert list(cache.teachers) == ["vit", "cnn"]


def test_an_absent_camera_is_nan_with_a_reason(store: Path) -> None:
    frame = open_cache(store)[1]
    assert frame.absent == {"LEFT": "images/LEFT.jpg: no such file"}
    assert frame.present.tolist() == [True, False, True]
    assert np.isnan(frame.token_grid("vit", 2)[1]).all()
    assert np.isnan(frame.global_tokens("vit")[1]).all()
    assert np.isfinite(frame.token_grid("vit", 2)[[0, 2]]).all()
    assert 1 not in frame.pairs.camera


def test_empty_frames_have_empty_arrays(store: Path) -> None:
    cache = open_cache(store)
    no_pairs, no_points = cache[5], cache[9]
    assert (len(no_pairs.points), len(no_pairs.pairs)) == (400, 0)
    assert (len(no_points.points), len(no_points.pairs)) == (0, 0)
    for frame in (no_pairs, no_points):
        assert frame.point_features("vit", 2).shape == (0, 8)
        assert frame.pairs.uv_px.shape == (0, 2)
        assert frame.points.label is not None


def test_what_is_not_stored_is_said_with_the_nearest_name(store: Path) -> None:
    cache = open_cache(store)
    frame = cache[0]
    for ask, nearest in (
        (lambda: frame.point_features("vitt", 2), "did you mean 'vit'"),
        (lambda: frame.token_grid("vit", 22), "did you mean '2'"),
        (lambda: frame.stored_tokens("cnn", "stage_1"), "did you mean 'stage1'"),
        (lambda: frame.global_tokens("VIT2"), "stored are: vit, cnn"),
        (lambda: cache.find("toy/scene-0000/000009"), "did you mean 'toy/scene-0000/00000"),
    ):
        with pytest.raises(NotInCache) as caught:
            ask()
        assert nearest in caught.value.remedy
    with pytest.raises(NotInCache, match="no global token"):
        frame.global_tokens("cnn")
    with pytest.raises(UsageError, match="bicubic"):
        frame.point_features("vit", 2, mode="bicubic")


def test_point_features_have_no_grid(tmp_path: Path) -> None:
    frame = open_cache(tiny_cache(tmp_path / "cache", kind="point"))[0]
    with pytest.raises(NotInCache, match="kind=point"):
        frame.token_grid("vit", 2)
    with pytest.raises(NotInCache, match="kind=point"):
        frame.point_features("vit", 2, mode="nearest")
    assert frame.stored_tokens("vit", 2).values.shape == (len(frame.pairs), 8)


def test_no_store_is_told_from_a_damaged_one(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheNotFound, match="no cache at") as caught:
        open_cache(tmp_path / "none")
    assert "hilda-cache extract" in caught.value.remedy
    with pytest.raises(CacheNotFound, match="no cache at") as caught:
        open_cache(copy.parent)
    assert caught.value.remedy == f"did you mean {copy}?"
    (copy / "manifest.json").unlink()
    with pytest.raises(CacheCorrupt, match=r"manifest\.json is missing") as caught:
        open_cache(copy)
    assert "hilda-cache repair" in caught.value.remedy


def test_a_partial_store_says_how_far_it_is(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    parts = tiny_parts(recipe)
    store = tmp_path / "cache"
    start_store(store, recipe, planned_parts=len(parts))
    with pytest.raises(CacheIncomplete, match="0 of 4 parts"):
        open_cache(store)
    for part in (parts[3], parts[0]):
        write_part(store, recipe, part)
    (store / "parts/.tmp-x-1-0").mkdir()
    (store / "parts/unfinished").mkdir()
    with pytest.raises(CacheIncomplete, match="2 of 4 parts") as caught:
        open_cache(store)
    assert "allow_partial" in caught.value.remedy
    cache = open_cache(store, allow_partial=True)
    keys = [str(frame.key) for part in (parts[0], parts[3]) for frame in part.frames]
    assert cache.frames["key"].to_pylist() == keys
    assert [len(frame.points) for frame in cache] == [400, 400, 400, 400, 0]
    assert verify(store).sound
    assert pickle.loads(pickle.dumps(cache))[4].key == cache[4].key


def test_opening_touches_no_part(copy: Path) -> None:
    for folder in (copy / "parts").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    cache = open_cache(copy)
    assert len(cache) == 10
    with pytest.raises(CacheCorrupt, match=r"seal\.json is missing") as caught:
        cache[0]
    assert caught.value.remedy.endswith(f"hilda-cache verify {copy}")


def test_damage_names_file_frame_and_remedy(copy: Path) -> None:
    cache = open_cache(copy)
    part = cache.frames["part"][4].as_py()
    shard = copy / "parts" / part / "vit/layer_4/tokens/c.0.0.0.0.0"
    data = bytearray(shard.read_bytes())
    data[3000] ^= 1  # in the second of two frames: a chunk has 3 x 6 x 10 x 8 float16 and 4 bytes
    shard.write_bytes(data)
    cache[3].token_grid("vit", 4)
    with pytest.raises(CacheCorrupt, match=r"layer_4/tokens/c.* \(frame toy/scene-0000/000004\): chunk 1") as caught:
        cache[4].token_grid("vit", 4)
    assert "hilda-cache verify" in caught.value.remedy
    assert [problem.frame for problem in verify(copy).problems] == ["toy/scene-0000/000004"]
    assert verify(copy).damaged_parts == [part]


def test_a_chunk_moved_within_a_shard_is_noticed_although_its_own_checksum_is_right(copy: Path) -> None:
    cache = open_cache(copy)
    part = cache.frames["part"][0].as_py()
    shard = copy / "parts" / part / "vit/layer_4/tokens/c.0.0.0.0.0"
    data = shard.read_bytes()
    stride = 3 * 6 * 10 * 8 * 2 + 4
    shard.write_bytes(data[stride : 2 * stride] + data[:stride] + data[2 * stride :])
    with pytest.raises(CacheCorrupt, match="chunk 0"):
        cache[0].token_grid("vit", 4)


def test_a_newer_store_asks_for_an_update(copy: Path) -> None:
    content = json.loads((copy / "manifest.json").read_bytes())
    content["schema_version"] = "1.9"
    (copy / "manifest.json").write_bytes(canonical_json(content))
    with pytest.raises(CacheVersion, match=r"schema 1\.9, this program reads 1\.0, 1\.1"):
        open_cache(copy)
    with pytest.raises(CacheVersion):
        verify(copy)


def test_a_store_that_changes_under_a_pickled_cache_is_refused(copy: Path) -> None:
    sent = pickle.dumps(open_cache(copy))
    shutil.rmtree(copy)
    tiny_cache(copy, seed=1)
    with pytest.raises(CacheConflict, match="changed while it was in use"):
        pickle.loads(sent)


WORKER = """
def read(cache, indices):
    return [(i, cache[i].point_features("vit", 4).tobytes()) for i in indices]
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_read_the_same_however_they_start(
    store: Path, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers that start from a clean process import what they run; a test module cannot be imported.
    (tmp_path / "reading_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    read = importlib.import_module("reading_worker").read
    cache = open_cache(store)
    expected = read(cache, range(10))
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as workers:
        halves = workers.map(read, [cache, cache], [range(0, 10, 2), range(1, 10, 2)], timeout=60)
        found = sorted(row for half in halves for row in half)
    assert found == expected
    monkeypatch.delitem(sys.modules, "reading_worker")


def test_a_fork_while_threads_read_does_not_hang(store: Path) -> None:
    cache = open_cache(store)
    stop = threading.Event()

    def keep_reading() -> None:
        while not stop.is_set():
            cache[0].token_grid("vit", 2)

    reader = threading.Thread(target=keep_reading)
    reader.start()
    try:
        for _ in range(20):
            process = multiprocessing.get_context("fork").Process(target=lambda: cache[0].token_grid("vit", 2))
            process.start()
            process.join(timeout=30)
            assert process.exitcode == 0
    finally:
        stop.set()
        reader.join()


def test_threads_share_a_cache(store: Path) -> None:
    expected = [frame.point_features("vit", 2) for frame in open_cache(store)]
    cache = open_cache(store)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda i: cache[i % 10].point_features("vit", 2), range(200)))
    assert all(np.array_equal(found[i], expected[i % 10]) for i in range(200))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_files_are_bounded(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "OPEN_FILES", 5)
    before = open_files()
    cache = open_cache(store)
    for frame in cache:
        frame.point_features("vit", 2)
        assert frame.points is not None
    assert before < open_files() <= before + 5
    del cache, frame
    assert open_files() == before


def test_a_relative_path_stays_right_when_the_working_directory_changes(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(store.parent)
    cache = open_cache("cache")
    monkeypatch.chdir(tmp_path)
    assert len(cache[0].points) == 400
    assert len(pickle.loads(pickle.dumps(cache))[0].points) == 400


@pytest.fixture
def memory_url(store: Path) -> str:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(store), "/stores/cache", recursive=True)
    yield "memory://stores/cache"
    filesystem.rm("/stores", recursive=True)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_urls_read_the_same(store: Path, memory_url: str, kind: str) -> None:
    url = memory_url if kind == "memory" else f"file://{store}"
    local, remote = open_cache(store), open_cache(url)
    for a, b in zip(local, remote, strict=True):
        assert np.array_equal(a.points.xyz_m, b.points.xyz_m)
        assert np.array_equal(a.pairs.uv_px, b.pairs.uv_px)
        for teacher, layer in (("vit", 2), ("cnn", "stage2")):
            assert np.array_equal(a.point_features(teacher, layer), b.point_features(teacher, layer))
    assert verify(url).sound
    assert pickle.loads(pickle.dumps(remote))[3].key == local[3].key


def test_damage_behind_a_url_is_named(memory_url: str) -> None:
    filesystem = fsspec.filesystem("memory")
    cache = open_cache(memory_url)
    part = cache.frames["part"][0].as_py()
    folder = f"/stores/cache/parts/{part}"
    data = bytearray(filesystem.cat_file(f"{folder}/pairs/uv/c.0.0"))
    data[10] ^= 4
    filesystem.pipe_file(f"{folder}/pairs/uv/c.0.0", bytes(data))
    with pytest.raises(CacheCorrupt, match=r"pairs/uv/c\.0\.0 \(frame toy/scene-0000/000000\)"):
        _ = cache[0].pairs
    filesystem.rm(f"{folder}/points/xyz_m/c.0.0")
    with pytest.raises(CacheCorrupt, match=r"points/xyz_m/c\.0\.0 .*is missing|xyz_m/c\.0\.0 is missing"):
        _ = open_cache(memory_url)[0].points
    assert {problem.file.split("/", 2)[-1] for problem in verify(memory_url).problems} == {
        "pairs/uv/c.0.0",
        "points/xyz_m/c.0.0",
    }
    with pytest.raises(CacheNotFound):
        open_cache("memory://stores/none")


def test_secrets_of_a_url_are_not_repeated() -> None:
    for url, shown in (
        ("s3://user:secret@host/bucket/store?X-Amz-Signature=secret", "s3://host/bucket/store"),
        ("https://host/a/b#secret", "https://host/a/b"),
        ("memory://x/y/", "memory://x/y"),
    ):
        assert storage_module.without_secrets(url) == shown
    with pytest.raises(CacheError) as caught:
        open_cache("nosuchscheme://user:secret@host/store?token=secret")
    assert "secret" not in str(caught.value)


def resigned(copy: Path, change: object) -> None:
    """Change a complete store's manifest as an attacker would: with every hash made right again."""
    content = json.loads((copy / "manifest.json").read_bytes())
    change(content)
    content.pop("self_sha256")
    content["self_sha256"] = sha256_hex(canonical_json(content))
    (copy / "manifest.json").write_bytes(canonical_json(content))


def test_a_table_that_names_foreign_parts_is_refused(copy: Path) -> None:
    table = open_cache(copy).frames
    names = ["../../outside", *table["part"].to_pylist()[1:]]
    import pyarrow as pa

    data = table_bytes(
        table.set_column(table.schema.get_field_index("part"), table.schema.field("part"), pa.array(names))
    )
    (copy / "frames.parquet").write_bytes(data)
    resigned(copy, lambda content: content.update(frames_sha256=sha256_hex(data)))
    cache = open_cache(copy)
    with pytest.raises(CacheCorrupt, match="which the manifest does not list"):
        cache[0]
    assert any("does not say the same" in problem.what for problem in verify(copy).problems)


def test_a_table_of_another_shape_is_refused(copy: Path) -> None:
    table = open_cache(copy).frames
    for wrong in (table.slice(1), table.drop_columns(["row"])):
        data = table_bytes(wrong)
        (copy / "frames.parquet").write_bytes(data)
        resigned(copy, lambda content, data=data: content.update(frames_sha256=sha256_hex(data)))
        with pytest.raises(CacheCorrupt, match=r"frames\.parquet"):
            open_cache(copy)


def test_a_table_that_grows_in_memory_is_refused(copy: Path) -> None:
    """A few hundred bytes of run lengths may stand for gigabytes."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = open_cache(copy).frames
    bomb = table.set_column(1, table.schema.field("key"), pa.array(["x" * 2**20] * len(table)))
    for options in ({"use_dictionary": True, "compression": "none"}, {"use_dictionary": False, "compression": "zstd"}):
        sink = io.BytesIO()
        pq.write_table(bomb, sink, **options)
        data = sink.getvalue()
        (copy / "frames.parquet").write_bytes(data)
        resigned(copy, lambda content, data=data: content.update(frames_sha256=sha256_hex(data)))
        with pytest.raises(CacheCorrupt, match="not stored plainly"):
            open_cache(copy)


def test_a_seal_with_huge_numbers_allocates_nothing(copy: Path) -> None:
    """A seal re-signed all the way up, whose arrays would be exabytes."""
    part = read_manifest(copy).parts[0].part
    path = copy / "parts" / part / "seal.json"

    def forge(change: object) -> None:
        seal = json.loads(path.read_bytes())
        change(seal)
        seal.pop("self_sha256")
        seal["self_sha256"] = sha256_hex(canonical_json(seal))
        path.write_bytes(canonical_json(seal))
        digest = sha256_hex(path.read_bytes())

        def update(content: dict) -> None:
            entry = next(each for each in content["parts"] if each["part"] == part)
            entry["seal_sha256"] = digest
            content["root_sha256"] = root_sha256(
                tuple(type(read_manifest(copy).parts[0]).model_validate(each) for each in content["parts"])
            )

        resigned(copy, update)

    good = path.read_bytes()
    manifest = (copy / "manifest.json").read_bytes()
    for change in (
        lambda seal: seal["frames"][0].update(points=2**40),
        lambda seal: seal["frames"][0].update(pairs=2**40),
        lambda seal: seal["frames"][0].update(points=10**30),
        lambda seal: seal["files"]["points/xyz_m/c.0.0"].update(size=2**40),
        lambda seal: seal["files"].update({"../../x": {"size": 1, "sha256": "0" * 64, "chunk_crc32c": None}}),
        lambda seal: seal["frames"][0].update(key="toy/other/000000"),
        lambda seal: seal["frames"][0].update(key="///"),
        lambda seal: seal.update(cameras=seal["cameras"][:1]),
        lambda seal: seal.update(recipe_digest="0" * 64),
    ):
        forge(change)
        with pytest.raises(CacheCorrupt):
            open_cache(copy)[0]
        assert part in verify(copy).damaged_parts
        path.write_bytes(good)
        (copy / "manifest.json").write_bytes(manifest)
    assert len(open_cache(copy)[0].points) == 400


def test_links_and_strangers_are_refused(copy: Path, tmp_path: Path) -> None:
    part = copy / "parts" / read_manifest(copy).parts[0].part
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (part / "extra").symlink_to(secret)
    with pytest.raises(CacheCorrupt, match="extra is neither a file nor a folder"):
        open_cache(copy)[0]
    (part / "extra").unlink()
    (part / "points/notes.txt").write_text("hello")
    with pytest.raises(CacheCorrupt, match=r"points/notes\.txt is not part of the cache"):
        open_cache(copy)[0]
    (part / "points/notes.txt").unlink()
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheCorrupt):
        open_cache(copy)[0]
    assert not verify(copy).sound


def test_a_huge_manifest_is_not_read(copy: Path) -> None:
    with (copy / "manifest.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: no disk is used, and no memory may be either
    with pytest.raises(CacheCorrupt, match="the most that can be right"):
        open_cache(copy)


def test_strangers_beside_the_store_are_reported_and_harmless(copy: Path) -> None:
    (copy / "README.md").write_text("# card")
    (copy / "notes.txt").write_text("hello")
    (copy / "parts/unlisted").mkdir()
    (copy / "parts/unlisted/zarr.json").write_text("{}")
    report = verify(copy)
    assert report.sound
    assert report.exit_code == 0
    assert report.extra == ["notes.txt", "parts/unlisted"]
    assert len(open_cache(copy)) == 10


def test_verify_counts_and_reports_progress(store: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = verify(store, lambda done, total: calls.append((done, total)))
    files = [path for path in store.rglob("*") if path.is_file()]
    assert (report.files, report.bytes) == (len(files), sum(path.stat().st_size for path in files))
    assert [done for done, _ in calls] == list(range(1, len(files) + 1))
    assert {total for _, total in calls[1:]} == {len(files)}
    assert (report.parts, report.planned_parts, report.complete) == (4, 4, True)


def test_an_empty_folder_is_no_store_to_verify(tmp_path: Path) -> None:
    with pytest.raises(CacheNotFound):
        verify(tmp_path)


def test_reading_imports_neither_zarr_nor_torch() -> None:
    code = (
        "import sys, hilda_schema.reader, hilda_schema.verify;"
        "print([name for name in ('zarr', 'torch', 'dask', 'hypothesis', 'fsspec') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_error_of_reading_is_ours(copy: Path) -> None:
    """A store whose folders vanish while it is read."""
    cache = open_cache(copy)
    frames = [cache[index] for index in range(10)]
    shutil.rmtree(copy)
    for frame in frames:
        with pytest.raises(HildaError, match="missing"):
            frame.token_grid("vit", 2)
