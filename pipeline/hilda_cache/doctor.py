"""A block to paste in an issue: versions, machine, what is missing. Starts without torch and imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

from hilda_schema import __version__

# distribution -> what needs it
PACKAGES = {
    "numpy": "all",
    "pyarrow": "all",
    "zarr": "all",
    "crc32c": "all",
    "pydantic": "all",
    "fsspec": "all",
    "torch": "extract, train",
    "transformers": "extract",
    "dask": "extract",
    "distributed": "extract",
    "simplejpeg": "extract",
    "safetensors": "extract, train",
    "matplotlib": "show, report",
    "tensorboard": "train",
    "s3fs": "s3:// stores",
    "timm": "timm teachers (optional)",
    "MinkowskiEngine": "minkowski back end (optional)",
}


def doctor_report() -> str:
    """The environment as Markdown. Holds no path of the user's home and no environment variable's value."""
    lines = ["```", f"hilda-lidar {__version__}", f"Python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{os.cpu_count()} cores, {_memory_gib():.1f} GiB memory, {_free_gb():.0f} GB free here"]
    lines += [f"CPU flags: {' '.join(_cpu_flags()) or 'unknown'}"]
    for name, purpose in PACKAGES.items():
        lines.append(f"{name:16} {_version(name):20} {purpose}")
    lines.append(f"GPU driver: {'yes' if Path('/proc/driver/nvidia/version').exists() else 'none seen'}")
    return "\n".join([*lines, "```"])


def missing_for_extract() -> list[str]:
    """Distributions that `extract` needs and that are not installed."""
    needed = [name for name, purpose in PACKAGES.items() if "extract" in purpose.split(", ")]
    return [name for name in needed if _version(name) == "missing"]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _free_gb() -> float:
    return shutil.disk_usage(".").free / 1e9


def _cpu_flags() -> list[str]:
    """The flags that decide whether reduced precision is fast."""
    if sys.platform != "linux":
        return []
    known = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return sorted(known & set(line.split()))
    return []
