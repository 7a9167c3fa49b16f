"""Errors carry a stable code, a remedy, and travel between processes."""

from __future__ import annotations

import pickle

import pytest

from hilda_schema import errors


def all_errors() -> list[type[errors.HildaError]]:
    found, queue = [], [errors.HildaError]
    while queue:
        kind = queue.pop()
        found.append(kind)
        queue += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", all_errors())
def test_survives_pickling_between_workers(kind: type[errors.HildaError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what happened", "what to do")))
    assert type(error) is kind
    assert (error.message, error.remedy) == ("what happened", "what to do")
    assert str(error) == f"what happened [{kind.code}]; what to do"


def test_codes_are_unique_and_drawn_in_the_tree() -> None:
    codes = [kind.code for kind in all_errors()]
    assert len(set(codes)) == len(codes)
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in all_errors())
