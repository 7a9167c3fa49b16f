"""What SECURITY.md promises and no other test shows: the page names these by name."""

from __future__ import annotations

import ast
import getpass
import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hilda_schema.errors import CacheCorrupt, HildaError, TrainError
from hilda_schema.manifest import canonical_json, sha256_hex
from hilda_schema.reader import open_cache
from hilda_schema.testing import tiny_cache

pytestmark = pytest.mark.timeout(900)
REPO = Path(__file__).resolve().parents[2]
CANARY = "c4n4ry-5ecret"
SECRETS = dict.fromkeys(
    ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "HTTPS_PROXY_PASSWORD"), CANARY
)
TOY = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(0.1, 1, 24).reshape(8, 3, 1, 1))
    def forward(self, x):
        grid = torch.nn.functional.conv2d(x[:, :, ::14, ::14], self.w)
        return {"grid": grid, "global": grid.mean((2, 3))}
def make():
    return Net()
"""
RECIPE = """
extends: scalr
student: {arch: minkunet, depth: 14, width: 0.125, voxels: {size: [2, 2, 2]}, levels: [block8]}
data: {batch_size: 2, workers: 0, intensity: {toy: {mean: 0.5, std: 0.3}}}
schedule: {kind: cosine, warmup: 1}
train: {max_steps: 2, precision: float32, log_every: 1}
"""

WATCHED = """
import sys
seen = []
def watch(event, arguments):
    if event in {"pickle.find_class", "socket.connect", "subprocess.Popen", "os.system", "os.exec"}:
        seen.append(event)
    if event == "open" and isinstance(arguments[0], str) and "canary" in arguments[0]:
        seen.append("canary")
import hilda_schema.reader as reader, hilda_schema.verify as verify, hilda_schema.errors as errors
import pyarrow.parquet, numpy, hilda_schema.remote, hilda_schema.boxes
sys.addaudithook(watch)
try:
    verify.verify(sys.argv[1])
    for frame in reader.open_cache(sys.argv[1]):
        frame.points, frame.pairs, frame.point_features("vit", "4")
    print("read", *seen)
except errors.HildaError as error:
    print("refused", *seen)
"""


def watched(store: Path) -> str:
    done = subprocess.run([sys.executable, "-c", WATCHED, str(store)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_opening_a_store_runs_no_code_and_asks_nobody(tmp_path: Path) -> None:
    """T1: neither a store as it should be nor one that a Zarr library would unpickle."""
    store = tiny_cache(tmp_path / "store", scenes=1, frames=2, points=10)
    assert watched(store) == "read"
    part = next((store / "parts").glob("[!.]*/"))
    array = part / "points" / "intensity"
    meta = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "compressor": None, "fill_value": None,
        "order": "C", "filters": [{"id": "pickle"}],
    }  # fmt: skip
    (array / ".zarray").write_text(json.dumps(meta))
    (array / "0").write_bytes(pickle.dumps([Evil(tmp_path / "marker")]))
    assert watched(store) == "refused"
    shutil.rmtree(array)
    array.mkdir()
    (array / ".zarray").write_text(json.dumps(meta))
    assert watched(store) == "refused"
    (part / "present" / "zarr.json").unlink()
    (part / "present" / "zarr.json").symlink_to(tmp_path / "canary")
    (tmp_path / "canary").write_text("{}")
    assert watched(store) == "refused"
    assert not (tmp_path / "marker").exists()


def resigned(path: Path, change: Any) -> bytes:
    content = json.loads(path.read_bytes())
    change(content)
    content.pop("self_sha256")
    data = canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})
    path.write_bytes(data)
    return data


def test_forged_content_with_right_checksums_is_another_store(tmp_path: Path) -> None:
    """T8: every checksum made right again; only the name of the content, got from elsewhere, tells."""
    from crc32c import crc32c

    store = tiny_cache(tmp_path / "store", scenes=1, frames=2, points=10)
    expected = open_cache(store).manifest.root_sha256
    part = next((store / "parts").glob("[!.]*/"))
    name = "points/intensity/c.0"
    data = bytearray((part / name).read_bytes())
    size = open_cache(store)[0]._part.arrays["points/intensity"].chunk_bytes
    data[0] ^= 1
    data[size : size + 4] = crc32c(bytes(data[:size])).to_bytes(4, "little")
    (part / name).write_bytes(data)

    def seal(content: dict[str, Any]) -> None:
        content["files"][name] |= {"sha256": hashlib.sha256(data).hexdigest()}
        content["files"][name]["chunk_crc32c"][0] = crc32c(bytes(data[:size]))

    sealed = sha256_hex(resigned(part / "seal.json", seal))

    def vouch(content: dict[str, Any]) -> None:
        content["parts"][0]["seal_sha256"] = sealed

    resigned(store / "manifest.json", vouch)
    with pytest.raises(CacheCorrupt, match="its root hash is not that of its parts"):
        open_cache(store)
    table = store / "frames.parquet"
    old = json.loads((store / "manifest.json").read_bytes())
    before = table.read_bytes()
    first = open_cache(tiny_cache(tmp_path / "same", scenes=1, frames=2, points=10)).manifest.parts[0].seal_sha256
    table.write_bytes(before.replace(first.encode(), sealed.encode()))

    def root(content: dict[str, Any]) -> None:
        content["frames_sha256"] = sha256_hex(table.read_bytes())
        content["root_sha256"] = sha256_hex(
            canonical_json([[each["part"], each["seal_sha256"]] for each in old["parts"]])
        )

    resigned(store / "manifest.json", root)
    forged = open_cache(store)
    assert np.isfinite(forged[0].points.intensity).all()  # it reads
    assert forged.manifest.root_sha256 != expected
    with pytest.raises(HildaError, match=expected[:12]):
        open_cache(f"{store}@sha256:{expected}")


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused_unread(tmp_path: Path) -> None:
    """T9: 1.5 kB that stand for a tensor of 256 GiB."""
    from hilda_train.students.weights import load_weights

    torch.save({"weight": torch.zeros(1).expand(2**18, 2**18), "bias": torch.zeros(2)}, tmp_path / "bomb.pt")
    assert (tmp_path / "bomb.pt").stat().st_size < 10_000
    with pytest.raises(TrainError, match=r"weight is \(262144, 262144\), the student's is \(2, 3\)"):
        load_weights(torch.nn.Linear(3, 2), tmp_path / "bomb.pt")
    torch.save(
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1).expand(2**36)},
        tmp_path / "more.pt",
    )
    load_weights(torch.nn.Linear(3, 2), tmp_path / "more.pt")


def everything_below(*folders: Path) -> bytes:
    return b"\0".join(path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())


def run_with_secrets(program: str, *words: object) -> bytes:
    """All that a command says, which succeeds."""
    code = f"from {program}.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True, timeout=280, env=os.environ | SECRETS | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout + done.stderr


def test_no_secret_and_nothing_private_is_in_a_store(tiny_drive: Path, tmp_path: Path) -> None:
    """T16 and T17: secrets in the command's variables, and what a store says of who made it, where, and of what."""
    (tmp_path / "toy.py").write_text(TOY)
    store = tmp_path / "store"
    teacher = ["-t", f"toy={tmp_path / 'toy.py'}:make", "--layers", "grid", "--image-size", "56x112"]
    said = run_with_secrets(
        "hilda_cache", "extract", tiny_drive, "-d", "nuscenes", *teacher, "-o", store, "--workers", "1", "--json"
    )
    kept = everything_below(store)
    assert CANARY.encode() not in said + kept
    for private in (str(tmp_path), str(tiny_drive), str(Path.home()) + "/"):
        assert private.encode() not in kept, private
    words = "\n".join(path.read_text() for path in store.rglob("*.json"))
    for name in (socket.gethostname(), getpass.getuser()):
        assert not re.search(rf"\b{re.escape(name)}\b", words), name
    assert not re.search(rb"JFIF|Exif|\x89PNG\r\n|IHDR", kept)  # no image, no thumbnail


def test_no_secret_is_in_a_run_or_its_report(tmp_path: Path) -> None:
    """T16: `fit` and `report` with secrets in their variables."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    store, run = tiny_cache(tmp_path / "store", scenes=1, frames=3, points=60), tmp_path / "run"
    said = run_with_secrets("hilda_train", "fit", tmp_path / "recipe.yaml", "-c", store, "-o", run, "--device", "cpu")
    said += run_with_secrets("hilda_train", "report", run, "-o", run / "report.html")
    assert (run / "report.html").stat().st_size > 1000
    assert CANARY.encode() not in said + everything_below(run)


def test_what_travels_to_workers_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T16: tasks are pickled, and a scheduler shows them to whoever asks."""
    from hilda_cache.options import build_request
    from hilda_schema.storage import open_storage

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "toy.py").write_text(TOY)
    request = build_request(
        tmp_path, "nuscenes", [f"toy={tmp_path}/toy.py:make"], None, None, None, None, None, None, ":", None, "grid",
        "auto", "fail", None, False, False, False,
    )  # fmt: skip
    storage = open_storage("memory://bucket/store")
    cache = open_cache(tiny_cache(tmp_path / "store", scenes=1, frames=1, points=5))
    for each in (request, storage, cache, cache.manifest):
        assert CANARY.encode() not in pickle.dumps(each)


def test_messages_name_options_that_there_are() -> None:
    """A remedy that names a switch which lets code run must name the real one."""
    from typer.main import get_command

    from hilda_cache.cli import app as cache_app
    from hilda_train.cli import app as train_app

    known = {"--help", "--nproc-per-node"}  # torchrun's
    waiting = [get_command(cache_app), get_command(train_app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        known |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = []
    for path in sorted([*(REPO / "pipeline").rglob("*.py"), *(REPO / "trainer").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                texts = [each.value for each in ast.walk(node.exc) if isinstance(each, ast.Constant)]
                found = re.findall(r"(?<![\w-])--[a-z][a-z-]+\b", " ".join(filter(lambda t: isinstance(t, str), texts)))
                unknown += [f"{path.name}:{node.lineno}: {option}" for option in found if option not in known]
    assert unknown == []
