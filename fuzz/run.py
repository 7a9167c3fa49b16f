"""Feeds parsers with bytes from strangers until one breaks the promise of guard.py.

    python fuzz/run.py                          every harness, two minutes each, with Atheris where it is installed
    python fuzz/run.py manifest seal --seconds 600
    python fuzz/run.py --plain --runs 300       the same harnesses with a seeded mutator: no Atheris, the same each time

Prints one line a harness: inputs tried, how many of them were accepted, seconds. An input that breaks the promise is
kept as crash-<hash> in the work folder, and given again with `--input FILE`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_BYTES = 20_000
MODULES = ("targets_store", "targets_drive", "targets_train")


def load(name: str) -> tuple[Any, str]:
    """A harness by name, and the module that it is in."""
    for module in MODULES:
        harnesses = importlib.import_module(module).HARNESSES
        if name in harnesses:
            return harnesses[name], module
    raise SystemExit(f"no harness {name}: there are {', '.join(names())}")


def names() -> list[str]:
    """All harnesses."""
    return [name for module in MODULES for name in importlib.import_module(module).HARNESSES]


def prepare(name: str, work: Path) -> tuple[Callable[[bytes], bool], list[bytes]]:
    """A harness ready to run: guarded, warmed up with its own seeds, its memory capped."""
    from guard import Guard

    guard = Guard(work)
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    target, seeds = load(name)[0](folder)
    counted = {"accepted": 0}

    def once(data: bytes) -> bool:
        counted["accepted"] += (accepted := guard.run(target, data))
        return accepted

    accepted = [once(seed) for seed in seeds]
    if not any(accepted):
        raise SystemExit(f"{name}: none of its own seeds is accepted")
    guard.limit_memory()
    return once, seeds


def plain(name: str, work: Path, runs: int, seconds: float, seed: int) -> str:
    """Run a harness with the seeded mutator; what came of it, in one line."""
    from mutate import mutated

    once, seeds = prepare(name, work)
    chance, pool = random.Random(f"{seed} {name}"), list(seeds)
    accepted, began, done = 0, time.monotonic(), 0
    while done < runs and time.monotonic() - began < seconds:
        data = mutated(chance.choice(pool), pool, chance)[:MAX_BYTES]
        (work / "last").write_bytes(data)  # what is there when a library ends the process
        try:
            took = once(data)
        except BaseException:
            keep(work, data)
            raise
        done += 1
        accepted += took
        if took and len(pool) < 200:
            pool.append(data)  # what is accepted is a better start than what is not
    return f"{name}: {done} inputs, {accepted} accepted, {time.monotonic() - began:.0f} s"


def keep(work: Path, data: bytes) -> None:
    """Keep an input that broke something."""
    path = work / f"crash-{hashlib.sha256(data).hexdigest()[:16]}"
    path.write_bytes(data)
    print(f"kept as {path}: {data[:200]!r}", file=sys.stderr)


def with_atheris(name: str, work: Path, seconds: float, seed: int) -> None:
    """Run a harness with coverage; does not return."""
    import atheris

    with atheris.instrument_imports(include=["hilda_schema", "hilda_cache", "hilda_train"]):
        once, seeds = prepare(name, work)
    from mutate import mutated

    corpus = work / f"{name}-corpus"
    corpus.mkdir(exist_ok=True)
    for number, each in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(each)

    def mutate(data: bytes, size: int, number: int) -> bytes:
        if number % 2:
            return bytes(atheris.Mutate(data, len(data)))[:size]
        return mutated(data, seeds, random.Random(number))[:size]

    flags = [f"-max_total_time={int(seconds)}", f"-seed={seed + 1}", f"-max_len={MAX_BYTES}", "-rss_limit_mb=0"]
    flags += ["-len_control=0", f"-artifact_prefix={work}/", "-print_final_stats=0", "-verbosity=1"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], lambda data: once(data) and None, custom_mutator=mutate)
    atheris.Fuzz()


def fuzz(name: str, work: Path, seconds: float, seed: int) -> str:
    """Run a harness with Atheris in a process of its own; what came of it, in one line."""
    words = [name, "--atheris", "--seconds", str(seconds), "--seed", str(seed), "--work", str(work)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    found = re.search(r"Done (\d+) runs in (\d+) second", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{done.stderr[-6000:]}\n{name}: broken, see above and {work}")
    covered = re.findall(r"cov: (\d+)", done.stderr)
    return f"{name}: {found[1]} inputs, {found[2]} s, {covered[-1] if covered else '?'} edges"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--runs", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--plain", action="store_true", help="never Atheris")
    parser.add_argument("--atheris", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help="give this one input to the harness named")
    asked = parser.parse_args()
    work = (asked.work or Path(tempfile.mkdtemp(prefix="fuzz-"))).resolve()
    if asked.atheris:
        with_atheris(asked.names[0], work, asked.seconds, asked.seed)
    if asked.input:
        print("accepted" if prepare(asked.names[0], work)[0](asked.input.read_bytes()) else "refused")
        return
    engine = not asked.plain and importlib.util.find_spec("atheris") is not None
    for name in asked.names or names():
        line = (
            fuzz(name, work, asked.seconds, asked.seed)
            if engine
            else plain(name, work, asked.runs, asked.seconds, asked.seed)
        )
        print(line, flush=True)


if __name__ == "__main__":
    main()
