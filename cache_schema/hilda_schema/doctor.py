"""A block to paste in an issue: versions, machine, what is missing. Starts without torch and imports nothing heavy.

Holds no path, no user or host name, and of the environment only thread settings that are numbers or short words.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from hilda_schema import __version__

DISTRIBUTION = "hilda-lidar"
BASE = "base"
NOT_FOR_USERS = frozenset({"dev", "all"})
OPTIONAL = ("timm", "MinkowskiEngine")
FLAGS = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"})
THREADS = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY",
    "SLURM_CPUS_PER_TASK",
)  # fmt: skip
_HARMLESS = re.compile(r"[A-Za-z0-9_.,+-]{1,32}")
_NVIDIA = Path("/proc/driver/nvidia")


def diagnose() -> dict[str, Any]:
    """Everything that the report says, as JSON can hold it."""
    return {
        "hilda-lidar": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": {"machine": os.cpu_count(), "allowed": len(os.sched_getaffinity(0))},
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "free_disk_gb": round(shutil.disk_usage(".").free / 1e9, 1),
        "cpu": cpu(),
        "gpus": gpus(),
        "threads": {name: os.environ[name] for name in THREADS if _HARMLESS.fullmatch(os.environ.get(name, ""))},
        "extras": {
            extra: {name: version_of(name) for name in names} for extra, names in requirements(DISTRIBUTION).items()
        },
        "optional": {name: version_of(name) for name in OPTIONAL},
    }


def report(found: dict[str, Any]) -> str:
    """The findings of `diagnose` as one Markdown block."""
    cores, cpu_said = found["cores"], found["cpu"]
    lines = [
        "```",
        f"hilda-lidar {found['hilda-lidar']}, Python {found['python']}, {found['system']}",
        f"{cores['machine']} cores, {cores['allowed']} for this process; {found['memory_gib']} GiB memory; "
        f"{found['free_disk_gb']:.0f} GB free here",
        f"CPU: {cpu_said['model']}; {' '.join(cpu_said['flags']) or 'no flag that matters'}",
        f"GPU: {'; '.join(found['gpus']) or 'none seen'}",
        f"threads: {' '.join(f'{name}={value}' for name, value in found['threads'].items()) or 'as libraries choose'}",
    ]
    for extra, packages in found["extras"].items():
        lines.append(f"[{extra}] " + ", ".join(f"{name} {version or 'MISSING'}" for name, version in packages.items()))
        if not all(packages.values()):
            wanted = DISTRIBUTION if extra == BASE else f"'{DISTRIBUTION}[{extra}]'"
            lines.append(f"    -> pip install {wanted}")
    lines.append(
        "optional: " + ", ".join(f"{name} {version or 'not here'}" for name, version in found["optional"].items())
    )
    return "\n".join([*lines, "```"])


def print_doctor(*, as_json: bool) -> None:
    """What `hilda-cache doctor` and `hilda-train doctor` do."""
    found = diagnose()
    sys.stdout.write((json.dumps(found, indent=2) if as_json else report(found)) + "\n")


def requirements(distribution: str) -> dict[str, tuple[str, ...]]:
    """Extra -> names of what it needs, from the installed metadata, which says what pip would do.

    Returns:
        "base" first; nothing where the distribution is not installed, as in a bare source tree.
    """
    try:
        stated = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {BASE: []}
    for line in stated:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*['"]([\w-]+)['"]""", line)
        group = extra[1] if extra else BASE
        if name and name[0] != distribution and group not in NOT_FOR_USERS:
            found.setdefault(group, []).append(name[0])
    return {group: tuple(sorted(names)) for group, names in found.items()}


def version_of(distribution: str) -> str:
    """Its installed version; empty where it is missing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def cpu() -> dict[str, Any]:
    """Model, and the flags that decide whether reduced precision is fast."""
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags = FLAGS & set(value.split())
                break
    return {"model": model, "flags": sorted(flags)}


def gpus() -> list[str]:
    """NVIDIA's driver and cards as the kernel lists them; torch may see fewer."""
    try:
        driver = re.search(r"\s(\d{3,}\.[\d.]+)\s", (_NVIDIA / "version").read_text())
        cards = [path.read_text() for path in sorted(_NVIDIA.glob("gpus/*/information"))]
    except OSError:
        return []
    models = [match[1].strip() for text in cards if (match := re.search(r"Model:\s*(.+)", text))]
    return [f"driver {driver[1] if driver else 'of unknown version'}", *models]
