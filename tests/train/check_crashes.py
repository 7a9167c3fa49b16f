"""Ends a process at every change that a save makes to the disk, and looks at what is left; test_checkpoint.py runs it.

check_crashes.py FOLDER STEP     STEP: what is saved, after steps 10 and 20
"""

import itertools
import os
import shutil
import sys
from pathlib import Path

import torch

from hilda_train import checkpoint
from hilda_train.checkpoint import Snapshot, newest, save

DIED = 77
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}


def snapshot(step):
    """Everything in it tells the step."""
    tensors = {stem: {"a": torch.full((300,), float(step)), "b": torch.tensor(step)} for stem in ("model", "optimizer")}
    return Snapshot(step, tensors, {"told": step})


def die_at(point, torn):
    """End this process before its change number `point`; or in the middle of it, where that writes a file."""
    left = itertools.count(point - 1, -1)

    def die(path):
        if torn and path is not None:
            Path(path).write_bytes(b"half of what was to be writ")
        os._exit(DIED)

    def on_event(event, arguments):
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in CHANGES or writes) and next(left) == 0:
            die(arguments[0] if writes else None)

    def save_file(tensors, path):  # written by Rust, of which Python's audit knows nothing
        if next(left) == 0:
            die(path)
        original(tensors, path)

    original, checkpoint.save_file = checkpoint.save_file, save_file
    sys.addaudithook(on_event)


def survives(folder, step, point, torn):
    """Whether the save was ended at this point; asserts that what is left is one of the two states."""
    pid = os.fork()
    if pid == 0:
        die_at(point, torn)
        save(folder, snapshot(step), keep=2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {0, DIED}, code
    warnings = []
    found = newest(folder, warnings.append)
    assert warnings == []
    assert found.step in ({20, 30} if step == 30 else {10, 20})
    assert found.state == {"told": found.step}
    for stem in ("model", "optimizer"):
        tensors = found.read(stem, snapshot(0).tensors[stem])
        assert all(bool((tensor == found.step).all()) for tensor in tensors.values())
    save(folder, snapshot(40), keep=2)
    assert {path.name for path in folder.iterdir()} == {f"step-{found.step:08d}", "step-00000040"}
    return code == DIED


if __name__ == "__main__":
    work, step = Path(sys.argv[1]), int(sys.argv[2])
    for each in (10, 20):
        save(work / "before", snapshot(each), keep=2)
    for torn in (False, True):
        for point in itertools.count(1):
            shutil.copytree(work / "before", work / "now")
            ended = survives(work / "now", step, point, torn)
            shutil.rmtree(work / "now")
            if not ended:
                break
        assert point > 15, point
        print(point - 1, "points")
