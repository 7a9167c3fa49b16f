"""Nothing leaves the root, exhausts memory or passes for what it is not."""

from __future__ import annotations

import json
import os
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hilda_cache.drives.files import (
    check_range,
    contained,
    drop_non_finite,
    file_size,
    image_size_px,
    naming_frame,
    read_bytes,
    read_float32_rows,
    read_json,
    read_text,
)
from hilda_cache.drives.frame import Points
from hilda_schema.errors import DriveError, MissingSensor, UsageError
from hilda_schema.keys import Key


@pytest.mark.parametrize(
    "name",
    ["", ".", "/etc/passwd", "..", "a/../../b", "a/..", "a\\..\\b", "a\0b", "\ud800", "x" * 5000, 7, None, ["a"]],
)
def test_names_that_are_no_path_below_the_root_are_refused(tmp_path, name):
    with pytest.raises(DriveError):
        contained(tmp_path, name)


@given(st.text(max_size=40))
def test_whatever_the_name_the_path_stays_below_the_root(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp().resolve()
    try:
        path = contained(root, name)
    except DriveError:
        return
    assert os.path.normpath(path).startswith(f"{root}{os.sep}")


def test_links_may_stay_inside_but_not_lead_out(tmp_path):
    root = tmp_path / "root"
    (root / "real").mkdir(parents=True)
    (tmp_path / "secret").write_text("canary")
    (root / "inside").symlink_to("real")
    (root / "outside").symlink_to(tmp_path)
    (root / "circle").symlink_to("circle")

    assert contained(root, "inside/new.bin") == root / "inside" / "new.bin"
    for name in ("outside/secret", "outside", "circle/x"):
        with pytest.raises(DriveError):
            contained(root, name)


def test_missing_empty_large_and_irregular_files_are_told_apart(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")  # reading one would hang for ever
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)

    with pytest.raises(MissingSensor, match="absent is not there"):
        file_size(tmp_path / "absent", 10)
    with pytest.raises(MissingSensor):
        file_size(tmp_path / "large" / "below-a-file", 10)
    with pytest.raises(DriveError, match=r"0 bytes"):
        read_bytes(tmp_path / "empty", 10)
    with pytest.raises(DriveError, match="holds 5 bytes, more than the 4"):
        read_bytes(tmp_path / "large", 4)
    for name in ("pipe", ""):
        with pytest.raises(DriveError, match="not a regular file"):
            read_bytes(tmp_path / name, 10)
    with pytest.raises(DriveError, match="1099511627776 bytes"):
        read_float32_rows(tmp_path / "sparse", 4)
    assert read_bytes(tmp_path / "large", 5) == b"12345"


def test_a_missing_table_is_no_missing_sensor(tmp_path):
    """A run told to skip missing images must not skip a missing table."""
    with pytest.raises(DriveError) as caught:
        read_json(tmp_path / "poses.json")
    assert not isinstance(caught.value, MissingSensor)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": NaN}', "NaN"),
        ("[Infinity]", "Infinity"),
        ("[1, 2", "valid JSON"),
        ("[" * 100_000, "too deep"),
        ('{"a":' * 100_000, "too deep"),
    ],
)
def test_broken_json_names_the_file(tmp_path, text, said):
    path = tmp_path / "poses.json"
    path.write_text(text)
    with pytest.raises(DriveError, match=f"poses.json.*{said}"):
        read_json(path)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "calib.txt").write_bytes(b"P2: \xff\xfe")
    with pytest.raises(DriveError, match=r"calib.txt is not UTF-8"):
        read_text(tmp_path / "calib.txt")


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_good_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "table.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value


@given(columns=st.integers(1, 6), rows=st.integers(1, 20), extra=st.integers(0, 23), data=st.data())
def test_a_lidar_file_is_whole_rows_or_an_error_naming_both_strides(tmp_path_factory, columns, rows, extra, data):
    path = tmp_path_factory.getbasetemp() / "sweep.bin"
    values = np.asarray(data.draw(st.lists(st.floats(width=32), min_size=rows * columns, max_size=rows * columns)))
    path.write_bytes(values.astype("<f4").tobytes() + b"\0" * extra)
    if extra % (4 * columns):
        with pytest.raises(DriveError, match=rf"expected stride {4 * columns} \({columns} x float32\)"):
            read_float32_rows(path, columns)
    else:
        read = read_float32_rows(path, columns)
        assert read.shape == (rows + extra // (4 * columns), columns)
        np.testing.assert_array_equal(read[:rows], values.reshape(rows, columns))


def test_a_four_column_file_read_as_five_says_what_it_found(tmp_path):
    path = tmp_path / "0.bin"
    np.ones((801, 4), "<f4").tofile(path)
    with pytest.raises(DriveError, match=r"stride 20 \(5 x float32\): its size fits .*16 \(4 x float32\)"):
        read_float32_rows(path, 5)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DriveError, match="cut inside a point"):
        read_float32_rows(path, 5)


@given(st.lists(st.tuples(*[st.floats(width=32)] * 4), min_size=1, max_size=30))
def test_dropping_keeps_rows_together(rows):
    table = np.array(rows, np.float32)
    number = np.arange(len(table))
    points = Points(
        table[:, :3], table[:, 3], number.astype(np.int32), number.astype(np.uint8), number.astype(np.uint16)
    )
    good = [row for row in number if all(np.isfinite(value) for value in table[row])]

    kept, dropped = drop_non_finite(points)

    assert dropped == len(table) - len(good)
    np.testing.assert_array_equal(kept.xyz_m, table[good, :3])
    np.testing.assert_array_equal(kept.intensity, table[good, 3])
    for column in (kept.time_offset_ns, kept.ring, kept.label):
        np.testing.assert_array_equal(column, good)


def test_dropping_lives_with_absent_columns():
    points = Points(np.array([[0, 0, np.nan], [1, 2, 3]], np.float32), np.zeros(2, np.float32))
    kept, dropped = drop_non_finite(points)
    assert (len(kept), dropped, kept.label) == (1, 1, None)


def test_coordinates_beyond_any_lidar_are_another_formats_bytes(tmp_path):
    check_range(np.array([[9999.0, -9999.0, 0]]), tmp_path)
    check_range(np.empty((0, 3)), tmp_path)
    with pytest.raises(DriveError, match=r"point 1 lies at"):
        check_range(np.array([[0, 0, 0], [0, -1e30, 0]], np.float32), tmp_path / "0.bin")


@pytest.mark.parametrize(("kind", "name"), [("JPEG", "a.jpg"), ("PNG", "a.png"), ("PNG", "png-inside.jpg")])
def test_image_size_comes_from_the_header(tmp_path, kind, name):
    Image.new("RGB", (31, 17)).save(tmp_path / name, kind)
    assert image_size_px(tmp_path / name) == (31, 17)


def test_only_the_header_is_read(tmp_path):
    Image.effect_noise((640, 480), 50).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    assert image_size_px(tmp_path / "a.jpg") == (640, 480)


def _pretend_size(path, side_px):
    """A small PNG whose header claims to be side_px square."""
    encoded = BytesIO()
    Image.new("1", (8, 8)).save(encoded, "PNG")
    data = bytearray(encoded.getvalue())
    data[16:24] = struct.pack(">II", side_px, side_px)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def test_images_that_are_none(tmp_path):
    encoded = BytesIO()
    Image.new("RGB", (31, 17)).save(encoded, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(encoded.getvalue()[:40])
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("RGB", (3, 1)).save(tmp_path / "gif.jpg", "GIF")
    _pretend_size(tmp_path / "bomb.png", 30_000)

    for name, said in [("cut.jpg", "header"), ("text.jpg", "header"), ("gif.jpg", "header"), ("bomb.png", "pixels")]:
        with pytest.raises(DriveError, match=f"{name}.*{said}"):
            image_size_px(tmp_path / name)
    with pytest.raises(MissingSensor):
        image_size_px(tmp_path / "absent.jpg")


def test_errors_are_given_the_frame_and_keep_their_kind():
    key = Key("kitti_raw", "drive", "0000000005")
    for kind in (MissingSensor, DriveError, UsageError):
        with pytest.raises(kind, match=r"^kitti_raw/drive/0000000005: it is gone") as caught, naming_frame(key):
            raise kind("it is gone", "fetch it")
        assert type(caught.value) is kind
        assert caught.value.remedy == "fetch it"
