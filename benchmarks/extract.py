"""How fast is extraction, and what bounds it? Ours and a naive transformers script, in turns, on the same cores.

    python benchmarks/extract.py [--drive FOLDER --dataset pandaset] [--sizes S,B] [--frames 4] [--work FOLDER]

For DINOv2 of random weights (ViT-S/14, ViT-B/14) at 224x448, two layers: `benchmarks/naive_extract.py` in float32 (one
process of one thread for each core, which is faster than one process with as many threads), then `hilda-cache extract`
in float32, and in bfloat16 where the processor has it. Without --drive, a synthetic drive with images of 1600x900 is
made. Start-up and loading are not counted on either side.

The ceiling is the best torch.mm of each precision while all cores do the same. FLOPs of a ViT count 2 for each
multiply-add. "CPU" is processor time, which other programs on the machine disturb little; wall times are only worth
something where it is idle. Also printed: what `hilda-cache plan` said before, the memory of all processes together at
its highest (RSS, so shared libraries count once for each), and the cosine of stored features to the naive script's. The
script looks points up at whole pixels of an upsampled map, after another library's resampling; so its features differ
from ours in float32 already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from hilda_cache.teachers.precision import has_fast_bfloat16
from hilda_cache.teachers.random_vit import save_random_dinov2
from hilda_schema import open_cache

SIZES = {"S": (384, 6), "B": (768, 12)}
LAYERS, TOKENS, PATCH_VALUES = 12, 16 * 32 + 1, 3 * 14 * 14
PROCESSOR = {
    "image_processor_type": "BitImageProcessor", "size": {"height": 224, "width": 448}, "resample": 3,
    "do_resize": True, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_convert_rgb": True,
}  # fmt: skip
CEILING = """
import sys, time, torch
torch.set_num_threads(1)
best = 0
for rows, inner, columns in ((1024, 1024, 1024), (513, 384, 1536), (3078, 768, 3072)):
    a, b = (torch.randn(size).to(getattr(torch, sys.argv[1])) for size in ((rows, inner), (inner, columns)))
    for _ in range(12):
        start = time.process_time()
        torch.mm(a, b)
        best = max(best, 2 * rows * inner * columns / (time.process_time() - start))
print(best)
"""
CLI = "from hilda_cache.cli import main; main()"


def main() -> None:
    """Prepare, run in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drive", type=Path)
    parser.add_argument("--dataset", default="nuscenes")
    parser.add_argument("--sizes", default="S,B")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path("extract-out"))
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    drive = arguments.drive or work / "drive"
    if not drive.exists():
        sizes = ["--scenes", "1", "--frames", str(arguments.frames), "--image-size", "900x1600"]
        subprocess.run([sys.executable, "-c", CLI, "synth", str(drive), *sizes], check=True)
    precisions = ["float32"] + (["bfloat16"] if has_fast_bfloat16("cpu") else [])
    cores = len(os.sched_getaffinity(0))
    ceiling = {precision: measure_ceiling(precision, cores) for precision in precisions}
    for precision, rate in ceiling.items():
        print(f"ceiling {precision}: {rate / 1e9:.0f} GFLOP/s of a core, {cores} cores at once")
    for size in arguments.sizes.split(","):
        hidden, heads = SIZES[size]
        vit = work / f"vit-{size}"
        if not vit.exists():
            save_random_dinov2(vit, seed=0, hidden=hidden, heads=heads, layers=LAYERS)
            (vit / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        compare(size, vit, drive, arguments, precisions, ceiling, cores)


def compare(
    size: str, vit: Path, drive: Path, arguments: argparse.Namespace, precisions: list[str],
    ceiling: dict[str, float], cores: int,
) -> None:  # fmt: skip
    """One model, all ways."""
    flops = vit_flops(SIZES[size][0])
    print(f"\nViT-{size}/14, 224x448, {flops / 1e9:.1f} GFLOP an image, {arguments.frames} frames of 6 images")
    heads = ("images/s", "CPU s/image", "ViT CPU s", "of ceiling", "beside ViT", "memory MB")
    print(f"{'':18}" + "".join(f"{head:>12}" for head in heads))
    naive = arguments.work / "naive"
    made, memory = run_naive(vit, drive, naive, arguments, cores)
    base = row("naive float32", made, made["stages_cpu_s"], "vit", flops / ceiling["float32"], memory)
    for precision in precisions:
        store = arguments.work / f"store-{precision}"
        shutil.rmtree(store, ignore_errors=True)
        words = [str(drive), "-d", arguments.dataset, "-t", f"vit={vit}", "--layers=-2,-1", "-o", str(store)]
        words += ["--frames", f"0:{arguments.frames}", "--part-frames", "1", "--precision", precision, "--json"]
        ((plan,), _) = run([[sys.executable, "-c", CLI, "plan", *words]])
        ((made,), memory) = run([[sys.executable, "-c", CLI, "extract", *words]])
        spent = made["time"]
        cpu_s = sum(spent["stages_cpu_s"].values())
        totals = {"images": arguments.frames * 6, "wall_s": spent["wall_s"], "cpu_s": cpu_s}
        ours = row(f"ours {precision}", totals, spent["stages_cpu_s"], "teach", flops / ceiling[precision], memory)
        tell(base, ours, spent, plan, made["totals"]["bytes"], agreement(store, naive))


def run_naive(
    vit: Path, drive: Path, out: Path, arguments: argparse.Namespace, cores: int
) -> tuple[dict[str, Any], float]:
    """The script, in a process for each core; its times, and memory."""
    shutil.rmtree(out, ignore_errors=True)
    script = [sys.executable, str(Path(__file__).with_name("naive_extract.py")), str(drive), arguments.dataset]
    words = [*script, str(vit), str(arguments.frames), str(out)]
    each, memory = run([[*words, str(first), str(cores)] for first in range(cores)])
    stages = {name: sum(one["stages_cpu_s"][name] for one in each) for name in each[0]["stages_cpu_s"]}
    images, cpu_s = (sum(one[name] for one in each) for name in ("images", "cpu_s"))
    wall_s = max(one["wall_s"] for one in each)
    return {"images": images, "wall_s": wall_s, "cpu_s": cpu_s, "stages_cpu_s": stages}, memory


def row(
    name: str, made: dict[str, Any], stages: dict[str, float], vit: str, ideal_s: float, memory: float
) -> tuple[float, float]:
    """Print one way; its images per second, by wall time and by processor time."""
    images = made["images"]
    cpu_s, vit_s = made["cpu_s"] / images, stages[vit] / images
    print(
        f"{name:18}{images / made['wall_s']:12.2f}{cpu_s:12.3f}{vit_s:12.3f}{ideal_s / vit_s:12.0%}"
        f"{1 - vit_s / cpu_s:12.0%}{memory / 1e6:12.0f}"
    )
    print(
        "    CPU ms an image: "
        + ", ".join(f"{name} {s / images * 1000:.1f}" for name, s in stages.items() if s > 0.001)
    )
    return images / made["wall_s"], 1 / cpu_s


def tell(
    base: tuple[float, float], ours: tuple[float, float], spent: dict[str, Any], plan: dict[str, Any], size: int,
    cosines: tuple[float, float],
) -> None:  # fmt: skip
    """Print how ours compares, and how the plan did."""
    print(f"    against the script: {ours[0] / base[0]:.2f} by wall time, {ours[1] / base[1]:.2f} by processor time")
    said_b, said_s = plan["bytes_by_encoding"][plan["encoding"]], plan["hours"] * 3600
    print(f"    plan: {said_b / 1e6:.2f} MB, written {size / 1e6:.2f} ({said_b / size - 1:+.1%})")
    said = f"{said_s:.1f} s, taken {spent['wall_s']:.1f} ({said_s / spent['wall_s'] - 1:+.0%})"
    print(f"    plan: {said}; bound by {spent['bound_by']}")
    print(f"    cosine to the script's features: {cosines[0]:.5f}, less each channel's mean {cosines[1]:.5f}")


def measure_ceiling(precision: str, cores: int) -> float:
    """FLOP/s of a core while all are busy: of the slowest."""
    command = [sys.executable, "-c", CEILING, precision]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(cores)]
    return min(float(process.communicate()[0]) for process in running)


def vit_flops(width: int) -> float:
    """FLOPs of one image: linear layers, attention, patches."""
    return LAYERS * (24 * width**2 * TOKENS + 4 * TOKENS**2 * width) + 2 * PATCH_VALUES * width * (TOKENS - 1)


def environment() -> dict[str, str]:
    """Of a process that computes with one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(commands: list[list[str]]) -> tuple[list[dict[str, Any]], float]:
    """Run commands at a time; the JSON that each prints, and the most memory that they had, with all they started."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    peaks = [0]

    def watch() -> None:
        while any(process.poll() is None for process in processes):
            peaks.append(sum(memory_of(process.pid) for process in processes))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    results = [process.communicate() for process in processes]
    watcher.join()
    for process, (_, said) in zip(processes, results, strict=True):
        if process.returncode:
            raise SystemExit(f"{process.args} failed:\n{said}")
    return [json.loads(out) for out, _ in results], max(peaks)


def memory_of(pid: int) -> int:
    """RSS of a process and of all that it has started."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        return sum(each.memory_info().rss for each in family)
    except psutil.Error:  # one of them has just ended
        return 0


def agreement(store: Path, naive: Path) -> tuple[float, float]:
    """Mean cosine of stored features to the script's: as they are, and less the means of an image's channels."""
    cache, found = open_cache(store), []
    layers = [layer.name for layer in cache.manifest.recipe.teachers[0].layers]
    for frame in cache:
        for number, camera in enumerate(frame.camera_names):
            name = f"{frame.key.frame}_{camera}"
            mine, points = frame.pairs.camera == number, np.load(naive / f"{name}_points.npy")
            both, a, b = np.intersect1d(frame.pairs.point[mine], points, return_indices=True)
            assert len(both) > 0.999 * max(mine.sum(), len(points)), f"{name}: other points"
            for layer, theirs in zip(layers, np.load(naive / f"{name}.npy"), strict=True):
                x = torch.from_numpy(frame.point_features("vit", layer=layer)[mine][a])
                y = torch.from_numpy(theirs[b])
                pairs = ((x, y), (x - y.mean(0), y - y.mean(0)))
                found.append([torch.nn.functional.cosine_similarity(*pair).mean().item() for pair in pairs])
    plain, centred = np.mean(found, axis=0)
    return float(plain), float(centred)


if __name__ == "__main__":
    main()
