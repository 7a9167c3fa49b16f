"""What is exported is what a reader of the cache gets: read back by the loaders, and by their plain formats."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hilda_cache import completion
from hilda_cache.cli import app
from hilda_cache.export import TARGETS, export
from hilda_schema import Cache, open_cache
from hilda_schema.errors import CacheCorrupt, NotInCache, UsageError
from hilda_schema.testing import tiny_cache

LAYERS = ("vit.2", "vit.4", "cnn.stage1", "cnn.stage2")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(tiny_cache(tmp_path_factory.mktemp("stores") / "cache", points=60))


def expected(cache: Cache, index: int) -> dict[str, np.ndarray]:
    frame = cache[index]
    found = {name: getattr(frame.pairs, name) for name in ("point", "camera", "depth_m", "visible")}
    found["uv_px"] = frame.pairs.uv_px.astype(np.float32)
    found["xyz_m"] = frame.points.xyz_m[frame.pairs.point]
    found["label"] = frame.points.label[frame.pairs.point]
    return found | {name: frame.point_features(*name.split(".")) for name in LAYERS}


def check(cache: Cache, index: int, about: dict, values: dict[str, np.ndarray]) -> None:
    frame = cache[index]
    assert (about["key"], about["stamp_ns"]) == (str(frame.key), frame.stamp_ns)
    assert np.array_equal(np.reshape(about["world_SE3_lidar"], (4, 4)), frame.world_SE3_lidar)
    for name, right in expected(cache, index).items():
        assert np.array_equal(np.asarray(values[name]).reshape(right.shape), right), name


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """Sample -> member -> bytes, by tarfile alone."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                sample, _, name = member.name.partition(".")
                samples.setdefault(sample, {})[name] = tar.extractfile(member).read()
    return samples


def test_webdataset_by_its_plain_format(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilda_cache.export.SHARD_BYTES", 20_000)
    files = export(cache, "webdataset", tmp_path / "out")
    assert len(files) > 2
    samples = members(tmp_path / "out")
    assert list(samples) == [f"{k:09d}" for k in range(len(cache))]
    for index, sample in enumerate(samples.values()):
        arrays = {name: np.load(io.BytesIO(data)) for name, data in sample.items() if name.endswith(".npy")}
        check(
            cache, index, json.loads(sample["json"]), {name.removesuffix(".npy"): each for name, each in arrays.items()}
        )


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves its files open
def test_webdataset_by_the_library(cache: Cache, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    files = export(cache, "webdataset", tmp_path / "out")
    urls = [str(tmp_path / "out" / name) for name in files]
    samples = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert len(samples) == len(cache)
    for index, sample in enumerate(samples):
        check(cache, index, sample["json"], {name: sample[f"{name}.npy"] for name in expected(cache, index)})


def test_datasets_by_parquet(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hilda_cache.export.SHARD_BYTES", 20_000)
    files = export(cache, "datasets", tmp_path / "out")
    assert len(files) > 1
    assert files[0] == f"data/train-00000-of-{len(files):05d}.parquet"
    rows = [row for name in files for row in pq.read_table(tmp_path / "out" / name).to_pylist()]
    assert len(rows) == len(cache)
    for index, row in enumerate(rows):
        check(cache, index, row, row)
        assert json.loads(row["absent"]) == cache[index].absent


def test_datasets_by_the_library(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    export(cache, "datasets", tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"), split="train")
    assert len(loaded) == len(cache)
    for index, row in enumerate(loaded):
        check(cache, index, row, row)


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_store_gives_the_same_bytes_and_says_where_it_is_from(
    cache: Cache, tmp_path: Path, target: str
) -> None:
    for name in ("one", "two"):
        export(cache, target, tmp_path / name, teachers=("vit",), layers=("4",))
    contents = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    ]
    assert contents[0] == contents[1]
    source = json.loads(contents[0].pop("source.json"))
    assert source["store_root_sha256"] == cache.manifest.root_sha256
    assert (source["layers"], source["frames"]) == (["vit.4"], len(cache))
    assert source["files"] == {name: hashlib.sha256(data).hexdigest() for name, data in contents[0].items()}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one", "two"]


def test_stores_without_points_have_no_place_of_them(tmp_path: Path) -> None:
    bare = open_cache(
        tiny_cache(tmp_path / "cache", kind="point", dtype="int8", store_points=False, scenes=1, points=30)
    )
    export(bare, "webdataset", tmp_path / "out")
    sample = members(tmp_path / "out")["000000001"]
    assert "xyz_m.npy" not in sample
    assert np.array_equal(np.load(io.BytesIO(sample["vit.2.npy"])), bare[1].point_features("vit", 2))


def test_mistakes_leave_nothing_behind(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for asked, error, said in (
        (("tfrecord", tmp_path / "out"), UsageError, "'tfrecord' is not known"),
        (("datasets", tmp_path / "mine"), UsageError, "already there"),
        (("datasets", tmp_path / "out", ("dino",)), NotInCache, "no teacher 'dino'"),
        (("datasets", tmp_path / "out", ("vit",), ("3",)), NotInCache, "no layer 3 of vit"),
    ):
        with pytest.raises(error, match=said):
            export(cache, *asked)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("target", TARGETS)
def test_damage_ends_it_and_leaves_nothing_behind(tmp_path: Path, target: str) -> None:
    store = tiny_cache(tmp_path / "cache", scenes=1, points=30)
    part = open_cache(store).manifest.parts[-1].part
    path = store / "parts" / part / "cnn/layer_stage2/tokens/c.0.0.0.0.0"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(CacheCorrupt, match="cnn/layer_stage2/tokens"):
        export(open_cache(store), target, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_the_command(cache: Cache, tmp_path: Path) -> None:
    asked = ["export", cache.url, "--to", "webdataset", "-o", str(tmp_path / "out"), "--layers", "2,stage1"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert f"wrote {tmp_path}/out: 10 frames in 1 file" in done.output
    assert json.loads((tmp_path / "out/source.json").read_text())["layers"] == ["vit.2", "cnn.stage1"]
    assert tuple(TARGETS) == completion.EXPORT_TARGETS
