"""Every public name of the three packages has a docstring; it gives the shapes of arrays, and the errors of ours.

A docstring may leave shapes and errors to another one: "as `name`", "see `name`", "like `name`", "inverse of `name`"
and "those of `name`" stand for what is written at `name` (a function, a class with the comments behind its fields,
`Class.method` or a module of ours).
`forward` may leave the shapes to its class, where PyTorch users look for them.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ROOTS = ("cache_schema", "pipeline", "trainer")
FILES = sorted(path for root in ROOTS for path in (REPO / root).rglob("*.py"))
SOURCES = {path: path.read_text(encoding="utf-8").splitlines() for path in FILES}
TREES = {path: ast.parse("\n".join(lines)) for path, lines in SOURCES.items()}

ARRAYS = frozenset({"NDArray", "ndarray", "Tensor"})
DIMENSION = r"(?:\.\.\.|\w{1,12}(?:\s?(?:[-+*/^]|//)\s?\w+)*)"
# Of two entries or more one at least is a number, begins with a capital or is "...": (row, column) is no shape.
SEVERAL = rf"\((?=[^()]*(?:\b[A-Z0-9]|\.\.\.))(?:{DIMENSION},\s+)+{DIMENSION}\)"
SHAPE = re.compile(rf"(?<![\w`])(?:{SEVERAL}|\({DIMENSION},\)|\(\.\.\.\)|\(\))|\bscalars?\b|\bshaped?\b")
REFERENCE = re.compile(r"\b(?:as|see|like|inverse of|those of)\s+`([\w.]+)`", re.IGNORECASE)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True)
class Public:
    """A public class, function or method, and the class it is in."""

    path: Path
    name: str
    node: Definition
    owner: ast.ClassDef | None

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPO)}:{self.node.lineno} {self.name}"


def public_names(path: Path, body: list[ast.stmt], owner: ast.ClassDef | None = None) -> Iterator[Public]:
    """What a body defines, classes with their methods; functions inside functions are nobody's to call."""
    for node in body:
        if not isinstance(node, Definition) or node.name.startswith("_"):
            continue
        if any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list):
            continue  # the implementation has the docstring
        yield Public(path, f"{owner.name}.{node.name}" if owner else node.name, node, owner)
        if isinstance(node, ast.ClassDef):
            yield from public_names(path, node.body, node)


PUBLIC = [each for path, tree in TREES.items() for each in public_names(path, tree.body)]
FUNCTIONS = [each for each in PUBLIC if isinstance(each.node, Function)]


def doc_of(node: Definition | ast.Module | None) -> str:
    return (ast.get_docstring(node) or "") if node else ""


def identifiers(node: ast.AST) -> frozenset[str]:
    """Names and last attributes in an expression, those in a quoted annotation too."""
    found = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            found.add(each.id)
        elif isinstance(each, ast.Attribute):
            found.add(each.attr)
        elif isinstance(each, ast.Constant) and isinstance(each.value, str):
            found |= set(re.findall(r"\w+", each.value))
    return frozenset(found)


def aliases() -> frozenset[str]:
    """Names that modules give to array types, such as `Reals = NDArray[np.float64]`."""
    return frozenset(
        target.id
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp)
        for target in node.targets
        if isinstance(target, ast.Name) and ARRAYS & identifiers(node.value)
    )


def error_names() -> tuple[frozenset[str], frozenset[str]]:
    """The HildaError family, and functions of ours that return one of it to be raised."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, Definition)]
    bases = {node.name: {ast.unparse(base) for base in node.bases} for node in nodes if isinstance(node, ast.ClassDef)}
    family = {"HildaError"}
    while more := {name for name, above in bases.items() if above & family} - family:
        family |= more
    returns = [(node.name, ast.unparse(node.returns)) for node in nodes if isinstance(node, Function) and node.returns]
    makers = {name for name, what in returns if what in family} - {name for name, what in returns if what not in family}
    return frozenset(family), frozenset(makers)


def fields_of(each: Public) -> str:
    """The lines of a class that declare its fields: a comment behind a field gives its shape."""
    if isinstance(each.node, ast.ClassDef):
        declared = [node for node in each.node.body if isinstance(node, ast.AnnAssign)]
        return "".join(f"\n{SOURCES[each.path][node.end_lineno - 1]}" for node in declared if node.end_lineno)
    return ""


def written_at() -> dict[str, list[tuple[Path, str]]]:
    """Name, dotted or last part -> the docstrings that it may stand for."""
    found = defaultdict(list)
    for each in PUBLIC:
        for name in {each.name, each.name.rpartition(".")[2]}:
            found[name].append((each.path, doc_of(each.node) + fields_of(each)))
    for path, tree in TREES.items():
        found[".".join(path.relative_to(REPO).with_suffix("").parts[1:])].append((path, doc_of(tree)))
    return found


ARRAY_TYPES = ARRAYS | aliases()
ERRORS, MAKERS = error_names()
WRITTEN = written_at()


def whole_doc(each: Public) -> str:
    """The docstring with those it refers to; of several of one name those in the same file, if any."""
    doc = doc_of(each.node)
    texts = [doc]
    for name in REFERENCE.findall(doc):
        places = WRITTEN.get(name, [])
        near = [text for path, text in places if path == each.path and text != doc]
        texts += near or [text for _, text in places]
    return "\n".join(texts)


def array_annotations(node: Function) -> Iterator[str]:
    """Parameters that are arrays, and "->" where the result is one; functions that take arrays are not arrays."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    for name, annotation in [*((each.arg, each.annotation) for each in arguments), ("->", node.returns)]:
        if annotation and ARRAY_TYPES & identifiers(annotation) and "Callable" not in identifiers(annotation):
            yield name


def errors_raised(node: Function) -> set[str]:
    """Those of our errors that the body raises by name, or by a function that makes them."""
    raised = [each.exc for each in ast.walk(node) if isinstance(each, ast.Raise) and each.exc]
    calls = [each.func if isinstance(each, ast.Call) else each for each in raised]
    names = {each.id if isinstance(each, ast.Name) else getattr(each, "attr", "") for each in calls}
    return names & (ERRORS | MAKERS)


def is_command(each: Public) -> bool:
    """Whether typer prints the docstring as the command's help: a section on exceptions has no place there."""
    return each.path.name.endswith("cli.py") and any(
        {"command", "callback"} & identifiers(decorator) for decorator in each.node.decorator_list
    )


def test_every_public_name_has_a_docstring() -> None:
    assert len(PUBLIC) > 1000, "few names were found: does this test still read the packages?"
    assert [str(each) for each in PUBLIC if not doc_of(each.node)] == []


def test_shapes_of_arrays_are_given() -> None:
    lacking = []
    for each in FUNCTIONS:
        doc = whole_doc(each) + (doc_of(each.owner) if each.node.name == "forward" else "")
        arrays = list(array_annotations(each.node))
        if arrays and not SHAPE.search(doc):
            lacking.append(f"{each}: {', '.join(arrays)}")
    assert lacking == []


def test_errors_of_ours_are_given() -> None:
    lacking = [
        f"{each}: {', '.join(sorted(names))}"
        for each in FUNCTIONS
        if not is_command(each) and (names := errors_raised(each.node)) and "Raises:" not in whole_doc(each)
    ]
    assert lacking == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(N, 3) float32", True),
        ("(n,) rows", True),
        ("(..., C) tokens", True),
        ("(2 * B, H // 2, W, 3)", True),
        ("a scalar", True),
        ("shaped like the grid", True),
        ("an array (of the part)", False),
        ("the global token (CLS)", False),
        ("patches, each as (row, column, colour)", False),
        ("what `close()` returns", False),
        ("all of them (see above, where it matters)", False),
    ],
)
def test_what_counts_as_a_shape(text: str, found: bool) -> None:
    assert bool(SHAPE.search(text)) is found
