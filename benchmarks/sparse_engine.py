"""Is our sparse engine fast? Against MinkowskiEngine, and against the matrix products alone, on real sweeps.

    python benchmarks/sparse_engine.py --samples FOLDER [--sweeps NAME ...] [--depths 18 34] [--threads 1 2]

FOLDER holds nuscenes_keyframe/, pandaset/ and kitti_raw/; those that are absent are left out, and so are engines that
are not installed. Every number of threads is a process of its own, in which the engines take turns on one sweep, ours
and MinkowskiEngine with the same weights: medians over the repeats of CPU time, which on a shared machine wavers less
than the wall clock (of wall time with several threads), kernel maps of a new sweep included. On a processor with
bfloat16 arithmetic ours is also timed under bfloat16 autocast. The floor is the same matrix products in float32 with
nothing around them, always on the same few buffers, which the processor's caches hold: no gather, no sum, no
normalisation. The heap is set as in `hilda-train fit`, for all engines. Peak memory is that of one forward and backward
pass in a fresh process, less what the process held before.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from hilda_train.data.voxelise import VoxelGrid, voxelise
from hilda_train.heap import Heap
from hilda_train.students.minkunet import MinkUNet
from hilda_train.students.sparse import Geometry, SparseTensor, StridedConv, SubmanifoldConv, TransposedConv

SWEEPS = {"nuscenes_keyframe": "nuscenes", "pandaset": "pandaset", "kitti_raw": "kitti_raw"}  # folder: dataset
CHANNELS = 4
BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
Product = tuple[int, int, int]  # rows, Cin, Cout


def main() -> None:
    """Start a process for every measurement and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--depths", type=int, nargs="+", default=[18, 34])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--inner", choices=["times", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--backend", default="native", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner == "times":
        measure_times(arguments)
    elif arguments.inner == "memory":
        measure_memory(arguments)
    else:
        sweeps = load_sweeps(arguments.samples, arguments.sweeps)
        missing = {"minkowski", "spconv"} - set(backends())
        print("".join(f"{name} is not installed and left out\n" for name in sorted(missing)), end="")
        print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; {describe(sweeps)}")
        for threads in arguments.threads:
            call(arguments, "times", threads, "--depths", *map(str, arguments.depths), "--sweeps", *sweeps)
        print(f"\npeak MB, forward+backward       {'  '.join(f'{name:>18}' for name in sweeps)}")
        for depth in arguments.depths:
            for backend in backends():
                which = ("--depths", str(depth), "--backend", backend)
                cells = [call(arguments, "memory", 1, *which, "--sweeps", name) for name in sweeps]
                print(f"MinkUNet{depth} {backend:20} {'  '.join(f'{cell:>18}' for cell in cells)}", flush=True)


def call(arguments: argparse.Namespace, inner: str, threads: int, *more: str) -> str:
    """Run one measurement in a process with its own number of threads; what a measurement of memory prints."""
    words = [sys.executable, __file__, "--samples", str(arguments.samples), "--inner", inner]
    words += ["--repeats", str(arguments.repeats), "--threads", str(threads), *more]
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    output = subprocess.PIPE if inner == "memory" else None
    done = subprocess.run(words, env=os.environ | limits, check=True, stdout=output, text=True)
    return (done.stdout or "").strip()


def backends() -> list[str]:
    """The engines that are installed."""
    packages = {"minkowski": "MinkowskiEngine", "spconv": "spconv"}
    return ["native", *(name for name, package in packages.items() if find_spec(package))]


def load_sweeps(samples: Path, names: Sequence[str]) -> dict[str, SparseTensor]:
    """The first sweep of each dataset on a grid of 0.1 m."""
    from hilda_cache.drives import open_drive

    sweeps = {}
    for folder in names:
        if (samples / folder).is_dir():
            drive = open_drive(SWEEPS[folder], samples / folder)
            xyz_m = torch.tensor(drive.read(drive.frames(drive.scenes()[0])[0]).points.xyz_m)
            feats = torch.randn(len(xyz_m), CHANNELS, generator=torch.Generator().manual_seed(0))
            voxels = voxelise(xyz_m, feats, VoxelGrid()).voxels
            sweeps[folder] = SparseTensor(voxels.feats, Geometry(voxels.coords, 1))
    return sweeps


def describe(sweeps: dict[str, SparseTensor]) -> str:
    """Names and sizes."""
    return ", ".join(f"{name} {len(x.feats)} voxels" for name, x in sweeps.items())


# --- time ------------------------------------------------------------------------------------------------------------


def measure_times(arguments: argparse.Namespace) -> None:
    """Print a line for every network, sweep and direction."""
    Heap()
    (threads,) = arguments.threads
    names = [name for name in backends() if threads == 1 or name != "spconv"]
    columns = "".join(f"{name:>12}" for name in ("floor ms", *names, *(["bfloat16"] if BFLOAT16 else [])))
    print(f"\n{f'{threads} thread(s)':46}{columns}   native to each other column")
    for depth in arguments.depths:
        networks = {name: network_of(depth, name) for name in names}
        for name, sweep in load_sweeps(arguments.samples, arguments.sweeps).items():
            compare(f"MinkUNet{depth} {name}", networks, sweep, arguments.repeats)


def compare(title: str, networks: dict[str, MinkUNet], sweep: SparseTensor, repeats: int) -> None:
    """Let the engines and the floor take turns."""
    products, maps_ms = products_of(networks["native"], sweep), maps_time(sweep)
    for backward in (False, True):
        jobs = {"floor": floor(products, backward)}
        jobs |= {name: step_of(network, name, sweep, backward) for name, network in networks.items()}
        if BFLOAT16:
            jobs["bfloat16"] = torch.autocast("cpu", torch.bfloat16)(jobs["native"])
        ms = take_turns(jobs, repeats)
        ratios = ", ".join(f"{ms['native'] / each:.2f}" for name, each in ms.items() if name != "native")
        direction = "forward+backward" if backward else "forward"
        maps = f"; kernel maps {100 * maps_ms / ms['native']:.1f} %" if backward else ""
        print(
            f"{title:28} {direction:17}{''.join(f'{each:12.0f}' for each in ms.values())}   {ratios}{maps}", flush=True
        )
    if "minkowski" in networks:
        print(f"{'':28} against minkowski: {differences(networks, sweep)}", flush=True)
    if BFLOAT16:
        ms = unseen(networks["native"], sweep)
        print(f"{'':28} bfloat16, forward+backward of sweeps never seen: {ms:.0f} ms", flush=True)


def unseen(network: MinkUNet, sweep: SparseTensor) -> float:
    """Milliseconds in bfloat16 when every sweep is another one: 2 % of the voxels are left out, anew each time.

    In this precision oneDNN prepares a program for each new shape of a product, and every sweep has shapes of its own.
    """
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        kept = torch.rand(len(sweep.feats), generator=generator) > 0.02
        some = SparseTensor(sweep.feats[kept], Geometry(sweep.coords[kept], 1))
        step_of(network, "native", some, backward=True)()

    return take_turns({"unseen": torch.autocast("cpu", torch.bfloat16)(step)}, 3)["unseen"]


def take_turns(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of each job, wall milliseconds where several threads share the work."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            began = clock()
            job()
            if turn:  # the first one warms up
                taken[name].append(1e3 * (clock() - began))
    return {name: float(np.median(each)) for name, each in taken.items()}


def network_of(depth: int, backend: str) -> MinkUNet:
    """A MinkUNet with weights that do not depend on the engine."""
    torch.manual_seed(0)
    if backend == "spconv":  # its own weights: only its time counts
        from spconv_engine import ENGINE

        with patch("hilda_train.students.minkunet.engine", return_value=ENGINE):
            return MinkUNet(depth, CHANNELS)
    state = MinkUNet(depth, CHANNELS).state_dict()
    network = MinkUNet(depth, CHANNELS, backend=backend)
    network.load_state_dict(state)
    return network


def step_of(network: MinkUNet, backend: str, sweep: SparseTensor, backward: bool) -> Callable[[], object]:
    """One pass over a new sweep: its geometry is not known from the last one."""

    def step() -> None:
        fresh = SparseTensor(sweep.feats, Geometry(sweep.coords, 1)) if backend == "native" else sweep
        with torch.set_grad_enabled(backward):
            out = network.decode(network.engine.enter(fresh))["block8"]
            if backward:
                feats = {"native": "feats", "minkowski": "F", "spconv": "features"}[backend]
                getattr(out, feats).square().mean().backward()

    return step


def maps_time(sweep: SparseTensor) -> float:
    """Milliseconds to build all kernel maps of a MinkUNet."""

    def build() -> None:
        geometry = Geometry(sweep.coords, 1)
        for stride in (1, 2, 4, 8, 16):
            geometry.kernel_map("submanifold", stride, 3)
        for stride in (1, 2, 4, 8):
            geometry.kernel_map("strided", stride, 2)

    return take_turns({"maps": build}, 5)["maps"]


def products_of(network: MinkUNet, sweep: SparseTensor) -> list[Product]:
    """The matrix products of one forward pass."""
    found: list[Product] = []

    def note(layer: nn.Module, inputs: tuple[SparseTensor], _: object) -> None:
        (x,) = inputs
        channels = layer.in_channels, layer.out_channels
        if layer.kernel_size == 1:
            found.append((len(x.feats), *channels))
            return
        kind = "submanifold" if isinstance(layer, SubmanifoldConv) else "strided"
        stride = x.stride // 2 if isinstance(layer, TransposedConv) else x.stride
        kernel_map = x.geometry.kernel_map(kind, stride, layer.kernel_size)
        if kernel_map.identity is not None:
            found.append((kernel_map.n_outputs, *channels))
        found.extend((count, *channels) for block in kernel_map.blocks for _, count in block.offsets)

    kinds = SubmanifoldConv | StridedConv | TransposedConv
    hooks = [each.register_forward_hook(note) for each in network.modules() if isinstance(each, kinds)]
    with torch.no_grad():
        network.decode(sweep)
    for hook in hooks:
        hook.remove()
    return found


def floor(products: list[Product], backward: bool) -> Callable[[], object]:
    """The products, and with `backward` the two that each has in its gradients, by torch's default product."""
    rows, cin, cout = (max(column) for column in zip(*products, strict=True))
    inputs, outputs, weights = (torch.randn(size) for size in (rows * cin, rows * cout, cin * cout))
    grad_inputs, grad_outputs, grad_weights = (torch.randn_like(each) for each in (inputs, outputs, weights))

    def multiply() -> None:
        for n, i, o in products:
            x, w = inputs[: n * i].view(n, i), weights[: i * o].view(i, o)
            torch.mm(x, w, out=outputs[: n * o].view(n, o))
            if backward:
                y = grad_outputs[: n * o].view(n, o)
                torch.mm(y, w.T, out=grad_inputs[: n * i].view(n, i))
                torch.mm(x.T, y, out=grad_weights[: i * o].view(i, o))

    return multiply


def differences(networks: dict[str, MinkUNet], sweep: SparseTensor) -> str:
    """Difference of outputs and of gradients between the engines, relative to the norm of MinkowskiEngine's."""
    theirs = results_of(networks["minkowski"], sweep)
    worst = apart(results_of(networks["native"], sweep), theirs)
    said = f"outputs {worst[0]:.1e}, gradients at most {max(worst[1:]):.1e}"
    if BFLOAT16:
        with torch.autocast("cpu", torch.bfloat16):
            rounded = apart(results_of(networks["native"], sweep), theirs)
        said += f"; in bfloat16 outputs {rounded[0]:.1e}"
    return said


def results_of(network: MinkUNet, sweep: SparseTensor) -> list[torch.Tensor]:
    """The output and all gradients of one step."""
    network.zero_grad()
    x = network.engine.leave(network.decode(network.engine.enter(sweep))["block8"], sweep)
    x.feats.float().square().mean().backward()
    return [x.feats.detach().float(), *(parameter.grad for parameter in network.parameters())]


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> list[float]:
    """Relative distance of each."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True)]


# --- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(arguments: argparse.Namespace) -> None:
    """Print what one pass adds to this process, at most."""
    (depth,) = arguments.depths
    sweep = load_sweeps(arguments.samples, arguments.sweeps)[arguments.sweeps[0]]
    network = network_of(depth, arguments.backend)
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
    before = resident_mb("VmRSS")
    step_of(network, arguments.backend, sweep, backward=True)()
    print(round(resident_mb("VmHWM") - before))


def resident_mb(field: str) -> float:
    """Of this process: "VmRSS" now, "VmHWM" at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    main()
