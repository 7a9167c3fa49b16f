"""Random damage to any file of a store: `verify` names the file, reading raises, nothing is silently different."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hilda_schema.errors import HildaError
from hilda_schema.reader import open_cache
from hilda_schema.root import HISTORY
from hilda_schema.testing import tiny_cache, tiny_recipe
from hilda_schema.verify import verify

KINDS = [("grid", "int8"), ("point", "float16")]


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, dtype = request.param
    path = tmp_path_factory.mktemp("stores") / "cache"
    return tiny_cache(path, kind=kind, dtype=dtype, scenes=1, frames=4, points=60)


def read_everything(store: Path) -> None:
    recipe = tiny_recipe()
    for frame in open_cache(store):
        assert frame.points.xyz_m is not None
        assert frame.pairs is not None
        assert frame.present is not None
        for teacher in recipe.teachers:
            for layer in teacher.layers:
                frame.point_features(teacher.name, layer.name)
        frame.global_tokens("vit")


def flip(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    data = bytearray(path.read_bytes())
    at = int(rng.integers(8 * len(data)))
    data[at // 8] ^= 1 << (at % 8)
    path.write_bytes(data)


def delete(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    path.unlink()


def empty(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    path.write_bytes(b"")


def truncate(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def append(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    with path.open("ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 9))))


def zero_fill(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    other = others[int(rng.integers(len(others)))]
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def swap_with_the_same_array_of_another_part(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    like_me = [other for other in others if other.parts[-3:] == path.parts[-3:] and other != path]
    swap(path, rng, like_me or others)


def become_a_folder(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    path.unlink()
    path.mkdir()


def become_a_link(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    # Outside the store, with the right content: only its being a link is wrong.
    store = next(parent for parent in path.parents if parent.name == "cache")
    aside = store.parent / "aside"
    path.rename(aside)
    path.symlink_to(aside)


def become_a_pipe(path: Path, rng: np.random.Generator, others: list[Path]) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: list[Callable[[Path, np.random.Generator, list[Path]], None]] = [
    flip,
    flip,
    flip,
    delete,
    empty,
    truncate,
    append,
    zero_fill,
    swap,
    swap_with_the_same_array_of_another_part,
    become_a_folder,
    become_a_link,
    become_a_pipe,
]


def state(store: Path) -> dict[str, bytes | str]:
    return {
        path.relative_to(store).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else "special"
        for path in store.rglob("*")
    }


def damage_and_check(whole: Path, copy: Path, number: int) -> list[str]:
    """Do one random damage to a copy and mend it again; what went unnoticed."""
    rng = np.random.default_rng([20, number])
    # A second account of what the manifest says: nobody needs it to read, and it may be missing.
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != HISTORY)
    # Every file in turn, so that small ones are hit as often as large ones.
    victim = files[number % len(files)]
    damage = DAMAGES[(number // len(files) + number) % len(DAMAGES)]
    before = state(copy)
    damage(victim, rng, [path for path in files if path != victim])
    after = state(copy)
    damaged = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    missed = what_was_missed(copy, victim, f"{number}: {damage.__name__} {victim.relative_to(copy)}", damaged)
    for name in damaged:
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink(missing_ok=True)
        shutil.copy(whole / name, copy / name)
    return missed


def what_was_missed(copy: Path, victim: Path, what: str, damaged: set[str]) -> list[str]:
    """Whether verifier and reader notice that these files are damaged."""
    if not damaged:
        return []
    missed = []
    try:
        report = verify(copy)
        named = {problem.file for problem in report.problems}
        if not named & damaged:
            missed.append(f"{what}: verify names {sorted(named)}")
    except HildaError as error:
        if victim.name != "manifest.json":
            missed.append(f"{what}: verify raised {error}")
    except Exception as error:
        missed.append(f"{what}: verify raised {error!r}")
    try:
        read_everything(copy)
        missed.append(f"{what}: reading went on")
    except HildaError as error:
        if not any(Path(name).name in error.message for name in damaged):
            missed.append(f"{what}: the reader does not name the file: {error}")
    except Exception as error:
        missed.append(f"{what}: reading raised {error!r}")
    return missed


def run(whole: Path, folder: Path, numbers: range) -> list[str]:
    copy = Path(shutil.copytree(whole, folder / "cache"))
    missed = []
    for number in numbers:
        missed += damage_and_check(whole, copy, number)
        (folder / "aside").unlink(missing_ok=True)
    assert state(copy) == state(whole)
    return missed


def test_an_undamaged_copy_is_sound(whole: Path) -> None:
    assert verify(whole).sound
    read_everything(whole)


def test_random_damage_never_goes_unnoticed(whole: Path, tmp_path: Path) -> None:
    assert run(whole, tmp_path, range(150)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_much_random_damage_never_goes_unnoticed(whole: Path, tmp_path: Path) -> None:
    assert run(whole, tmp_path, range(150, 3000)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_bit_of_the_small_files_matters(tmp_path: Path) -> None:
    store = tiny_cache(tmp_path / "cache", scenes=1, frames=1, points=5)
    missed = []
    for path in sorted(store.rglob("*")):
        if not path.is_file() or path.stat().st_size > 120:
            continue
        data = path.read_bytes()
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(damaged)
            try:
                read_everything(store)
                missed.append(f"{path.name} bit {bit}")
            except HildaError:
                pass
        path.write_bytes(data)
    read_everything(store)
    assert missed == []


def test_without_checksums_the_reader_would_go_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above bite: a reader that trusts its bytes fails them."""
    monkeypatch.setattr("hilda_schema.part.damaged_chunks", lambda *arguments: [])
    missed = run(whole, tmp_path, range(40))
    assert any("flip" in each and "reading went on" in each for each in missed)
