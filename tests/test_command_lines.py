"""Both programs as a shell, a script and a terminal meet them: real processes, real signals, real pseudo-terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import py_compile
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from hilda_cache.cli import app as cache_app
from hilda_schema import __version__
from hilda_schema.testing import tiny_cache
from hilda_train.cli import app as train_app

REPO = Path(__file__).resolve().parent.parent
PROGRAMS: dict[str, Any] = {
    "hilda-cache": typer.main.get_command(cache_app),
    "hilda-train": typer.main.get_command(train_app),
}
MODULES = {"hilda-cache": "hilda_cache.cli", "hilda-train": "hilda_train.cli"}
# Commands that print no facts: they write files, or say what they did.
WITHOUT_JSON = {
    "hilda-cache": {"show", "prototypes", "labels", "synth", "export", "repair", "merge", "subset", "reencode", "prune",
                    "forget", "card", "migrate", "sign"},
    "hilda-train": {"fit", "report", "export", "retrieve"},
}  # fmt: skip
PATIENCE_S = 120.0
NO_SPACE = "standard output cannot be written: No space left on device"


def commands() -> Iterator[tuple[str, str, Any]]:
    for program, group in PROGRAMS.items():
        for name, command in group.commands.items():
            yield program, name, command


def options(command: Any) -> Iterator[Any]:
    return (each for each in command.params if each.param_type_name == "option")


def start(program: str, *words: object, **how: Any) -> subprocess.Popen[str]:
    code = f"import sys; sys.argv[0] = {program!r}; from {MODULES[program]} import main; main()"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | how
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], **how)


def run(program: str, *words: object, **environment: str) -> tuple[int, str, str]:
    process = start(program, *words, env={**os.environ, **environment})
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cache(tmp_path_factory.mktemp("stores") / "cache", scenes=1, frames=4, points=40)


# Words


def test_every_command_and_option_has_a_sentence_of_help() -> None:
    missing = []
    for program, name, command in commands():
        first = (command.help or "").strip().partition("\n\n")[0]
        if not re.match(r"[A-Z].*\.$", " ".join(first.split())):
            missing.append(f"{program} {name}: {first!r}")
        missing += [f"{program} {name} {each.opts[0]}" for each in options(command) if not each.help]
        missing += [f"{program} {name} {each.name}" for each in command.params if not getattr(each, "help", "")]
    assert missing == []


def test_the_same_word_means_the_same_everywhere() -> None:
    """One long name has one short flag and one kind of value; one short flag has one long name in a program."""
    seen: dict[str, dict[tuple[Any, ...], list[str]]] = {}
    for program, name, command in commands():
        for each in options(command):
            long = next((word for word in each.opts if word.startswith("--")), each.opts[0])
            kind = (tuple(sorted(set(each.opts) - {long})), "flag" if each.is_flag else "value")
            seen.setdefault(long, {}).setdefault(kind, []).append(f"{program} {name}")
    assert {long: kinds for long, kinds in seen.items() if len(kinds) > 1} == {}
    short: dict[tuple[str, str], set[str]] = {}
    for long, kinds in seen.items():
        for (flags, _), places in kinds.items():
            for flag in flags:
                for place in places:
                    short.setdefault((place.split()[0], flag), set()).add(long)
    assert {key: longs for key, longs in short.items() if len(longs) > 1} == {}


def test_commands_that_print_facts_take_json() -> None:
    without = {program: set() for program in PROGRAMS}
    for program, name, command in commands():
        if not any("--json" in each.opts for each in options(command)):
            without[program].add(name)
    assert without == WITHOUT_JSON


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_every_command_loads_nothing_heavy(program: str) -> None:
    """All in one process: what one of them loads is seen after it."""
    # not pydantic: typer loads it by itself
    heavy = ("torch", "numpy", "zarr", "pyarrow", "dask", "distributed", "transformers", "PIL", "matplotlib",
             "simplejpeg", "safetensors", "tensorboard", "fsspec", "yaml")  # fmt: skip
    code = f"""
import contextlib, io, sys
from {MODULES[program]} import main
for name in [None, *{sorted(PROGRAMS[program].commands)!r}]:
    sys.argv = [{program!r}, *([name] if name else []), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, (name, stop.code)
    assert "Usage" in out.getvalue(), name
    loaded = sorted(set({heavy!r}) & set(sys.modules))
    assert not loaded, (name, loaded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr


# Exit codes


def documented_codes() -> set[int]:
    page = (REPO / "docs" / "command-line.md").read_text()
    return {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}


def test_exit_codes_are_those_of_the_page(store: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(store, tmp_path / "damaged"))
    (damaged / "frames.parquet").write_bytes(b"")
    assert run("hilda-train", "doctor")[0] == 0
    code, out, err = run("hilda-cache", "info", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert err.startswith("error [cache.not-found]: no cache at ")
    assert err.count("\n") == 2
    assert run("hilda-cache", "export", store, "--to", "csv", "-o", tmp_path / "out")[0] == 2
    code, out, err = run("hilda-cache", "info", "--colour")
    assert (code, out) == (2, "")
    assert "--colour" in err
    assert run("hilda-cache", "verify", damaged)[0] == 3
    process = start("hilda-cache", "doctor", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()  # nobody reads
    assert process.wait(PATIENCE_S) == 141
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    with Path("/dev/full").open("w") as full:
        process = start("hilda-train", "recipes", stdout=full)
        err = process.communicate(timeout=PATIENCE_S)[1]
    assert (process.returncode, err.splitlines()[0]) == (1, f"error [hilda]: {NO_SPACE}")
    assert documented_codes() == {0, 1, 2, 3, 130, 141, 143}


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_interrupted_commands_end_with_their_code_and_no_traceback(tmp_path: Path, number: int, times: int) -> None:
    process = start("hilda-cache", "synth", tmp_path / "drive", "--scenes", 50, "--frames", 40)
    give_up = time.monotonic() + PATIENCE_S
    while not list(tmp_path.rglob("*.jpg")) and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.001)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert out == ""
    assert "Traceback" not in err
    if times == 1:
        assert err.splitlines()[-1] == f"interrupted by {signal.Signals(number).name}"


# Quiet and verbose


def test_quiet_leaves_results_and_problems(store: Path, tmp_path: Path) -> None:
    code, out, err = run("hilda-cache", "--quiet", "verify", store, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["sound"] is True
    assert "all as sealed" in run("hilda-cache", "verify", store)[2]
    damaged = Path(shutil.copytree(store, tmp_path / "damaged"))
    (damaged / "frames.parquet").unlink()
    code, out, err = run("hilda-cache", "verify", damaged, HILDA_QUIET="1")
    assert (code, out) == (3, "")
    assert "wrong: frames.parquet: is missing" in err


def test_verbose_says_where_in_the_code(tmp_path: Path) -> None:
    _, _, plain = run("hilda-cache", "info", tmp_path)
    code, _, err = run("hilda-cache", "-v", "info", tmp_path)
    assert code == 1
    assert "Traceback (most recent call last):" in err
    assert err.endswith(plain)
    assert "Traceback" not in plain


EXTRAS = (
    "PIL",
    "dask",
    "distributed",
    "matplotlib",
    "s3fs",
    "safetensors",
    "simplejpeg",
    "torch",
    "transformers",
    "yaml",
)


@pytest.mark.parametrize(
    ("program", "command", "says"),
    [
        ("hilda-cache", "verify STORE", "all as sealed"),
        ("hilda-cache", "info STORE", "content   sha256:"),
        ("hilda-cache", "push STORE OUT", "every byte checked"),
        ("hilda-cache", "synth OUT", "-> pip install 'hilda-lidar[extract]'"),
        ("hilda-cache", "show STORE --out OUT.png", "-> pip install 'hilda-lidar[viz]'"),
        ("hilda-train", "fit demo --cache STORE --out OUT", "-> pip install 'hilda-lidar[train]'"),
    ],
)
def test_an_installation_without_extras(store: Path, tmp_path: Path, program: str, command: str, says: str) -> None:
    code = (
        "import sys\n"
        "class Base:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {EXTRAS}: raise ModuleNotFoundError('not installed', name=name)\n"
        "sys.meta_path.insert(0, Base())\n"
        f"from {MODULES[program]} import main; main()"
    )
    words = command.replace("STORE", str(store)).replace("OUT", str(tmp_path / "out")).split()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if "pip" in says else 0)


def test_code_that_a_full_disk_cut_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text("x = 1\n")
    whole = Path(py_compile.compile(str(tmp_path / "source.py"), cfile=str(tmp_path / "cut.pyc"), doraise=True))
    whole.write_bytes(whole.read_bytes()[:-8])
    code = (
        "from hilda_schema.command_line import make_app; from hilda_schema.terminal import run\n"
        "app = make_app('hilda', 'A program.')\n"
        "@app.command()\ndef it():\n    import cut\n"
        "run(app)"
    )
    done = subprocess.run([sys.executable, "-c", code, "it"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error [hilda]: something ends too soon: marshal data too short\n  -> a full disk")


def test_the_version() -> None:
    for program in PROGRAMS:
        assert run(program, "--version")[:2] == (0, f"hilda-lidar {__version__}\n")


# Terminals


def on_terminal(columns: int, *words: object, program: str = "hilda-cache", **environment: str) -> tuple[int, str]:
    """Run on a pseudo-terminal of that width; the exit code and all that appeared."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    how = {"stdin": side, "stdout": side, "stderr": side, "env": {**kept, "TERM": "xterm-256color", **environment}}
    process = start(program, *words, **how)
    os.close(side)
    shown = b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:  # the last process has closed the terminal
            break
        if not data:
            break
        shown += data
    os.close(main)
    return process.wait(PATIENCE_S), shown.decode()


ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize(
    ("environment", "columns"),
    [({}, 80), ({"NO_COLOR": "1"}, 80), ({"TERM": "dumb"}, 80), ({}, 20)],
    ids=["colours", "no colours", "dumb", "narrow"],
)
def test_progress_on_terminals(store: Path, environment: dict[str, str], columns: int) -> None:
    code, shown = on_terminal(columns, "verify", store, **environment)
    assert code == 0, shown
    assert "Traceback" not in shown
    text = ESCAPES.sub("", shown).replace("\r", "\n")
    assert "files" in text
    assert "all as sealed" in text
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in shown
    if environment.get("NO_COLOR"):
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    elif not environment:
        assert "\x1b[" in shown
    if columns == 20:
        bars = [line for line in text.splitlines() if "━" in line]
        assert all(len(line.rstrip()) <= columns for line in bars)


def test_help_on_a_narrow_terminal() -> None:
    for program in PROGRAMS:
        code, shown = on_terminal(20, "--help", program=program)
        assert code == 0, shown
        assert max(map(len, ESCAPES.sub("", shown).splitlines())) <= 20
