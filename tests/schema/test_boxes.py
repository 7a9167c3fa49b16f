"""Files of boxes: what is written comes back, what a stranger wrote is refused unless every value can be."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from hilda_schema.boxes import Boxes, BoxesInfo, parse_boxes, points_inside, read_boxes, write_boxes
from hilda_schema.errors import LabelError
from hilda_schema.keys import Key

ABOUT = BoxesInfo(dataset="toy", version="v1", options={"lidar": "both"}, written_by="tests")


def boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=(count, 4))
    return Boxes(
        centre_m=rng.uniform(-50, 50, (count, 3)),
        size_m=rng.uniform(0.3, 12, (count, 3)),
        lidar_q_box=quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True),
        velocity_mps=np.where(rng.random((count, 1)) < 0.3, np.nan, rng.normal(size=(count, 2))),
        points=rng.integers(0, 500, count),
        category=np.array([["car", "person"][k % 2] for k in range(count)], dtype=object),
        track=np.array([f"track {k} é" for k in range(count)], dtype=object),
    )


FRAMES = [(Key("toy", "s/1", str(k)), boxes(n, k)) for k, n in enumerate((3, 0, 5))]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "boxes.parquet"
    write_boxes(path, FRAMES, ABOUT)
    return path


def test_what_is_written_comes_back_and_an_empty_frame_is_not_an_unknown_one(written):
    labels = read_boxes(written)
    assert labels.about == ABOUT
    assert list(labels) == [str(key) for key, _ in FRAMES]
    for key, expected in FRAMES:
        found = labels[key]
        assert len(found) == len(expected)
        for name in Boxes.__slots__:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert "toy/s%2F1/1" in labels
    with pytest.raises(LabelError, match="no frame toy/s%2F1/9"):
        labels["toy/s%2F1/9"]


def test_the_same_boxes_are_the_same_bytes_and_nothing_is_left_beside_them(written, tmp_path):
    again = tmp_path / "again.parquet"
    write_boxes(again, FRAMES, ABOUT)
    assert again.read_bytes() == written.read_bytes()
    assert read_boxes(again).sha256 == read_boxes(written).sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.parquet", "boxes.parquet"]


def test_other_programs_read_it(written):
    table = pq.read_table(written)
    rows = table.to_pylist()
    assert [len(row["boxes"]) for row in rows] == [3, 0, 5]
    first = rows[0]["boxes"][0]
    assert first["centre_x_m"] == FRAMES[0][1].centre_m[0, 0]
    assert first["width_m"] == FRAMES[0][1].size_m[0, 1]


def test_poses_are_scipys():
    some = boxes(20)
    expected = Rotation.from_quat(some.lidar_q_box[:, [1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(some.lidar_SE3_box[:, :3, :3], expected, atol=1e-12)
    np.testing.assert_array_equal(some.lidar_SE3_box[:, :3, 3], some.centre_m)
    front = expected[:, :, 0]
    np.testing.assert_allclose(some.yaw_rad, np.arctan2(front[:, 1], front[:, 0]))


def test_points_inside_are_those_of_a_naive_search():
    some, rng = boxes(12), np.random.default_rng(1)
    xyz_m = rng.uniform(-50, 50, (4000, 3)).astype(np.float32)
    xyz_m[:600] = some.centre_m[rng.integers(0, 12, 600)] + rng.normal(size=(600, 3)) * 2
    margin_m = (0.2, 0.4, 0.0)
    total = 0
    for k, rows in enumerate(points_inside(xyz_m, some, margin_m)):
        local = Rotation.from_quat(some.lidar_q_box[k, [1, 2, 3, 0]]).inv().apply(xyz_m - some.centre_m[k])
        expected = [n for n, p in enumerate(local) if all(abs(p) <= (some.size_m[k] + margin_m) / 2)]
        assert rows.tolist() == expected
        total += len(expected)
    assert total > 200


def changed(path, edit):
    """The file's bytes with other boxes: edit(rows) changes a list of dicts."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows = edit(rows) or rows
    return encoded(pa.Table.from_pylist(rows, schema=table.schema))


def encoded(table, **options):
    sink = io.BytesIO()
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "version": "2.6"}
    pq.write_table(table, sink, **(plain | options))
    return sink.getvalue()


def set_first(**values):
    return lambda rows: rows[0]["boxes"][0].update(values)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_first(centre_x_m=float("nan")), "a centre that is not near"),
        (set_first(centre_z_m=1e7), "a centre that is not near"),
        (set_first(length_m=0.0), "a size that nothing has"),
        (set_first(height_m=float("inf")), "a size that nothing has"),
        (set_first(lidar_qw_box=3.0), "no unit quaternion"),
        (set_first(velocity_x_mps=float("nan"), velocity_y_mps=1.0), "a velocity that nothing has"),
        (set_first(velocity_x_mps=1e9, velocity_y_mps=1.0), "a velocity that nothing has"),
        (set_first(points=-1), "a negative count"),
        (set_first(category=""), "no category or track"),
        (set_first(track="track 1 é"), "a track that it holds already"),
        (lambda rows: rows[1].update(key=rows[0]["key"]), "a frame twice"),
        (lambda rows: rows[1].update(key="toy/only-a-scene"), "is not the key of a frame"),
        (lambda rows: rows[1].update(key="toy/../x"), "path step"),
        (lambda rows: rows[1].update(key="other/s/1"), "is not the key of a frame of toy"),
        (lambda rows: rows[1].update(key="toy/s/1/CAM/t/l"), "is not the key of a frame"),
        (lambda rows: rows[1].update(key="a/b/c/d/e/f/g"), "is not a key"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_named(written, edit, said):
    with pytest.raises(LabelError, match=said) as caught:
        parse_boxes(changed(written, edit), "strange.parquet")
    assert caught.value.message.startswith("strange.parquet")


def test_other_files_are_refused(written, tmp_path):
    table = pq.read_table(written)
    good = encoded(table)
    parse_boxes(good, "x")
    other_about = {b"hilda": table.schema.metadata[b"hilda"].replace(b'"1.0"', b'"7.0"')}
    for data, said in (
        (b"", "not a Parquet file"),
        (good[: len(good) // 2], "not a Parquet file"),
        (good[:-100] + bytes(100), "not a Parquet file"),
        (encoded(table.replace_schema_metadata(None)), "does not say what it is"),
        (encoded(table.replace_schema_metadata({b"hilda": b"{"})), "metadata is damaged"),
        (encoded(table.replace_schema_metadata(other_about)), "schema '7.0', not 1.0"),
        (encoded(table.select(["key"])), "columns of a file of boxes"),
        (encoded(table, compression="zstd"), "not stored plainly"),
        (encoded(table, use_dictionary=True), "not stored plainly"),
    ):
        with pytest.raises(LabelError, match=said):
            parse_boxes(data, "x")
    with pytest.raises(LabelError, match="cannot read"):
        read_boxes(tmp_path / "nowhere.parquet")
    with pytest.raises(LabelError, match="cannot read"):
        read_boxes(tmp_path)


def test_every_flipped_byte_is_refused_or_gives_boxes_that_can_be(written):
    data, rng = written.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, len(data), 300).tolist():
        broken = bytearray(data)
        broken[position] ^= 1 << int(rng.integers(8))
        try:
            labels = parse_boxes(bytes(broken), "x")
        except LabelError:
            continue
        for key in labels:
            assert np.isfinite(labels[key].centre_m).all()


def test_the_writer_refuses_what_the_reader_would(tmp_path):
    some = boxes(2)
    some.size_m[1] = -1
    with pytest.raises(LabelError, match="a size that nothing has"):
        write_boxes(tmp_path / "x.parquet", [(Key("toy", "s", "f"), some)], ABOUT)
    assert not list(tmp_path.iterdir())
    with pytest.raises(LabelError, match="cannot write"):
        write_boxes(tmp_path / "no" / "x.parquet", FRAMES, ABOUT)
