"""A store read where it lies: faults of the network, copies kept here, pins, secrets."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import push
from hilda_schema.errors import CacheConflict, CacheCorrupt, CacheError, CacheIncomplete, CacheNotFound, UsageError
from hilda_schema.reader import Cache, open_cache
from hilda_schema.storage import open_storage, pinned, split_pin
from hilda_schema.testing import tiny_cache
from hilda_schema.verify import verify
from hilda_schema.writer import read_manifest

Tree = Callable[[Path], dict[str, str]]


def slow(*values: Any) -> Any:
    """A case for the nightly run."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def at_s3(store: Path, s3: Any) -> str:
    """The store on a server, reached over the network."""
    s3.files.put(str(store), s3.url, recursive=True)
    s3.files.invalidate_cache()
    s3.use("network")
    return str(s3.url)


def invoke(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


CHUNKS = "layer_4/tokens/c.0"


@pytest.mark.parametrize("fault", [*map(slow, (500, 429, "reset")), 503, "cut", "flip"])
def test_faults_that_pass_give_the_right_values(store: Path, at_s3: str, proxy: Any, fault: str | int) -> None:
    """Scenarios 54 and 58, once: on everything that is read first."""
    proxy.rule = lambda request: fault if request.nth == 0 and request.method == "GET" else None
    here, there = open_cache(store)[0], open_cache(at_s3)[0]
    assert there.points.xyz_m.tobytes() == here.points.xyz_m.tobytes()
    assert there.token_grid("vit", 4).tobytes() == here.token_grid("vit", 4).tobytes()
    assert open_cache(at_s3).frames.equals(open_cache(store).frames)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (500, CacheError, "cannot be reached: injected"),
        ("flip", CacheCorrupt, "is not what was sealed|came with other bytes"),
        (403, CacheError, "access is refused"),
        (404, CacheCorrupt, "is missing"),
    ],
)
def test_faults_that_stay_are_errors_with_file_frame_and_command(
    at_s3: str, proxy: Any, fault: str | int, kind: type[CacheError], words: str
) -> None:
    """Scenarios 54, 57, 58 and 60, always."""
    frame = open_cache(at_s3)[0]
    proxy.rule = lambda request: fault if CHUNKS in request.path else None
    with pytest.raises(kind, match=rf"{CHUNKS}[.0]* .*({words}).*|({words})") as caught:
        frame.token_grid("vit", 4)
    assert "toy/scene-0000/000000" in str(caught.value)
    assert CHUNKS in str(caught.value)
    assert caught.value.remedy
    proxy.rule = lambda request: None
    assert frame.token_grid("vit", 4).any()


def test_a_lost_bucket_is_not_an_empty_store(at_s3: str, s3: Any) -> None:
    """Scenario 57: NoSuchBucket below an open store."""
    frame = open_cache(at_s3)[0]
    s3.files.rm(s3.bucket, recursive=True)
    with pytest.raises(CacheCorrupt, match=r"offset/c\.0 is missing.*scene-0000.*hilda-cache verify"):
        _ = frame.points
    with pytest.raises(CacheNotFound, match="no cache at"):
        open_cache(at_s3)


def test_stalls_end_in_bounded_time(at_s3: str, proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario 55: once is survived, always is an error that says how long it waited."""
    frame = open_cache(at_s3)[0]
    monkeypatch.setenv("HILDA_REMOTE_TIMEOUT_S", "5")
    monkeypatch.setattr("hilda_schema.remote.SLOWEST_BYTES_PER_S", 1e9)
    proxy.rule = lambda request: "stall" if CHUNKS in request.path and request.nth == 0 else None
    assert frame.token_grid("vit", 4).any()
    proxy.rule = lambda request: "stall" if "layer_2/tokens/c.0" in request.path else None
    with pytest.raises(CacheError, match=r"layer_2/tokens/c\.0[.0]*: no answer in 5 s, 2 times.*000000"):
        frame.token_grid("vit", 2)


def test_kept_copies_save_requests_and_bytes(
    store: Path, at_s3: str, proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HILDA_CACHE_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("HILDA_CACHE_BYTES", "1GB")
    counts = []
    for _ in range(2):
        proxy.log.clear()
        for frame, here in zip(open_cache(at_s3), open_cache(store), strict=True):
            assert frame.points.xyz_m.tobytes() == here.points.xyz_m.tobytes()
            assert frame.token_grid("vit", 4).tobytes() == here.token_grid("vit", 4).tobytes()
        counts.append(proxy.bytes_given())
    size = sum(path.stat().st_size for path in store.rglob("xyz_m/c*"))
    assert counts[0] > size > 4 * counts[1]
    assert not [request for request in proxy.log if "/c.0" in request.path and request.given > 1000]


def test_commands_read_a_url(store: Path, at_s3: str, tmp_path: Path, tree: Tree) -> None:
    """info, verify, show, in place and pinned."""
    root = read_manifest(store).root_sha256
    code, out, _ = invoke("info", at_s3)
    assert code == 0
    assert pinned(at_s3, root) in out
    assert json.loads(invoke("info", pinned(at_s3, root), "--json")[1])["pinned_url"] == pinned(at_s3, root)
    code, _, err = invoke("verify", pinned(at_s3, root[:12]))
    assert code == 0
    assert "all as sealed" in err
    assert invoke("show", at_s3, "--out", tmp_path / "frame.png")[0] == 0
    assert (tmp_path / "frame.png").stat().st_size > 1000


def test_verify_says_how_to_mend_a_url(store: Path, at_s3: str, s3: Any) -> None:
    path = f"{s3.url}/parts/{read_manifest(store).parts[0].part}/points/xyz_m/c.0.0"
    s3.files.pipe_file(path, s3.files.cat_file(path)[:-1] + b"?")
    code, _, err = invoke("verify", at_s3)
    assert code == 3
    assert re.search(r"wrong: parts/\w+/points/xyz_m/c\.0\.0: ", err)
    assert f"hilda-cache push STORE {at_s3} --recheck" in err


def test_a_pin_is_part_of_an_address() -> None:
    digits = "0123456789abcdef" * 4
    assert split_pin(f"s3://b/k@sha256:{digits}") == ("s3://b/k", digits)
    assert split_pin(f"/data/a@b@sha256:{digits[:12]}") == ("/data/a@b", digits[:12])
    assert split_pin("s3://user@b/k") == ("s3://user@b/k", "")
    assert pinned(f"s3://b/k@sha256:{digits[:12]}", digits) == f"s3://b/k@sha256:{digits}"
    for wrong in (digits[:11], digits + "0", digits.upper(), "", "latest"):
        with pytest.raises(UsageError, match="does not name a store's content"):
            open_storage(f"s3://b/k@sha256:{wrong}")


def test_another_content_is_refused_with_both_hashes(store: Path, one_scene: Path, tmp_path: Path) -> None:
    """Threat 8: whatever was changed, and signed again throughout, has another root."""
    root, other = read_manifest(store).root_sha256, read_manifest(one_scene).root_sha256
    for pin in (root, root[:12]):
        assert len(open_cache(f"{store}@sha256:{pin}")) == 4
        for run in (open_cache, verify, plan_pull):
            with pytest.raises(CacheConflict, match=rf"is sha256:{other}, and sha256:{pin} was asked for.*@sha256"):
                run(f"{one_scene}@sha256:{pin}")
        assert invoke("verify", f"{store}@sha256:{pin}")[0] == 0
    with pytest.raises(CacheConflict, match="was asked for"):
        invoke("info", f"{one_scene}@sha256:{root}")
    started = tiny_cache(tmp_path / "partial", scenes=1, frames=2, finish=False)
    with pytest.raises(CacheConflict, match="is not complete, and sha256"):
        open_cache(f"{started}@sha256:{root}", allow_partial=True)
    with pytest.raises(CacheIncomplete):
        open_cache(started)
    with pytest.raises(UsageError, match="not to a content"):
        invoke("push", store, f"{tmp_path}/x@sha256:{root}")


def test_a_pinned_cache_stays_pinned_in_another_process(store: Path, one_scene: Path, tmp_path: Path) -> None:
    """Threat 18: the store is exchanged after it was opened."""
    here = Path(shutil.copytree(store, tmp_path / "here"))
    cache = open_cache(f"{here}@sha256:{read_manifest(store).root_sha256}")
    sent = pickle.dumps(cache)
    assert isinstance(pickle.loads(sent), Cache)
    shutil.rmtree(here)
    shutil.copytree(one_scene, here)
    with pytest.raises(CacheConflict):
        pickle.loads(sent)


CANARY = "canary5ecret"


def test_secrets_are_used_and_never_shown(store: Path, s3: Any, proxy: Any, tmp_path: Path, command: Any) -> None:
    """Threat 16: a password in a URL, a key in the environment; in every output, error and file of a session."""
    said: list[str] = []
    url = f"s3://{s3.bucket}/teams/store"
    secret = {"AWS_SECRET_ACCESS_KEY": CANARY, "AWS_SESSION_TOKEN": CANARY + "token"}
    for words in (("push", store, url), ("pull", url, tmp_path / "here")):
        process = command(*words, way="direct", **secret)
        said += process.communicate(timeout=120)
        assert process.returncode == 0, said[-1]
    proxy.rule = lambda request: 403
    process = command("pull", url, tmp_path / "there", **secret)
    said += process.communicate(timeout=120)
    assert process.returncode == 1
    for address in (
        f"https://user:{CANARY}@127.0.0.1:9/store?X-Amz-Signature={CANARY}",
        f"nosuch://user:{CANARY}@host/store?token={CANARY}",
        f"sftp://user:{CANARY}@127.0.0.1:9/store",
    ):
        storage = open_storage(address)
        said += [repr(storage), storage.name]
        for run in (open_cache, verify, plan_pull, lambda target: push(store, open_storage(target), jobs=1)):
            with pytest.raises(CacheError) as caught:
                run(address)
            said += [str(caught.value), repr(caught.value)]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert CANARY not in "".join(said)
    assert not [data for data in files if CANARY.encode() in data]


def test_the_command_line_of_pull(store: Path, at_s3: str, s3: Any, tmp_path: Path, tree: Tree) -> None:
    code, out, err = invoke("pull", at_s3, tmp_path / "here", "--dry-run")
    assert code == 0
    assert not (tmp_path / "here").exists()
    assert re.search(r"2 parts to fetch \(0 there already\): \d+ files, [\d.]+ MB", out)
    assert re.search(r"about \d+\.\d\d USD at list prices", out)
    code, out, err = invoke("pull", at_s3, tmp_path / "here", "--scenes", "scene-0001", "--json")
    assert code == 0
    assert json.loads(out)["parts_moved"] == 1
    assert "1 part fetched (0 there already)" in err
    code, out, err = invoke("pull", at_s3, tmp_path / "here", "--scenes", "scene-0001,scene-0000", "--jobs", "1")
    assert "1 part fetched (1 there already)" in err
    pull(plan_pull(at_s3), tmp_path / "here", jobs=1)
    assert tree(tmp_path / "here") == tree(store)


FIT = "from hilda_train.cli import main; main()"
RECIPE = """
extends: hilda
student:
  {arch: waffleiron, depth: 2, width: 8, levels: [1, 2], neighbours: 4, thin_m: null, cell_m: 4.0,
   range_m: [[-32, -32, -4], [32, 32, 4]]}
objectives:
  point: {head: {layers: 2, hidden: 16}}
  global_context: {weight: 1.0, head: {layers: 2, hidden: 16}}
  occupancy: {kind: none}
data: {batch_size: 1, workers: 2, gap_s: 0.1, intensity: {toy: {mean: 0.5, std: 0.3}}, max_points: 2000}
train: {max_steps: 3, precision: float32, log_every: 1}
"""


@pytest.mark.slow
def test_a_run_trains_from_a_server_with_workers(store: Path, at_s3: str, s3: Any, tmp_path: Path) -> None:
    """Scenario 65: the same losses as from the folder; scenario 64: another store under the same pin is refused."""
    root = read_manifest(store).root_sha256
    curves = []
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(RECIPE)
    for number, cache in enumerate((str(store), pinned(at_s3, root))):
        run = tmp_path / str(number)
        words = ["fit", str(recipe), "--cache", cache, "--out", str(run)]
        environment = {**s3.environment("network"), "HILDA_CACHE_BYTES": "1GB", "HILDA_CACHE_DIR": str(tmp_path / "c")}
        done = subprocess.run([sys.executable, "-c", FIT, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        curves.append([json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()])
        assert json.loads((run / "run.json").read_text())["caches"][0]["root_sha256"] == root
    assert [line.get("loss") for line in curves[0]] == [line.get("loss") for line in curves[1]]
