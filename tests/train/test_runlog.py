"""The log: whole lines only, no step twice, and never a reason for a run to stop."""

from __future__ import annotations

import json
import math
import resource
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_train.runlog import RunLog, read_log


def silent(text):
    raise AssertionError(text)


def write(folder, steps, start=0, warn=silent, tensorboard=False):
    log = RunLog(folder, start, warn, tensorboard=tensorboard)
    for step in steps:
        log.write(step, {"loss": 1 / step})
    log.close()


def steps_of(folder):
    return [line["step"] for line in read_log(folder / "log.jsonl")]


@contextmanager
def files_no_longer_than(limit):
    """What a full disk or a quota does: a write that is taken in part, then refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_every_line_is_json_that_any_parser_reads(tmp_path):
    log = RunLog(tmp_path, 0, silent, tensorboard=False)
    log.write(
        1, {"loss": 0.5, "nan": math.nan, "up": math.inf, "down": -math.inf, "word": 'a"\n', "flag": True, "no": None}
    )
    log.close()

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "log.jsonl").read_text()
    assert text.count("\n") == 1
    assert json.loads(text, parse_constant=refuse) == {
        "step": 1,
        "loss": 0.5,
        "nan": "nan",
        "up": "inf",
        "down": "-inf",
        "word": 'a"\n',
        "flag": True,
        "no": None,
    }


@settings(max_examples=50)
@given(st.lists(st.integers(1, 30), unique=True).map(sorted), st.integers(0, 30), st.integers(0, 400))
def test_a_resumed_log_has_no_step_twice_and_no_torn_line(tmp_path_factory, steps, resumed_from, torn):
    """Whatever part of a line a dead process left behind."""
    folder = tmp_path_factory.mktemp("log")
    write(folder, steps)
    path = folder / "log.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 31, "loss": 0.123456789'[: torn % 33])
    write(folder, range(resumed_from + 1, 32), start=resumed_from)
    assert steps_of(folder) == [step for step in steps if step <= resumed_from] + list(range(resumed_from + 1, 32))
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert steps_of(tmp_path) == [1]


def test_a_full_disk_costs_lines_and_one_warning(tmp_path):
    """A line that fits in part is taken back, and the log goes on where there is room again."""
    warnings = []
    log = RunLog(tmp_path, 0, warnings.append, tensorboard=False)
    log.write(1, {"loss": 0.5})
    size = (tmp_path / "log.jsonl").stat().st_size
    with files_no_longer_than(size + 10):
        for step in (2, 3):
            log.write(step, {"loss": 0.5})
        assert (tmp_path / "log.jsonl").stat().st_size == size
        log.sync()
    log.write(4, {"loss": 0.5})
    log.close()
    assert steps_of(tmp_path) == [1, 4]
    assert len(warnings) == 2
    assert "File too large" in warnings[0]
    assert "goes on without it" in warnings[0]
    assert warnings[1] == f"2 lines of {tmp_path / 'log.jsonl'} could not be written"


@pytest.mark.parametrize("place", ["a folder", "/dev/full", "a missing folder"])
def test_a_log_that_cannot_be_written_at_all_is_told_of_once(tmp_path, place):
    warnings = []
    folder = tmp_path / "run"
    if place != "a missing folder":
        folder.mkdir()
    if place == "a folder":
        (folder / "log.jsonl").mkdir()
    if place == "/dev/full":
        (folder / "log.jsonl").symlink_to("/dev/full")
    write(folder, range(1, 6), warn=warnings.append)
    assert len(warnings) == 2
    assert "training goes on without it" in warnings[0]
    assert warnings[1].startswith("5 lines of")


def scalars(folder):
    """What TensorBoard shows: tag -> steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [event.step for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.parametrize("resumed_from", [0, 2])
def test_tensorboard_shows_the_same_curve_once(tmp_path, resumed_from):
    """Also where a run died before its first checkpoint and begins again."""
    write(tmp_path, [1, 2, 3, 4], tensorboard=True)
    write(tmp_path, range(resumed_from + 1, 6), start=resumed_from, tensorboard=True)
    assert scalars(tmp_path) == {"loss": [1, 2, 3, 4, 5]}
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]


def test_tensorboard_that_fails_is_given_up_with_one_warning(tmp_path):
    warnings = []
    (tmp_path / "tensorboard").write_text("in the way")
    write(tmp_path, range(1, 4), warn=warnings.append, tensorboard=True)
    assert steps_of(tmp_path) == [1, 2, 3]
    assert len(warnings) == 1
    assert warnings[0].startswith("TensorBoard files cannot be written")
