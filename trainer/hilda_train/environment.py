"""What a run ran on: versions, machine, the state of the source tree. Written beside every run, fit to be published.

Holds no path, host name, user name or environment variable's value, except for the few variables in `VARIABLES` that
change speed or rounding and are numbers or short words.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hilda_schema import __version__

PACKAGES = ("torch", "numpy", "zarr", "pyarrow", "pydantic", "fastcrc", "safetensors", "tensorboard", "MinkowskiEngine")
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
_HARMLESS = re.compile(r"[A-Za-z0-9_.,+-]{1,32}")


def environment() -> dict[str, Any]:
    """Versions, machine, source state and threads, as JSON can hold them."""
    return {
        "hilda-lidar": __version__,
        "source": source_state(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "threads": torch.get_num_threads(),
        "variables": {name: os.environ[name] for name in VARIABLES if _HARMLESS.fullmatch(os.environ.get(name, ""))},
    }


def source_state(folder: Path) -> dict[str, Any]:
    """Commit of the git tree that a folder belongs to, and whether files of the folder differ from it.

    Returns:
        {"commit": 40 hex digits, "changed": bool}; empty where there is no git or no git tree, as in an installation.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    # A package that is installed into a virtual environment inside somebody's repository is not of that repository.
    if not commit or not _git(folder, "ls-files", "--", "."):
        return {}
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--", "."))}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
