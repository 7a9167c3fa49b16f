"""Drives as they turn out to be: touched, changed, unreadable, oddly named, recorded or read at another time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hilda_cache.drives import open_drive
from hilda_cache.extract import ExtractReport
from hilda_cache.lanes import Stopwatch
from hilda_cache.parts import hash_sources
from hilda_cache.request import ExtractRequest
from hilda_cache.work import make_frame
from hilda_schema import open_cache
from hilda_schema.errors import DriveError, UsageError
from hilda_schema.keys import Key
from hilda_schema.layout import ArraySpec
from hilda_schema.manifest import FileSeal, FrameRow
from hilda_schema.part import OpenPart
from hilda_schema.shard import CRC_BYTES, index_bytes, shard_bytes
from hilda_schema.storage import open_storage
from hilda_schema.testing import tiny_cache

pytestmark = pytest.mark.timeout(900)


def test_only_bytes_and_calibration_decide_what_is_made_again(
    drive: Path, request_of: Callable[..., ExtractRequest], run: Any, dask_client: Any, tree: Any, tmp_path: Path
) -> None:
    """Scenarios 29, 30 and 31, one after the other on one store."""
    store = tmp_path / "store"

    def again() -> ExtractReport:
        dask_client.run(forget_drives)  # which a new command would open anew
        forget_drives()
        return run(request_of(), store, dask_client)

    assert again().complete
    first = tree(store)
    for path in (path for path in drive.rglob("*") if path.is_file()):
        os.utime(path, (0, 0))
    assert again().reused == 6  # touched, with the same bytes
    assert tree(store) == first

    image = sorted((drive / "samples" / "CAM_FRONT").iterdir())[0]
    before, data = image.stat(), bytearray(image.read_bytes())
    data[-40] ^= 4  # one bit of the picture: another one, or damage that no decoder notices
    image.write_bytes(data)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = again()
    assert (changed.reused, len(changed.superseded)) == (5, 1)

    table = drive / "v1.0-synthetic" / "ego_pose.json"
    poses = json.loads(table.read_text())
    read = set(tokens_of(drive, "LIDAR_TOP"))
    moved = next(pose for pose in poses if pose["token"] in read)
    moved["translation"][0] += 0.01
    table.write_text(json.dumps(poses))
    moved_frame = again()
    assert (moved_frame.reused, len(moved_frame.superseded)) == (5, 1)


def forget_drives() -> None:
    from hilda_cache.request import open_drive_once

    open_drive_once.cache_clear()


def tokens_of(drive: Path, channel: str) -> list[str]:
    rows = json.loads((drive / "v1.0-synthetic" / "sample_data.json").read_text())
    return [row["ego_pose_token"] for row in rows if f"/{channel}/" in row["filename"] and row["is_key_frame"]]


def test_a_sweep_without_a_finite_point_is_a_frame_without_points(drive: Path) -> None:
    """Scenario 19."""
    opened = open_drive("nuscenes", drive)
    info = opened.frames(opened.scenes()[0])[0]
    (sweep, *_) = info.lidar_paths
    sweep.write_bytes(np.full((50, 5), np.nan, np.float32).tobytes())
    if len(info.lidar_paths) > 1:
        info.lidar_paths[1].write_bytes(bytes(50))
    cameras = opened.camera_names
    frame = make_frame(opened, (), cameras, info, hash_sources(opened, [info], cameras), Stopwatch(), skip=False)
    assert (len(frame.xyz_m), len(frame.pairs), frame.points_dropped, frame.absent) == (0, 0, 50, {})


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("thing", [pipe, folder, device])
def test_an_image_that_is_no_file_is_named_and_nobody_waits_for_it(drive: Path, thing: Callable[[Path], None]) -> None:
    """T3, for drives: a pipe would never end."""
    opened = open_drive("nuscenes", drive)
    info = opened.frames(opened.scenes()[0])[0]
    image = info.cameras[0].image_path
    image.unlink()
    thing(image)
    signal.alarm(30)
    try:
        with pytest.raises(DriveError, match=rf"{image.name} (is not a regular file|is a link that leaves)"):
            hash_sources(opened, open_drive("nuscenes", drive).frames(opened.scenes()[0])[:1], opened.camera_names)
    finally:
        signal.alarm(0)


def test_more_points_than_32_bits_can_count_are_found_at_their_place(tmp_path: Path) -> None:
    """Scenario 36: a part of 2.2 billion points, as a file with holes; a byte, and an offset, far beyond 2^31."""
    from crc32c import crc32c

    rows, per_chunk = 2**31 + 5 * 2**15 + 7, 2**15
    spec = ArraySpec("points/ring", "uint8", ("point",), (rows,), per_chunk)
    edges = np.array([0, 2**31 + 3, rows], np.int64)
    offsets = ArraySpec("points/offset", "int64", ("frame_edge",), (3,), 3)
    assert shard_bytes(spec) > 2**31
    mark = (np.arange(per_chunk) % 251).astype(np.uint8)
    chunk = (2**31 + 3) // per_chunk
    crcs = [0] * spec.chunks
    crcs[chunk] = crc32c(mark.tobytes())
    place = tmp_path / "store" / "parts" / "big" / "points"
    for each, write in (
        (spec, {chunk * (per_chunk + CRC_BYTES): mark.tobytes() + crcs[chunk].to_bytes(4, "little")}),
        (offsets, {0: edges.tobytes() + crc32c(edges.tobytes()).to_bytes(4, "little")}),
    ):
        path = place / Path(each.shard_path).relative_to("points")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for at, data in (write | {shard_bytes(each) - len(index_bytes(each)): index_bytes(each)}).items():
                file.seek(at)
                file.write(data)
        assert path.stat().st_size == shard_bytes(each)
    seals = {
        spec.path: FileSeal(size=shard_bytes(spec), sha256="0" * 64, chunk_crc32c=tuple(crcs)),
        offsets.path: FileSeal(size=1, sha256="0" * 64, chunk_crc32c=(crc32c(edges.tobytes()),)),
    }
    pose = tuple(np.eye(4).ravel().tolist())
    frames = tuple(
        FrameRow(
            key=f"toy/s/{k}", stamp_ns=k, world_SE3_lidar=pose, world_SE3_ego=pose, points=int(count), points_dropped=0,
            pairs=0, points_seen=0,
        )
        for k, count in enumerate(np.diff(edges))
    )  # fmt: skip
    part = OpenPart(open_storage(tmp_path / "store"), "big", frames, (), {s.path: s for s in (spec, offsets)}, seals)
    assert part.edges("points", 1) == (2**31 + 3, rows)
    start = part.edges("points", 1)[0]
    np.testing.assert_array_equal(part.read_rows("points/ring", start, start + 100, 1), mark[start % per_chunk :][:100])


def hilda_cache(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "from hilda_cache.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, timeout=120, env=os.environ | environment,
        encoding="utf-8",
    )  # fmt: skip


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_of_any_kind_work_in_any_locale(
    tiny_drive: Path, request_of: Callable[..., ExtractRequest], run: Any, dask_client: Any, tmp_path: Path
) -> None:
    """Scenario 37: letters beyond ASCII in both Unicode forms, spaces, %, # and the longest name that there may be."""
    composed, decomposed = (unicodedata.normalize(form, "Straße é") for form in ("NFC", "NFD"))
    drive = Path(shutil.copytree(tiny_drive, tmp_path / f"{composed} 100%41#?" / decomposed))
    table = drive / "v1.0-synthetic" / "scene.json"
    scenes = json.loads(table.read_text())
    for scene, name in zip(scenes, (composed, decomposed), strict=True):
        scene["name"] = f"{name} 100%41#?"
    table.write_text(json.dumps(scenes, ensure_ascii=False))
    store = tmp_path / ("store é%41# " + "x" * 200)
    assert run(request_of(root=drive), store, dask_client).complete
    names = {f"{name} 100%41#?" for name in (composed, decomposed)}
    assert {frame.key.scene for frame in open_cache(store)} == names
    assert {Key.parse(str(frame.key)) for frame in open_cache(store)} == {frame.key for frame in open_cache(store)}
    for words in (["info", str(store)], ["info", str(store), "--json"], ["verify", str(store)]):
        done = hilda_cache(*words, **C_LOCALE)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    done = hilda_cache("verify", str(store) + "é", **C_LOCALE)
    assert done.returncode == 1
    assert done.stderr.startswith("error [cache.not-found]: no cache at ")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Scenario 37: bytes that are not UTF-8, which Linux allows in a name."""
    broken = os.fsdecode(b"scene-\xff")
    (tmp_path / broken / "lidar").mkdir(parents=True)
    (tmp_path / broken / "lidar" / "timestamps.json").write_text("[1.0]")
    pose = {"heading": dict.fromkeys("wxyz", 0.0) | {"w": 1.0}, "position": dict.fromkeys("xyz", 0.0)}
    (tmp_path / broken / "lidar" / "poses.json").write_text(json.dumps([pose]))
    drive = open_drive("pandaset", tmp_path)
    with pytest.raises(UsageError, match="is no Unicode text"):
        drive.frames(broken)
    tiny_cache(tmp_path / broken / "store", scenes=1, frames=1, points=5)
    assert len(open_cache(tmp_path / broken / "store")) == 1
    done = hilda_cache("verify", str(tmp_path / broken / "none"))
    assert done.stderr.startswith("error [cache.not-found]")


def test_what_a_strangers_store_says_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """T19: control characters in a reason or a name come out as text."""
    from hilda_schema.terminal import say

    say("frame \x1b[2Jx\r\x9b31m\x7f\n é")
    assert capsys.readouterr().err == "frame \\x1b[2Jx\\x0d\\x9b31m\\x7f\n é\n"


@pytest.mark.parametrize(
    "when", ["2001-01-01 00:00:00", *(pytest.param(when, marks=pytest.mark.slow) for when in ("+2h", "-2h"))]
)
def test_the_clock_is_no_part_of_a_store(tmp_path: Path, when: str) -> None:
    """Scenario 38: the same bytes, and nothing found invalid, whatever the time is said to be."""
    if (faketime := shutil.which("faketime")) is None:
        pytest.skip("faketime is not installed")
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom hilda_schema.testing import tiny_cache, validate\n"
        "validate(Path(sys.argv[1]))\nstore = tiny_cache(Path(sys.argv[2]), scenes=1, frames=2, points=20)\n"
        "validate(store)\nprint(int(time.time()))"
    )
    ours = tiny_cache(tmp_path / "ours", scenes=1, frames=2, points=20)
    done = subprocess.run(
        [faketime, "-f", when, sys.executable, "-c", code, str(ours), str(tmp_path / "theirs")],
        capture_output=True, text=True, timeout=120, env=os.environ | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert abs(int(done.stdout) - ours.stat().st_mtime) > 3600  # the clock was another one indeed
    files = sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "theirs") for p in (tmp_path / "theirs").rglob("*") if p.is_file())
    assert all((ours / path).read_bytes() == (tmp_path / "theirs" / path).read_bytes() for path in files)
