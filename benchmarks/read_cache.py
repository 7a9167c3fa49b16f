"""How fast are token grids read in random order? Our reader, and the others on the same bytes, in one run.

    python benchmarks/read_cache.py [--work FOLDER] [--frames 64] [--rounds 5]

Writes a cache of nuScenes' size (six cameras, four layers of 16 x 32 tokens with 384 channels: 9.4 MB a frame, float16;
random values: nothing here compresses), and the same tokens as a memory map, as one safetensors file a frame, as HDF5
and as a WebDataset tar where h5py and webdataset are installed; part by part, so that no form gets better pages of the
page cache than another. Then, page cache warm:

- Every round each reader reads every frame once, in the round's own random order (the tar in its own: it knows no
  other); the readers take turns in one process. "to map" is to the memory map of the same round, which is copied into a
  fresh array as all others are: every byte is touched, none is checked. Medians over the rounds.
- Each reader alone in new processes, one and then two at once, each reading every frame twice: frames/s together, and
  what one process holds at most beyond what it held when the reader was open (mapped files count).
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import zarr
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hilda_schema.content import FrameContent, Pairs, PartContent
from hilda_schema.keys import Key
from hilda_schema.manifest import (
    DatasetInfo,
    EncodingInfo,
    LayerInfo,
    ProjectionInfo,
    Recipe,
    SelectionInfo,
    TeacherInfo,
)
from hilda_schema.reader import open_cache
from hilda_schema.writer import finish_store, start_store, write_part

LAYERS, CAMERAS, HEIGHT, WIDTH, CHANNELS, PART_FRAMES = ("9", "10", "11", "12"), 6, 16, 32, 384, 16
GRID = (CAMERAS, HEIGHT, WIDTH, CHANNELS)
FRAME_MB = len(LAYERS) * int(np.prod(GRID)) * 2 / 1e6
Tokens = NDArray[np.float16]  # (layers, cameras, H, W, C)
Reader = Callable[[int], Iterable[NDArray[Any]]]  # frame -> its layers, all of them read


def main() -> None:
    """Write what is missing, read in turns and then alone, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("read-out"))
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    work, frames = arguments.work, arguments.frames // PART_FRAMES * PART_FRAMES
    if not (work / "cache" / "frames.parquet").exists():
        write_all(work, frames)
    names = [name for name, (_, _, needs) in FORMS.items() if not needs or find_spec(needs)]
    times = in_turns(names, work, frames, arguments.rounds)
    print(f"{frames} frames of {FRAME_MB:.1f} MB")
    print(
        f"{'':25} {'files':>6} {'MB':>6} {'frames/s':>9} {'MB/s':>7} {'to map':>7}"
        f" {'alone':>7} {'2 procs':>8} {'peak MB':>8}"
    )
    for name in names:
        ratio = statistics.median(base / own for base, own in zip(times["memory map"], times[name], strict=True))
        speed = frames / statistics.median(times[name])
        count, size = extent(work / FORMS[name][1])
        one, peak = alone(name, work, frames, 1)
        two, _ = alone(name, work, frames, 2)
        print(
            f"{name:25} {count:6} {size:6.0f} {speed:9.0f} {speed * FRAME_MB:7.0f} {ratio:7.2f}"
            f" {one:7.0f} {two:8.0f} {peak:8.0f}"
        )


def in_turns(names: list[str], work: Path, frames: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every reader."""
    readers = {name: FORMS[name][0](work) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    order = np.arange(frames)
    for name, read in readers.items():  # once to warm the page cache, and to see that all read the same
        compare(name, read, frames)
    for number in range(rounds):
        np.random.default_rng(number).shuffle(order)
        for name, read in readers.items():
            start = time.perf_counter()
            for frame in order:
                read(int(frame))
            times[name].append(time.perf_counter() - start)
    return times


def alone(name: str, work: Path, frames: int, processes: int) -> tuple[float, float]:
    """Frames/s of so many new processes together, and the largest peak of one of them in MB."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        barrier = manager.Barrier(processes)
        done = [pool.submit(read_alone, name, work, frames, number, barrier) for number in range(processes)]
        found = [each.result() for each in done]
    seconds = max(end for _, end, _ in found) - min(begin for begin, _, _ in found)
    return 2 * frames * processes / seconds, max(peak for _, _, peak in found)


def read_alone(name: str, work: Path, frames: int, seed: int, barrier: Any) -> tuple[float, float, float]:
    """When reading every frame twice began and ended, and the peak of resident memory in MB."""
    read = FORMS[name][0](work)
    before = resident_mb("VmRSS")
    for frame in range(frames):
        read(frame)
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(frames), 2))
    barrier.wait()
    begin = time.monotonic()
    for frame in order:
        read(int(frame))
    return begin, time.monotonic(), resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    """VmRSS (now) or VmHWM (most so far) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1e3


def extent(path: Path) -> tuple[int, float]:
    """Files and MB of a file or folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return len(files), sum(each.stat().st_size for each in files) / 1e6


def tokens_of(frame: int) -> Tokens:
    """A frame's tokens."""
    return np.random.default_rng(frame).standard_normal((len(LAYERS), *GRID), np.float32).astype(np.float16)


def write_all(work: Path, frames: int) -> None:
    """The same tokens in every form, part by part."""
    (work / "safetensors").mkdir(parents=True, exist_ok=True)
    recipe = cache_recipe()
    start_store(work / "cache", recipe, frames // PART_FRAMES)
    shape, entries = (frames, len(LAYERS), *GRID), []
    with (work / "tokens.npy").open("wb") as flat, tarfile.open(work / "tokens.tar", "w") as tar:
        np.lib.format.write_array_header_1_0(flat, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for first in range(0, frames, PART_FRAMES):
            part = range(first, first + PART_FRAMES)
            for frame in part:
                tokens = tokens_of(frame)
                flat.write(tokens)
                save_file(dict(zip(LAYERS, tokens, strict=True)), work / "safetensors" / f"{frame}.safetensors")
                for layer, grid in zip(LAYERS, tokens, strict=True):
                    add_array(tar, f"{frame:06d}.{layer}.npy", grid)
                if find_spec("h5py"):
                    add_to_hdf5(work / "tokens.h5", shape, frame, tokens)
            contents = tuple(content(frame) for frame in part)
            sizes = dict.fromkeys(recipe.dataset.cameras, (1600, 900))
            made = PartContent(f"part-{first}", "scene", sizes, contents, {}, "0" * 64)
            entries.append(write_part(work / "cache", recipe, made))
    finish_store(work / "cache", recipe, entries)


def add_array(tar: tarfile.TarFile, name: str, array: NDArray[Any]) -> None:
    """One .npy file in a tar."""
    np.save(data := io.BytesIO(), array)
    info = tarfile.TarInfo(name)
    info.size = data.tell()
    data.seek(0)
    tar.addfile(info, data)


def add_to_hdf5(path: Path, shape: tuple[int, ...], frame: int, tokens: Tokens) -> None:
    """One frame of a contiguous dataset."""
    import h5py

    with h5py.File(path, "a") as file:
        file.require_dataset("tokens", shape, np.float16)[frame] = tokens


def cache_recipe() -> Recipe:
    """Of a cache with one teacher."""
    layers = tuple(LayerInfo(name=name, channels=CHANNELS, height=HEIGHT, width=WIDTH) for name in LAYERS)
    teacher = TeacherInfo(
        name="vit", source="random", architecture="none", weights_sha256="", norm="pre", image_height_px=224,
        image_width_px=448, mean=(0, 0, 0), std=(1, 1, 1), resize="none", precision="float32", precision_reason="",
        layers=layers, global_width=0,
    )  # fmt: skip
    cameras = tuple(f"CAM{camera}" for camera in range(CAMERAS))
    return Recipe(
        dataset=DatasetInfo(name="random", cameras=cameras), selection=SelectionInfo(), teachers=(teacher,),
        projection=ProjectionInfo(occlusion="none", ground="none"), encoding=EncodingInfo(), part_frames=PART_FRAMES,
    )  # fmt: skip


def content(frame: int) -> FrameContent:
    """A frame with its tokens, one point and no pair: tokens are what is measured."""
    nothing = np.zeros(0)
    pairs = Pairs(
        nothing.astype(np.uint32), nothing.astype(np.uint8), nothing.reshape(0, 2), nothing.astype(np.float32),
        nothing.astype(bool),
    )  # fmt: skip
    tokens = {("vit", layer): each.astype(np.float32) for layer, each in zip(LAYERS, tokens_of(frame), strict=True)}
    return FrameContent(
        Key("random", "scene", f"{frame:06d}"), frame, np.eye(4), np.eye(4), np.zeros((1, 3), np.float32),
        np.zeros(1, np.float32), np.zeros(1, bool), pairs, tokens, {}, position=frame,
    )  # fmt: skip


def memory_map(work: Path) -> Reader:
    """A copy out of one memory map: what the others are held against."""
    flat = np.load(work / "tokens.npy", mmap_mode="r")
    return lambda frame: np.array(flat[frame])


def ours(work: Path) -> Reader:
    """Every checksum verified, as always."""
    cache = open_cache(work / "cache")

    def read(frame: int) -> list[NDArray[Any]]:
        opened = cache[frame]
        return [opened.stored_tokens("vit", layer).values for layer in LAYERS]

    return read


def ours_unchecked(work: Path) -> Reader:
    """With the checksums not looked at, which no option allows."""
    read = ours(work)

    def unchecked(frame: int) -> Iterable[NDArray[Any]]:
        with patch("hilda_schema.part.damaged_chunks", lambda *_: []):
            return read(frame)

    return unchecked


def parts_of(work: Path) -> list[Path]:
    """The parts' folders by their first frame."""
    folders = [path for path in (work / "cache" / "parts").iterdir() if path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))


def zarr_python(work: Path) -> Reader:
    """The same store by zarr-python."""
    arrays = [
        [zarr.open_array(part / "vit" / f"layer_{k}" / "tokens", mode="r") for k in LAYERS] for part in parts_of(work)
    ]
    return lambda frame: [each[frame % PART_FRAMES] for each in arrays[frame // PART_FRAMES]]


def by_tensorstore(work: Path) -> Reader:
    """The same store by tensorstore."""
    import tensorstore

    def opened(path: Path) -> Any:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        return tensorstore.open(spec, read=True).result()

    arrays = [[opened(part / "vit" / f"layer_{k}" / "tokens") for k in LAYERS] for part in parts_of(work)]
    return lambda frame: [
        each.result() for each in [array[frame % PART_FRAMES].read() for array in arrays[frame // PART_FRAMES]]
    ]


def safetensors(work: Path) -> Reader:
    """One file a frame."""

    def read(frame: int) -> list[NDArray[Any]]:
        file = load_file(work / "safetensors" / f"{frame}.safetensors")
        return [file[layer] for layer in LAYERS]

    return read


def hdf5(work: Path) -> Reader:
    """One contiguous dataset."""
    import h5py

    tokens = h5py.File(work / "tokens.h5")["tokens"]
    return lambda frame: tokens[frame]


def webdataset(work: Path) -> Reader:
    """The tar's samples, again and again."""
    import webdataset as wds

    def forever() -> Iterator[list[NDArray[Any]]]:
        while True:
            for sample in wds.WebDataset(str(work / "tokens.tar"), shardshuffle=False).decode():
                yield [sample[f"{layer}.npy"] for layer in LAYERS]

    samples = forever()
    return lambda _frame: next(samples)


FORMS: dict[str, tuple[Callable[[Path], Reader], str, str]] = {  # name -> opener, what it reads, package
    "memory map": (memory_map, "tokens.npy", ""),
    "hilda": (ours, "cache", ""),
    "hilda, checksums off": (ours_unchecked, "cache", ""),
    "zarr-python": (zarr_python, "cache", ""),
    "tensorstore": (by_tensorstore, "cache", "tensorstore"),
    "HDF5, contiguous": (hdf5, "tokens.h5", "h5py"),
    "safetensors": (safetensors, "safetensors", ""),
    "WebDataset, in its order": (webdataset, "tokens.tar", "webdataset"),
}


def compare(name: str, read: Reader, frames: int) -> None:
    """Refuse a reader that reads something else."""
    for frame in range(frames):
        found = list(read(frame))
        if frame % PART_FRAMES == 0 and not np.array_equal(np.stack(found), tokens_of(frame)):
            raise SystemExit(f"{name} reads something else at frame {frame}; was it made with other --frames?")


if __name__ == "__main__":
    main()
