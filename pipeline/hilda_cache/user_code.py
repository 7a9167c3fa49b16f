"""A user's own code, named on the command line: `module:factory`, or `path/to/file.py:factory`.

Teachers and drives are given so. Naming it is what allows it to run; nothing that came with weights or data is run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hilda_schema.errors import HildaError, UsageError

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, slots=True)
class UserCode:
    """A function or class of the user's."""

    place: str  # a module, or the absolute path of a Python file
    factory: str
    is_file: bool

    @classmethod
    def of(cls, place: str, factory: str) -> UserCode:
        """From a module's name, or a file's absolute path."""
        return cls(place, factory, place.endswith(".py"))

    @property
    def text(self) -> str:
        """The spelling that every process understands, whatever folder it runs in."""
        return f"{self.place}:{self.factory}"

    @property
    def public(self) -> str:
        """The spelling that a stranger may see: of a path only its last part."""
        return f"{Path(self.place).name if self.is_file else self.place}:{self.factory}"

    def importable(self) -> AbstractContextManager[None]:
        """While open, the code's neighbours can be imported, as they can when it is run as a script."""
        return _folder_importable(Path(self.place).parent if self.is_file else None)


def parse_user_code(text: str, what: str, remedy: str) -> UserCode | None:
    """Read `module:factory` or `path/to/file.py:factory`. Looks at the disk; imports nothing.

    Args:
        text: as typed.
        what: what it stands for, for messages.
        remedy: what else may be given.

    Returns:
        The code, its path made absolute; None where the text has neither form.

    Raises:
        UsageError: there is no such file, or what follows the colon is no name.
    """
    place, _, factory = text.rpartition(":")
    is_file = place.endswith(".py")
    if not is_file and not _DOTTED.fullmatch(place):
        return None
    path = Path(place).expanduser().resolve()
    if is_file and not path.is_file():
        raise UsageError(f"{what} {text!r}: there is no file {place}", remedy)
    if not _DOTTED.fullmatch(factory):
        raise UsageError(f"{what} {text!r}: {factory!r} is not the name of a function", remedy)
    return UserCode(str(path) if is_file else place, factory, is_file)


def load_user_code(code: UserCode, failure: type[HildaError]) -> tuple[ModuleType, Callable[..., Any]]:
    """Import a user's code.

    Args:
        code: which.
        failure: the error to raise.

    Returns:
        Its module, and the function or class.

    Raises:
        HildaError: of type `failure`: it cannot be imported, or has no such function.
    """
    try:
        with code.importable():
            module = _import_file(Path(code.place)) if code.is_file else importlib.import_module(code.place)
    except Exception as error:  # the user's own code
        first = (str(error).splitlines() or [""])[0]
        raise failure(
            f"{code.public} cannot be imported: {type(error).__name__}: {first}",
            "a module must be installed or on PYTHONPATH; a file is given as path/to/file.py:factory",
        ) from error
    factory: Any = module
    for name in code.factory.split("."):
        factory = getattr(factory, name, None)
    if not callable(factory):
        raise failure(f"{code.public}: there is no function {code.factory!r}", "check the name after the colon")
    return module, factory


def code_revision(module: ModuleType) -> str:
    """Names the state of a module's file, "" where it has none: weights and data do not tell a changed line of code."""
    if not module.__file__:
        return ""
    return "code-" + hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16]


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name of its own, so that two files of one name, or two versions of one, never meet."""
    digest = hashlib.sha256(str(path).encode() + b"\0" + path.read_bytes()).hexdigest()
    name = f"_hilda_user_{digest[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _folder_importable(folder: Path | None) -> Iterator[None]:
    """Let a file import its neighbours, then forget them, so that another file's `utils` is not this one's.

    Imports that a network makes only while it runs come too late for this.
    """
    if folder is None:
        yield
        return
    before = dict(sys.modules)
    at_home = {name.partition(".")[0] for name, module in before.items() if _lies_in(module, folder)}
    neighbours = _module_names(folder) - at_home  # those have been imported from this folder by ordinary means
    for name in before:
        if name.partition(".")[0] in neighbours:
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in neighbours]:
            del sys.modules[name]
        sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})


def _module_names(folder: Path) -> set[str]:
    """What can be imported from a folder: files, and folders with Python files in them."""
    packages = {path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    return packages | {path.stem for path in folder.glob("*.py")}


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).is_relative_to(folder)
