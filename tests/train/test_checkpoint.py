"""Checkpoints: all or nothing at every moment, nothing damaged is believed, nothing in one is run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file

from hilda_schema.errors import TrainError
from hilda_train.checkpoint import Snapshot, TensorSpec, newest, open_checkpoint, save, set_aside_after, sweep

CRASHES = Path(__file__).with_name("check_crashes.py")
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


def snapshot(step):
    tensors = {"weight": torch.full((7, 5), float(step)), "count": torch.tensor(step)}
    return Snapshot(step, {"model": tensors, "optimizer": {"m/weight": torch.zeros(7, 5)}}, {"rate": 0.1, "n": [step]})


def steps_in(folder):
    return sorted(int(path.name[5:]) for path in folder.iterdir() if len(path.name) == 13)


def seal(checkpoint):
    """Checksums that are right for whatever lies there: the work of a stranger, not of a disk."""
    names = sorted(path.name for path in checkpoint.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (checkpoint / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 10 and 20."""
    for step in (10, 20):
        save(tmp_path / "saved", snapshot(step), keep=3)
    return tmp_path / "saved"


def silent(text):
    raise AssertionError(text)


@st.composite
def named_arrays(draw):
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    names = draw(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=4))
    # Any bit pattern, NaN payloads included.
    return {
        name: draw(arrays.arrays(draw(st.sampled_from(DTYPES)), draw(shapes), elements={"allow_nan": True}))
        for name in names
    }


@settings(max_examples=40)
@given(named_arrays(), st.integers(0, 10**12 - 1), st.dictionaries(st.text(max_size=5), st.integers() | st.text()))
def test_what_is_saved_is_read_back_to_the_bit(tmp_path_factory, named, step, state):
    folder = tmp_path_factory.mktemp("bits")
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in named.items()}
    save(folder, Snapshot(step, {"model": tensors, "other": {}}, {"mine": state}), keep=2)
    found = newest(folder, silent)
    assert (found.step, found.state) == (step, {"mine": state})
    assert found.specs("model") == {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for name, tensor in found.read("model", tensors).items():
        assert tensor.numpy().tobytes() == named[name].tobytes()
        assert tensor.dtype == tensors[name].dtype
    assert found.specs("absent") == {}


def test_views_and_tied_tensors_come_back_as_they_were(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "tied": base,
        "also": base,
        "transposed": base.T,
        "rows": base[1:3],
        "strided": base[:, ::2],
        "narrow": base.to(torch.bfloat16),
        "learned": torch.nn.Parameter(base.clone()),
    }
    path = save(tmp_path, Snapshot(1, {"model": tensors}), keep=2)
    found = open_checkpoint(path).read("model", tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()
    assert (path / "model.safetensors").stat().st_size < 7 * base.nbytes + 1000


def test_the_checksums_are_those_of_sha256sum_and_the_files_are_as_readable_as_others(saved):
    import subprocess

    newest_path = saved / "step-00000020"
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=newest_path, check=True, capture_output=True)
    assert len({path.stat().st_mode for path in newest_path.iterdir()}) == 1


@pytest.mark.parametrize("step", [30, 20], ids=["another", "the same again"])
def test_death_at_any_change_to_the_disk_leaves_the_old_or_the_new_one(zygote, tmp_path, step):
    process = zygote.start(CRASHES, tmp_path, step)
    assert process.wait() == 0, process.said
    assert process.said.count("points") == 2


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut keeps what was flushed: every file and the folder before the rename, the folder above after it."""
    events = []
    flush, rename = os.fsync, Path.rename

    def recorded_flush(descriptor):
        flush(descriptor)
        events.append(("flushed", str(Path(f"/proc/self/fd/{descriptor}").readlink()), os.fstat(descriptor).st_size))

    def recorded_rename(self, target):
        events.append(("renamed", str(self), str(target)))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", recorded_flush)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    path = save(tmp_path, snapshot(1), keep=2)
    partial = f"{path}.partial"
    at = events.index(("renamed", partial, str(path)))
    flushed = {(name, size) for kind, name, size in events[:at] if kind == "flushed"}
    for file in path.iterdir():
        assert (f"{partial}/{file.name}", file.stat().st_size) in flushed
    assert partial in {name for name, _ in flushed}
    assert str(tmp_path) in {event[1] for event in events[at + 1 :] if event[0] == "flushed"}


def test_as_many_as_asked_are_kept_and_later_ones_are_not_counted(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, snapshot(step), keep=2)
    assert steps_in(tmp_path) == [3, 4]
    save(tmp_path, snapshot(2), keep=2)
    assert steps_in(tmp_path) == [2, 3, 4]
    assert set_aside_after(tmp_path, 2) == ["step-00000004.aside", "step-00000003.aside"]
    assert newest(tmp_path, silent).step == 2
    (tmp_path / "step-00000009.partial").mkdir()
    (tmp_path / "mine.partial").mkdir()
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-00000002",
        "step-00000003.aside",
        "step-00000004.aside",
        "mine.partial",
    }


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert newest(tmp_path, silent) is None
    assert newest(tmp_path / "absent", silent) is None


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Steps 10 and 20; whoever changes a file puts it back."""
    folder = tmp_path_factory.mktemp("two")
    for step in (10, 20):
        save(folder, snapshot(step), keep=3)
    return folder


FILES = ("SHA256SUMS", "model.safetensors", "optimizer.safetensors", "state.json")


@given(st.sampled_from(FILES), st.data())
def test_any_flipped_bit_and_any_cut_is_noticed(two, name, data):
    path = two / "step-00000020" / name
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, 8 * len(whole) - 1))
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
    else:
        changed = whole[: data.draw(st.integers(0, len(whole) - 1))]
    path.write_bytes(changed)
    try:
        warnings = []
        assert newest(two, warnings.append).step == 10
        assert len(warnings) == 1
        assert "checkpoint of step 20 is passed over" in warnings[0]
        assert str(two / "step-00000020") in warnings[0]
    finally:
        path.write_bytes(whole)
    assert newest(two, silent).step == 20


def deleted(path):
    path.unlink()


def made_a_folder(path):
    path.unlink()
    path.mkdir()


def made_a_link(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def made_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [deleted, made_a_folder, made_a_link, made_a_pipe])
def test_a_file_that_is_none_is_noticed(saved, name, damage):
    damage(saved / "step-00000020" / name)
    warnings = []
    assert newest(saved, warnings.append).step == 10
    assert name in warnings[0]


def test_when_all_are_damaged_nothing_is_made_up(saved):
    for path in saved.iterdir():
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(TrainError, match=r"none of the 2 checkpoints .* can be trusted: .*step-00000020") as error:
        newest(saved, lambda _: None)
    assert "backup" in error.value.remedy


def test_a_full_disk_leaves_the_old_ones_and_a_readable_error(saved):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    large = Snapshot(30, {"model": {"weight": torch.zeros(100_000)}})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(TrainError, match=r"checkpoint of step 30 could not be written .*File too large") as error:
            save(saved, large, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "earlier checkpoints are untouched" in error.value.remedy
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
    save(saved, large, keep=2)
    assert newest(saved, silent).step == 30


class Hostile:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_pickle_with_right_checksums_is_refused_and_not_run(saved, tmp_path):
    marker = tmp_path / "was-run"
    for hostile in (pickle.dumps(Hostile(marker)), None):
        path = saved / "step-00000020" / "model.safetensors"
        if hostile is None:
            torch.save({"weight": Hostile(marker)}, path)
        else:
            path.write_bytes(hostile)
        seal(path.parent)
        found = newest(saved, silent)
        with pytest.raises(TrainError, match="is not a safetensors file"):
            found.read("model", snapshot(0).tensors["model"])
        assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"format": 1, "state": {}, "aliases": {}}',
        b'{"format": 1, "step": true, "state": {}, "aliases": {}}',
        b'{"format": 1, "step": 20, "state": [], "aliases": {}}',
        b'{"format": 1, "step": 20, "state": {}, "aliases": []}',
        b'{"format": 1, "step": 20, "state": {}, "aliases": {"model": 3}}',
        b'{"format": 2, "step": 20, "state": {}, "aliases": {}}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_state_that_is_none_is_passed_over(saved, text):
    (saved / "step-00000020" / "state.json").write_bytes(text)
    seal(saved / "step-00000020")
    warnings = []
    assert newest(saved, warnings.append).step == 10
    assert len(warnings) == 1


@pytest.mark.parametrize("odd", ["more", "fewer", "outside"])
def test_files_that_the_state_does_not_name_are_not_believed(saved, odd):
    """Otherwise a lost line of the checksums would make a lost optimiser look like one that never was."""
    path = saved / "step-00000020"
    if odd == "fewer":
        (path / "optimizer.safetensors").unlink()
    if odd == "more":
        shutil.copy(path / "model.safetensors", path / "average.safetensors")
    seal(path)
    if odd == "outside":
        shutil.copy(path / "model.safetensors", saved / "model.safetensors")
        sums = path / "SHA256SUMS"
        sums.write_text(sums.read_text().replace("optimizer.safetensors", "../model.safetensors"))
    warnings = []
    assert newest(saved, warnings.append).step == 10
    assert "SHA256SUMS does not list" in warnings[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.zeros(7, 6)}, r"weight is \(7, 6\) torch.float32, the model's is \(7, 5\) torch.float32"),
        (
            {"weight": torch.zeros(7, 5).half()},
            r"weight is \(7, 5\) torch.float16, the model's is \(7, 5\) torch.float32",
        ),
        ({"extra": torch.zeros(1)}, r"has extra \(1 tensors differ\)"),
        ({"weight": None}, r"lacks weight \(1 tensors differ\)"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, change, words):
    expected = snapshot(0).tensors["model"]
    held = {name: tensor for name, tensor in (expected | change).items() if tensor is not None}
    path = save(tmp_path, Snapshot(1, {"model": held}), keep=2)
    with pytest.raises(TrainError, match=words) as error:
        open_checkpoint(path).read("model", expected)
    assert "config in the run's folder" in error.value.remedy


def test_an_alias_to_nothing_and_an_unknown_dtype_are_refused(saved):
    path = saved / "step-00000020"
    content = json.loads((path / "state.json").read_text())
    content["aliases"]["model"] = {"tied": "nowhere"}
    (path / "state.json").write_text(json.dumps(content))
    save_file({"odd": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path / "optimizer.safetensors")
    seal(path)
    found = open_checkpoint(path)
    with pytest.raises(TrainError, match="says that tied is nowhere"):
        found.read("model", {})
    with pytest.raises(TrainError, match="a tensor of type F8_E4M3"):
        found.specs("optimizer")
