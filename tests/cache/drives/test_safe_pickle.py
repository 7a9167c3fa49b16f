"""Pickles are read as data: what pandas writes comes out as pandas reads it, and nothing else gets anywhere."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
from functools import reduce

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilda_cache.drives.pandas_pickle import read_columns
from hilda_cache.drives.safe_pickle import MAX_PICKLE_BYTES, Call, Name, read_pickle
from hilda_schema.errors import DriveError, MissingSensor


def sweep(points=40, seed=0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(rng.normal(size=(points, 5)), columns=list("xyzit"))
    table["d"] = (np.arange(points) > points // 2).astype(np.int64)
    return table


def assert_same(path, table):
    columns = read_columns(path, tuple(table.columns))
    assert set(columns) == set(table.columns)
    for name in table:
        np.testing.assert_array_equal(columns[name], table[name].to_numpy())
        assert columns[name].dtype == table[name].dtype


# What pandas writes


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "change",
    [
        lambda table: table,
        lambda table: table.astype({"x": "float32", "d": "uint8", "i": "float16"}),
        lambda table: table[table.d == 0],  # an index that is no range
        lambda table: table.sort_values("z"),
        lambda table: table[["d", "t", "x", "z", "y", "i"]],
        lambda table: table.rename_axis("index"),
        lambda table: pd.DataFrame({name: table[name].to_numpy() for name in table}),  # one block per column
        lambda table: table.set_axis(pd.Index(list(table), dtype=object), axis=1),  # column names before pandas 3
        lambda table: table.iloc[:0],
    ],
)
def test_columns_are_those_that_pandas_reads(tmp_path, protocol, change):
    table = change(sweep())
    table.to_pickle(tmp_path / "00.pkl.gz", protocol=protocol)
    table.to_pickle(tmp_path / "00.pkl", protocol=protocol)

    assert_same(tmp_path / "00.pkl.gz", pd.read_pickle(tmp_path / "00.pkl.gz"))
    assert_same(tmp_path / "00.pkl", table)


def test_column_names_stored_without_pyarrow(tmp_path):
    with pd.option_context("mode.string_storage", "python"):
        table = pd.DataFrame({"x": np.arange(3.0), "d": np.arange(3)})
        table.to_pickle(tmp_path / "00.pkl")
    assert b"StringArray" in (tmp_path / "00.pkl").read_bytes()
    assert_same(tmp_path / "00.pkl", table)


class Forged:
    """A call that a pickle shall make, whatever its function is."""

    def __init__(self, name, *args, state=None):
        self.name, self.args, self.state = name, args, state


class Forger(pickle._Pickler):
    def save(self, value, save_persistent_id=True):
        if not isinstance(value, Forged):
            super().save(value, save_persistent_id)
            return
        module, _, function = value.name.rpartition(".")
        self.write(f"c{module}\n{function}\n".encode())
        self.save(value.args)
        self.write(pickle.REDUCE)
        if value.state is not None:
            self.save(value.state)
            self.write(pickle.BUILD)


def forge(value):
    file = io.BytesIO()
    Forger(file, 3).dump(value)
    return file.getvalue()


def forged_array(shape, dtype, content):
    kind = Forged("numpy.dtype", dtype, False, True, state=(3, "<", None, None, None, -1, -1, 0))
    name = "numpy.core.multiarray._reconstruct"
    return Forged(name, None, (0,), b"b", state=(1, shape, kind, False, content))


def forged_index(labels):
    data = forged_array((len(labels),), "O8", labels)
    return Forged("pandas.core.indexes.base._new_Index", None, {"data": data, "name": None})


@pytest.mark.parametrize(
    ("first", "order"),
    [
        (Forged("builtins.slice", 0, 5, 1), "xyzit"),
        (forged_array((5,), "i8", np.array([4, 2, 0, 1, 3]).tobytes()), "tzxyi"),
    ],
)
def test_the_layout_of_pandas_1_0(tmp_path, first, order):
    """PandaSet was published in it: (axes, values, items, {"0.14.1": ...}) as the manager's state."""
    numbers, sensor = np.random.default_rng(0).normal(size=(5, 7)), np.arange(7)[None]
    blocks = [
        {"values": forged_array((5, 7), "f8", numbers.tobytes()), "mgr_locs": first},
        {"values": forged_array((1, 7), "i8", sensor.tobytes()), "mgr_locs": Forged("builtins.slice", 5, 6, 1)},
    ]
    axes = [forged_index(list("xyzitd")), None]
    content = {"0.14.1": {"axes": axes, "blocks": blocks}}
    manager = Forged("pandas.core.internals.managers.BlockManager", state=(axes, [], [], content))
    (tmp_path / "00.pkl").write_bytes(forge(Forged("pandas.core.frame.DataFrame", state={"_data": manager})))

    columns = read_columns(tmp_path / "00.pkl", tuple("xyzitd"))

    for row, name in zip(numbers, order, strict=True):
        np.testing.assert_array_equal(columns[name], row)
    np.testing.assert_array_equal(columns["d"], sensor[0])


@pytest.mark.parametrize("drive", ["pandaset", "pandaset_long"])
@pytest.mark.parametrize(("table", "names"), [("lidar", tuple("xyzitd")), ("annotations/semseg", ("class",))])
def test_real_files_of_both_pandas_flavours(sample_data, drive, table, names):
    path = sample_data / "data" / drive / "002" / table / "05.pkl.gz"
    assert_same(path, pd.read_pickle(path)[list(names)])


def test_it_works_where_pandas_is_not_installed(tmp_path):
    sweep().to_pickle(tmp_path / "00.pkl.gz")
    script = (
        "import sys; sys.modules['pandas'] = None\n"
        "from pathlib import Path; from hilda_cache.drives.pandas_pickle import read_columns\n"
        f"print(len(read_columns(Path({str(tmp_path / '00.pkl.gz')!r}), ('x',))['x']))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "40\n"


def test_a_missing_column_and_another_object_are_named(tmp_path):
    sweep().drop(columns="t").to_pickle(tmp_path / "00.pkl.gz")
    with pytest.raises(DriveError, match=r"00.pkl.gz has no column 't', only \['x', 'y', 'z', 'i', 'd'\]"):
        read_columns(tmp_path / "00.pkl.gz", tuple("xyzitd"))
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DriveError, match=r"list.pkl is not a DataFrame"):
        read_columns(tmp_path / "list.pkl", ("x",))
    with pytest.raises(MissingSensor):
        read_columns(tmp_path / "absent.pkl.gz", ("x",))


@pytest.mark.parametrize("column", [["a"] * 3, [1, 2, None], pd.to_datetime(["2019"] * 3), [1j] * 3])
def test_columns_that_are_no_numbers_are_refused(tmp_path, column):
    pd.DataFrame({"x": np.arange(3.0), "label": pd.Series(column, dtype=None if column[0] != 1 else object)}).to_pickle(
        tmp_path / "00.pkl"
    )
    with pytest.raises(DriveError, match=r"00.pkl"):
        read_columns(tmp_path / "00.pkl", ("x", "label"))


# What an attacker writes


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def evil_frame(canary):
    table = sweep()
    table.attrs["note"] = Evil(os.mkdir, str(canary))
    return table


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "build",
    [
        lambda canary: Evil(os.system, f"mkdir {canary}"),
        lambda canary: Evil(eval, f"__import__('os').mkdir({str(canary)!r})"),
        lambda canary: Evil(exec, f"import os; os.mkdir({str(canary)!r})"),
        lambda canary: Evil(subprocess.check_call, ["mkdir", str(canary)]),
        lambda canary: [{"deep": (Evil(os.mkdir, str(canary)),)}],
        evil_frame,
    ],
)
def test_a_pickle_that_would_run_a_command_runs_nothing(tmp_path, build, protocol):
    canary = tmp_path / "canary"
    data = pickle.dumps(build(canary), protocol)
    (tmp_path / "00.pkl.gz").write_bytes(gzip.compress(data))

    with pytest.raises(DriveError, match=r"00.pkl.gz"):
        read_columns(tmp_path / "00.pkl.gz", ("x",))

    assert not canary.exists()
    pickle.loads(data)
    assert canary.exists(), "the pickle was harmless, so this test would have shown nothing"


def test_the_name_that_is_refused_is_said(tmp_path):
    (tmp_path / "00.pkl").write_bytes(pickle.dumps(Evil(os.system, "true"), 4))
    with pytest.raises(DriveError, match=r"names '(posix|nt)\.system'"):
        read_columns(tmp_path / "00.pkl", ("x",))


def test_listed_names_are_recorded_and_not_called(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Evil(os.system, "touch /canary"), 3))
    recorded = read_pickle(path, {"posix.system": "system"})
    assert isinstance(recorded, Call)
    assert (recorded.name, recorded.args, recorded.state) == ("system", ("touch /canary",), None)
    path.write_bytes(pickle.dumps(os.system, 3))
    assert read_pickle(path, {"posix.system": "system"}) == Name("system")


def instructions(*parts):
    return b"\x80\x04" + b"".join(parts) + b"."


def nested_tuple_key(depth):
    """A dict whose key is a tuple of tuples of ...: hashing it overflows the C stack."""
    return instructions(b"}", b")", b"\x85" * depth, b"K\x01s")


def doubling_tuple(depth, tail):
    """((x, x), (x, x)) ...: hashing or printing it costs 2^depth."""
    return instructions(b")\x94", b"".join(b"h%c" % (i,) + b"\x86\x94" for i in range(depth)), tail)


HOSTILE = {
    "nothing": b"",
    "no end": b"\x80\x04N",
    "only an end": b".",
    "a mark for a value": instructions(b"("),
    "empty stack": instructions(b"\x86"),
    "memory of nothing": instructions(b"h\x07"),
    "gigantic memo index": instructions(b"N", b"r\xff\xff\xff\xff"),
    "8 EiB of bytes": instructions(b"\x8e" + struct.pack("<Q", 1 << 62)),
    "2 GiB of bytes": instructions(b"B" + struct.pack("<I", (1 << 31) - 1)),
    "8 EiB of frame": instructions(b"\x95" + struct.pack("<Q", 1 << 62)),
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "nested key": nested_tuple_key(15_000),
    "nested deeper": nested_tuple_key(1_000_000),
    "exponential key": instructions(b"}") + doubling_tuple(60, b"K\x01s"),
    "exponential name": doubling_tuple(60, b"\x8c\x01x\x93"),
    "call of a list": instructions(b"])R"),
    "state of a list": instructions(b"]}b"),
    "append to a dict": instructions(b"}Na"),
    "items of a list": instructions(b"]\x8c\x01aNs"),
    "persistent id": instructions(b"Pevil\n"),
    "extension registry": instructions(b"\x82\x01"),
    "instance": instructions(b"(ios\nsystem\n"),
    "out-of-band buffer": instructions(b"\x97"),
    "endless": instructions(b"N0" * 200_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_streams_end_in_an_error_soon(tmp_path, name):
    path = tmp_path / "00.pkl"
    path.write_bytes(HOSTILE[name] or b"\x00")
    with pytest.raises(DriveError, match=r"00.pkl"):
        read_columns(path, ("x",))


def forged_frame(shape, dtype="f8", raw=b"\0" * 80, labels=("x",), place=(0, 1, 1)):
    """A DataFrame of one block, with chosen lies."""
    values = forged_array(shape, dtype, raw)
    block = Forged("pandas._libs.internals._unpickle_block", values, Forged("builtins.slice", *place), 2)
    axes = [forged_index(list(labels)), None]
    manager = Forged("pandas.core.internals.managers.BlockManager", (block,), axes)
    return forge(Forged("pandas.core.frame.DataFrame", state={"_mgr": manager}))


def test_the_forger_can_write_an_honest_frame(tmp_path):
    path = tmp_path / "00.pkl"
    path.write_bytes(forged_frame((1, 10)))
    np.testing.assert_array_equal(read_columns(path, ("x",))["x"], np.zeros(10))


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (1, 1 << 40)},
        {"shape": (1 << 62, 1 << 62)},
        {"shape": (-1, -10)},
        {"shape": (1, 9)},
        {"shape": (10,)},
        {"shape": (1, 10.0)},
        {"shape": 10},
        {"shape": (0, 1 << 60), "raw": b""},
        {"shape": (1, 10), "dtype": "O8"},
        {"shape": (1, 10), "dtype": "V8"},
        {"shape": (1, 10), "dtype": "f8,f8"},
        {"shape": (1, 10), "dtype": ["f8"]},
        {"shape": (1, 10), "raw": None},
        {"shape": (1, 10), "raw": [0] * 10},
        {"shape": (1, 10), "place": (0, 10**15, 1)},
        {"shape": (1, 10), "place": (0, 10**30, 1)},
        {"shape": (1, 10), "place": (0, 1, 0)},
        {"shape": (1, 10), "place": (0,)},
        {"shape": (1, 10), "place": (5, 6, 1)},
        {"shape": (1, 10), "labels": (1,)},
        {"shape": (1, 10), "labels": ()},
        {"shape": (2, 5), "labels": ("x", "x"), "place": (0, 1, 1)},
    ],
)
def test_lies_about_sizes_and_types_are_caught_before_numpy_sees_them(tmp_path, lie):
    path = tmp_path / "00.pkl"
    path.write_bytes(forged_frame(**lie))
    with pytest.raises(DriveError, match=r"00.pkl"):
        read_columns(path, ("x",))


def test_a_gzip_bomb_stops_at_the_limit(tmp_path):
    path = tmp_path / "00.pkl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(3 * MAX_PICKLE_BYTES >> 20):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < MAX_PICKLE_BYTES / 10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(DriveError, match=f"more than {MAX_PICKLE_BYTES} bytes once decompressed"):
        read_columns(path, ("x",))

    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 2.5 * MAX_PICKLE_BYTES / 1024


def test_cut_or_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "00.pkl.gz"
    sweep().to_pickle(path)
    whole = path.read_bytes()
    for bad, said in [
        (whole[:-1], "cut"),
        (whole[: len(whole) // 2], "cut"),
        (whole[:2], "cut"),
        (whole + b"more", "behind its end"),
        (whole[:-8] + bytes(4) + whole[-4:], "damaged"),  # another checksum
    ]:
        path.write_bytes(bad)
        with pytest.raises(DriveError, match=f"00.pkl.gz.*{said}"):
            read_columns(path, ("x",))


_plain = pickle.dumps(sweep(6), 4)


@given(st.integers(0, len(_plain) - 1))
def test_every_cut_is_an_error(tmp_path_factory, length):
    path = tmp_path_factory.getbasetemp() / "cut.pkl"
    path.write_bytes(_plain[:length])
    with pytest.raises(DriveError):
        read_columns(path, tuple("xyzitd"))


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(_plain) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_columns_or_an_error_and_nothing_else(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "changed.pkl"
    data = reduce(lambda data, change: data[: change[0]] + bytes([change[1]]) + data[change[0] + 1 :], changes, _plain)
    path.write_bytes(data)
    try:
        columns = read_columns(path, tuple("xyzitd"))
    except DriveError:
        return
    assert {len(column) for column in columns.values()} == {len(columns["x"])}
