"""Builds MinkowskiEngine 0.5.4 against the torch of this interpreter's environment, and installs it there.

    python tools/build_minkowski.py [--cuda] [--wheel-dir DIR] [--sdist FILE] [--jobs N]

The source archive comes from the package index that pip is set up for, is checked against a pinned hash, and is
changed where today's Python, torch and CUDA need it (`minkowski_fixes.py`). The wheel is kept, and a later run with
the same Python, torch and fixes takes it from there. docs/minkowski.md says what all this is for. Exits with 2 when
something is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import http.client
import importlib.util
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import minkowski_fixes

SDIST = "MinkowskiEngine-0.5.4.tar.gz"
SDIST_SHA256 = "b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94"
CACHE = Path("~/.cache/hilda/minkowski")
BUILD_TOOLS = ("setuptools>=77,<82", "ninja>=1.11")  # put beside the build, never into the environment
TIMEOUT_S = 60
OPENBLAS_PROBE = """#include <cblas.h>
#include <cstdio>
int main() { std::printf("%s", openblas_get_config()); }
"""


class Failure(Exception):
    """Something that the user can mend: what happened, and the command that helps."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}\n  {remedy}")


def main() -> int:
    """Find or build the wheel, install it, try it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", action="store_true", help="compile the CUDA kernels too; needs nvcc and a CUDA torch")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="only make the wheel, here, and install nothing")
    parser.add_argument("--sdist", type=Path, metavar="FILE", help=f"a copy of {SDIST}, instead of downloading it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="compilers at a time (all cores)")
    parser.add_argument("--smoke", choices=["cpu", "cuda"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.smoke:
        return smoke(arguments.smoke)
    if arguments.jobs < 1:
        parser.error("--jobs takes a number of at least 1")
    try:
        provide(arguments)
    except (Failure, minkowski_fixes.FixError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def provide(arguments: argparse.Namespace) -> None:
    """Build the wheel unless it is there, and install it unless only the wheel is wanted."""
    device = "cuda" if arguments.cuda else "cpu"
    check_packages()
    folder = (arguments.wheel_dir or CACHE.expanduser()).resolve()
    tag = build_tag(device, gpu_architectures() if arguments.cuda else "", metadata.version("torch"))
    if found := sorted(folder.glob(f"*-{tag}-*.whl")):
        wheel = found[0]
        print(f"built before: {wheel}")
    else:
        check_toolchain(arguments.cuda)
        wheel = build(folder, tag, device, arguments)
        print(f"wheel: {wheel}")
    if not arguments.wheel_dir:
        with stage("install"):
            run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", str(wheel)])
        with stage("try the installed package"):
            try_out(device, os.environ)


def gpu_architectures() -> str:
    """What torch will have the kernels compiled for."""
    import torch

    here = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or str(sorted(here))


def build_tag(device: str, architectures: str, torch_version: str) -> str:
    """The build tag in the wheel's name: a hash of all that decides whether the wheel fits."""
    parts = [sysconfig.get_config_var("SOABI"), sysconfig.get_platform(), device, architectures, torch_version]
    parts += [SDIST_SHA256, *(inspect.getsource(fix) for fix in minkowski_fixes.fixes_for(device))]
    return "1_" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


# What must be there


def check_packages() -> None:
    """The environment has the packages that the built one needs, and pip to install it.

    Raises:
        Failure: naming the first that is missing, and the command that brings it.
    """
    for name in ("torch", "numpy", "pip"):
        if importlib.util.find_spec(name) is None:
            bring = f"{sys.executable} -m " + ("ensurepip" if name == "pip" else f"pip install {name}")
            raise Failure(f"{name} is not installed in this interpreter's environment ({sys.prefix})", f"run: {bring}")


def check_toolchain(cuda: bool) -> None:
    """All that the build needs is there, before it starts.

    Raises:
        Failure: naming the first thing that is missing, and the command that brings it.
    """
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise Failure("Python.h is missing", "run: apt-get install python3-dev (or what your system calls it)")
    openblas = check_openblas()
    if cuda:
        import torch

        check_cuda(torch.version.cuda)
    print(f"python {sys.version.split()[0]}, torch {metadata.version('torch')}, {openblas}")


def check_openblas() -> str:
    """Compile and run a program that asks OpenBLAS how it was built; what it says."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(compiler[0]) is None:
        raise Failure(f"there is no C++ compiler ({compiler[0]})", "run: apt-get install g++ (or set CXX)")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "probe.cpp", Path(folder) / "probe"
        source.write_text(OPENBLAS_PROBE)
        command = [*compiler, str(source), "-o", str(program), "-lopenblas"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            done = subprocess.run([program], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "the probe does not run")
        raise Failure(
            f"OpenBLAS's headers or library are missing ({first})",
            "run: apt-get install libopenblas-openmp-dev (elsewhere: set CPATH and LIBRARY_PATH to where they are)",
        )
    if "USE_OPENMP" not in done.stdout:
        print("note: this OpenBLAS has threads of its own and is slower here: apt-get install libopenblas-openmp-dev")
    return done.stdout.strip()


def check_cuda(torch_cuda: str | None) -> None:
    """A CUDA torch, and a compiler of the same major version."""
    if torch_cuda is None:
        raise Failure("this torch was built without CUDA", "install a CUDA build of torch, or leave --cuda out")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") if home is None else shutil.which(Path(home) / "bin" / "nvcc")
    if nvcc is None:
        raise Failure("there is no nvcc", f"install the CUDA {torch_cuda} toolkit, and set CUDA_HOME or PATH to it")
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release ([\d.]+)", said)
    if release is None or release[1].split(".")[0] != torch_cuda.split(".")[0]:
        version = release[1] if release else "of unknown version"
        raise Failure(
            f"nvcc is {version} and torch was built with CUDA {torch_cuda}",
            "set CUDA_HOME to a toolkit of that version",
        )


# The source


def fetch_sdist(given: Path | None, folder: Path) -> Path:
    """The source archive, from a file or from the package index, with the pinned hash."""
    if given is not None and not given.is_file():
        raise Failure(f"{given} is not there", "give --sdist an existing file, or leave it out")
    archive = given or download(index_url(), folder)
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SDIST_SHA256:
        raise Failure(
            f"{archive.name} has the sha256 {found}, not {SDIST_SHA256}",
            f"use the {SDIST} that PyPI has served since 2021",
        )
    return archive


def index_url() -> str:
    """The package index that pip uses."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "https://pypi.org/simple"


def download(index: str, folder: Path) -> Path:
    """Fetch the archive; `pip download` would run its setup.py, which fails before it is mended."""
    page_url = index.rstrip("/") + "/minkowskiengine/"
    try:
        with urllib.request.urlopen(page_url, timeout=TIMEOUT_S) as page:
            hrefs = re.findall(r'href="([^"]+)"', page.read().decode())
        links = [urllib.parse.urljoin(page_url, html.unescape(href)) for href in hrefs]
        wanted = [link for link in links if urllib.parse.urlparse(link).path.endswith(f"/{SDIST}")]
        if not wanted:
            raise Failure(f"the package index has no {SDIST}", "download it where you can, and give --sdist FILE")
        with urllib.request.urlopen(wanted[0], timeout=TIMEOUT_S) as file:
            archive = folder / SDIST
            archive.write_bytes(file.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        # An index's address may hold a password, so it is not repeated.
        raise Failure(
            f"the package index does not give {SDIST}: {type(error).__name__}",
            f"look at PIP_INDEX_URL, or download it where you can and give --sdist FILE ({SDIST})",
        ) from None
    return archive


def unpack(archive: Path, folder: Path, device: str) -> Path:
    """The unpacked source with every fix applied."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    source = folder / SDIST.removesuffix(".tar.gz")
    for fix in minkowski_fixes.fixes_for(device):
        fix(source)
        print(f"  fix: {(fix.__doc__ or '').splitlines()[0]}")
    return source


# The build


def build(folder: Path, tag: str, device: str, arguments: argparse.Namespace) -> Path:
    """Fetch, fix, compile, try, and only then put the wheel into its folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{folder} cannot be made: {error.strerror}", "choose another folder with --wheel-dir") from None
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch_name:
        scratch = Path(scratch_name)
        with stage("get the source"):
            archive = fetch_sdist(arguments.sdist, scratch)
        with stage("unpack and fix"):
            source = unpack(archive, scratch, device)
        with stage("get setuptools and ninja for the build"):
            tools = scratch / "tools"
            run([sys.executable, "-m", "pip", "install", "-q", "--target", str(tools), *BUILD_TOOLS])
        with stage("compile"):
            wheel = compile_wheel(source, tools, tag, device, arguments.jobs)
        with stage("try the wheel"):
            unpacked = scratch / "unpacked"
            with zipfile.ZipFile(wheel) as zipped:
                zipped.extractall(unpacked)
            try:
                try_out(device, os.environ | {"PYTHONPATH": str(unpacked)})
            except Failure:
                print(f"  kept for a look: {wheel.replace(folder / f'{wheel.name}.failed')}")
                raise
        return wheel.replace(folder / wheel.name)


def compile_wheel(source: Path, tools: Path, tag: str, device: str, jobs: int) -> Path:
    """Run setup.py with this environment's torch in sight, showing how far ninja is."""
    options = ["--force_cuda" if device == "cuda" else "--cpu_only", "--blas=openblas"]
    command = [sys.executable, "setup.py", "bdist_wheel", *options, "--build-number", tag]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tools), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PATH": os.pathsep.join([str(tools / "bin"), *os.get_exec_path()]),
        "MAX_JOBS": str(jobs),
    }
    lines = []
    with subprocess.Popen(
        command, cwd=source, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if step := re.match(r"\[(\d+/\d+)\].* -o (\S+)", line):
                print(f"  {step[1]} {Path(step[2]).name}", flush=True)
    if process.returncode != 0:
        raise Failure(*compile_failure(lines))
    return next((source / "dist").glob("*.whl"))


def compile_failure(lines: list[str]) -> tuple[str, str]:
    """What to say of a failed compilation, with everything it printed kept in a file."""
    with tempfile.NamedTemporaryFile("w", prefix="minkowski-", suffix=".log", delete=False) as log:
        log.writelines(lines)
    if any("Killed" in line for line in lines):
        return f"the compiler was killed, as happens when memory is short ({log.name})", "run again with --jobs 1"
    errors = [line.strip() for line in lines if re.search(r"\berror: ", line, re.IGNORECASE)]
    first = (errors or lines[-1:] or ["it printed nothing"])[0].strip()
    return f"the build failed: {first}", f"read {log.name}"


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say what goes on and how long it took."""
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def run(command: list[str]) -> None:
    """Run a command that explains its own errors."""
    if subprocess.run(command, check=False).returncode != 0:
        raise Failure(f"this failed: {shlex.join(command)}", "mend what it says above, and run again")


# The proof


def try_out(device: str, environment: Mapping[str, str]) -> None:
    """Run `smoke` in a process of its own, in a folder that holds no package."""
    command = [sys.executable, str(Path(__file__).resolve()), "--smoke", device]
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(command, env=environment, cwd=empty, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise Failure(f"the package was built but does not work: {said[0]}", f"run: {shlex.join(command)}")
    print(f"  {done.stdout.strip()}")


def smoke(device: str) -> int:
    """Compare a sparse convolution and its gradients with torch's dense one, on a small random scene."""
    import MinkowskiEngine
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print("no GPU here, so only the CPU's half of the build is tried;", end=" ")
        device = "cpu"

    generator = torch.Generator().manual_seed(0)
    occupied = torch.rand(2, 8, 8, 8, generator=generator) < 0.2
    coordinates = occupied.nonzero().int().contiguous()
    feats = torch.randn(len(coordinates), 4, generator=generator).to(device).requires_grad_()
    layer = MinkowskiEngine.MinkowskiConvolution(4, 6, kernel_size=3, dimension=3).to(device)
    ours = layer(MinkowskiEngine.SparseTensor(feats, coordinates=coordinates.to(device)))
    # The rows of a kernel count x fastest, then y, then z.
    dense_kernel = layer.kernel.detach().reshape(3, 3, 3, 4, 6).permute(4, 3, 2, 1, 0).clone().requires_grad_()
    dense_feats = feats.detach().clone().requires_grad_()
    batch, x, y, z = coordinates.long().to(device).unbind(1)
    volume = torch.zeros(2, 8, 8, 8, 4, device=device).index_put((batch, x, y, z), dense_feats)
    dense = torch.nn.functional.conv3d(volume.permute(0, 4, 1, 2, 3), dense_kernel, padding=1)
    batch, x, y, z = ours.C.long().unbind(1)
    theirs = dense.permute(0, 2, 3, 4, 1)[batch, x, y, z]
    upstream = torch.randn(theirs.shape, generator=generator).to(device)
    our_grads = torch.autograd.grad(ours.F, (feats, layer.kernel), upstream)
    their_grads = torch.autograd.grad(theirs, (dense_feats, dense_kernel), upstream)
    kernel_grad = their_grads[1].permute(4, 3, 2, 1, 0).reshape(27, 4, 6)
    pairs = [(ours.F, theirs), (our_grads[0], their_grads[0]), (our_grads[1], kernel_grad)]
    apart = [float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in pairs]
    if max(apart) > 1e-4:
        raise AssertionError(f"sparse and dense convolution differ (output, gradients): {apart}")
    print(f"{len(coordinates)} voxels: output and gradients agree with conv3d within {max(apart):.0e}, relative")
    return 0


if __name__ == "__main__":
    sys.exit(main())
