"""`python -m hilda_schema.testing STORE`: print every rule of the format that a store breaks; exit with 3 if any."""

from __future__ import annotations

import sys

from hilda_schema.errors import HildaError
from hilda_schema.terminal import EXIT_INCOMPLETE, fail
from hilda_schema.testing.stores import check_store

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hilda_schema.testing STORE")
    try:
        found = check_store(sys.argv[1])
    except HildaError as error:
        fail(error)
    sys.stdout.write("".join(f"{violation}\n" for violation in found))
    sys.exit(EXIT_INCOMPLETE if found else 0)
