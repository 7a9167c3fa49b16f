"""The command line of stage one is light until a command runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "zarr", "pyarrow", "dask", "distributed", "transformers", "PIL", "matplotlib", "simplejpeg"}


@pytest.mark.parametrize("words", [["-h"], ["extract", "--help"], ["plan", "--help"], ["show", "--help"]])
def test_help_loads_nothing_heavy(words):
    code = (
        "import sys\n"
        "from hilda_cache.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    code = end.code\n"
        f"print(code, sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 []"
