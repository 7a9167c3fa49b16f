"""How fast are token grids read in random order? Our reader, and the others on the same bytes, in one run.

    python benchmarks/read_cache.py [--work FOLDER] [--frames 64] [--rounds 5]

Writes a cache of nuScenes' size (six cameras, four layers of 16 x 32 tokens with 384 channels: 9.4 MB a frame, float16;
random values: nothing here compresses), and the same tokens as a memory map, as one safetensors file a frame, as HDF5
where h5py is installed, and as a WebDataset tar. Every round each reader reads every frame once, in the round's own
random order (the tar in its own: it knows no other), page cache warm; the readers take turns. A ratio is to the memory
map of the same round, copied into a fresh array as all others are; medians over the rounds.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
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
Tokens = NDArray[np.float16]  # (layers, cameras, H, W, C)
Reader = Callable[[int], Iterable[NDArray[np.float16]]]  # frame -> its layers, all of them read


def main() -> None:
    """Write what is missing, read in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("read-out"))
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    work, frames = arguments.work, arguments.frames // PART_FRAMES * PART_FRAMES
    if not (work / "cache" / "frames.parquet").exists():
        write_all(work, frames)
    readers = {"memory map": memory_map(work, frames), **ours(work), **zarr_python(work), **others(work)}
    times: dict[str, list[float]] = {name: [] for name in readers}
    order = np.arange(frames)
    for name, read in readers.items():  # once to warm the page cache, and to see that all read the same
        compare(name, read, frames)
    for number in range(arguments.rounds):
        np.random.default_rng(number).shuffle(order)
        for name, read in readers.items():
            start = time.perf_counter()
            for frame in order:
                read(int(frame))
            times[name].append(time.perf_counter() - start)
    tell(times, frames, work)


def tokens_of(frame: int) -> Tokens:
    """A frame's tokens."""
    return np.random.default_rng(frame).standard_normal((len(LAYERS), *GRID), np.float32).astype(np.float16)


def write_all(work: Path, frames: int) -> None:
    """The same tokens in every form."""
    (work / "safetensors").mkdir(parents=True, exist_ok=True)
    flat = np.lib.format.open_memmap(work / "tokens.npy", "w+", np.float16, (frames, len(LAYERS), *GRID))
    with tarfile.open(work / "tokens.tar", "w") as tar:
        for frame in range(frames):
            flat[frame] = tokens_of(frame)
            save_file(dict(zip(LAYERS, flat[frame], strict=True)), work / "safetensors" / f"{frame}.safetensors")
            for layer, tokens in zip(LAYERS, flat[frame], strict=True):
                np.save(data := io.BytesIO(), tokens)
                info = tarfile.TarInfo(f"{frame:06d}.{layer}.npy")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
    flat.flush()
    if find_spec("h5py"):
        import h5py

        with h5py.File(work / "tokens.h5", "w") as file:
            file["tokens"] = flat
    write_cache(work / "cache", frames)


def write_cache(store: Path, frames: int) -> None:
    """The tokens as a cache, with one point a frame: tokens are what is measured."""
    layers = tuple(LayerInfo(name=name, channels=CHANNELS, height=HEIGHT, width=WIDTH) for name in LAYERS)
    teacher = TeacherInfo(
        name="vit", source="random", architecture="none", weights_sha256="", norm="pre", image_height_px=224,
        image_width_px=448, mean=(0, 0, 0), std=(1, 1, 1), resize="none", precision="float32", precision_reason="",
        layers=layers, global_width=0,
    )  # fmt: skip
    cameras = tuple(f"CAM{camera}" for camera in range(CAMERAS))
    recipe = Recipe(
        dataset=DatasetInfo(name="random", cameras=cameras), selection=SelectionInfo(), teachers=(teacher,),
        projection=ProjectionInfo(occlusion="none", ground="none"), encoding=EncodingInfo(), part_frames=PART_FRAMES,
    )  # fmt: skip
    start_store(store, recipe, frames // PART_FRAMES)
    sizes = dict.fromkeys(cameras, (1600, 900))
    entries = []
    for first in range(0, frames, PART_FRAMES):
        contents = tuple(content(frame) for frame in range(first, first + PART_FRAMES))
        entries.append(write_part(store, recipe, PartContent(f"part-{first}", "scene", sizes, contents, {}, "0" * 64)))
    finish_store(store, recipe, entries)


def content(frame: int) -> FrameContent:
    """A frame with its tokens, one point and no pair."""
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


def memory_map(work: Path, frames: int) -> Reader:
    """A copy out of one memory map: what the others are held against."""
    flat = np.load(work / "tokens.npy", mmap_mode="r")
    assert len(flat) == frames, f"{work} was made with other --frames"
    return lambda frame: np.array(flat[frame])


def ours(work: Path) -> dict[str, Reader]:
    """Every checksum verified, as always; and with the checksums not looked at, which no option allows."""
    cache = open_cache(work / "cache")

    def read(frame: int) -> list[NDArray[Any]]:
        opened = cache[frame]
        return [opened.stored_tokens("vit", layer).values for layer in LAYERS]

    def unchecked(frame: int) -> list[NDArray[Any]]:
        with patch("hilda_schema.part.damaged_chunks", lambda *_: []):
            return read(frame)

    return {"hilda": read, "hilda, checksums off": unchecked}


def parts_of(work: Path) -> list[Path]:
    """The parts' folders by their first frame."""
    folders = [path for path in (work / "cache" / "parts").iterdir() if path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))


def zarr_python(work: Path) -> dict[str, Reader]:
    """The same store by zarr-python and, where it is installed, by tensorstore."""
    arrays = [
        [zarr.open_array(part / "vit" / f"layer_{k}" / "tokens", mode="r") for k in LAYERS] for part in parts_of(work)
    ]
    readers: dict[str, Reader] = {
        "zarr-python": lambda frame: [each[frame % PART_FRAMES] for each in arrays[frame // PART_FRAMES]]
    }
    if find_spec("tensorstore"):
        import tensorstore

        def opened(path: Path) -> Any:
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
            return tensorstore.open(spec, read=True).result()

        same = [[opened(part / "vit" / f"layer_{k}" / "tokens") for k in LAYERS] for part in parts_of(work)]
        readers["tensorstore"] = lambda frame: [
            each.result() for each in [array[frame % PART_FRAMES].read() for array in same[frame // PART_FRAMES]]
        ]
    return readers


def others(work: Path) -> dict[str, Reader]:
    """Other files with the same tokens."""

    def layers_of(frame: int) -> list[NDArray[np.float16]]:
        file = load_file(work / "safetensors" / f"{frame}.safetensors")
        return [file[layer] for layer in LAYERS]

    readers: dict[str, Reader] = {"safetensors": layers_of}
    if find_spec("h5py"):
        import h5py

        tokens = h5py.File(work / "tokens.h5")["tokens"]
        readers["HDF5"] = lambda frame: tokens[frame]
    if find_spec("webdataset"):
        samples = webdataset(work)
        readers["WebDataset, in its order"] = lambda _frame: next(samples)
    return readers


def webdataset(work: Path) -> Iterator[list[NDArray[np.float16]]]:
    """The tar's samples, again and again."""
    import webdataset as wds

    while True:
        for sample in wds.WebDataset(str(work / "tokens.tar"), shardshuffle=False).decode():
            yield [sample[f"{layer}.npy"] for layer in LAYERS]


def compare(name: str, read: Reader, frames: int) -> None:
    """Refuse a reader that reads something else."""
    for frame in range(frames):
        found = list(read(frame))
        if frame % PART_FRAMES == 0 and not np.array_equal(np.stack(found), tokens_of(frame)):
            raise SystemExit(f"{name} reads something else at frame {frame}")


def tell(times: dict[str, list[float]], frames: int, work: Path) -> None:
    """Print the table."""
    megabytes = frames * len(LAYERS) * np.prod(GRID) * 2 / 1e6
    files = sum(len(names) for _, _, names in os.walk(work / "cache"))
    size = sum(path.stat().st_size for path in (work / "cache").rglob("*") if path.is_file()) / 1e6
    print(f"{frames} frames of {megabytes / frames:.1f} MB; the cache: {files} files, {size:.0f} MB")
    print(f"{'':26} {'frames/s':>9} {'MB/s':>8} {'to memory map':>14}")
    for name, seconds in times.items():
        ratio = statistics.median(base / own for base, own in zip(times["memory map"], seconds, strict=True))
        typical = statistics.median(seconds)
        print(f"{name:26} {frames / typical:9.0f} {megabytes / typical:8.0f} {ratio:14.2f}")


if __name__ == "__main__":
    main()
