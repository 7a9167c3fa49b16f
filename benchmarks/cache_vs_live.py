"""What does training from a cache save, against the same step with the teacher in the loop?

    python benchmarks/cache_vs_live.py [--work FOLDER] [--drive FOLDER] [--steps 2]

One step of one frame with six cameras, on one thread; the last two layers of the teacher are matched (recipe
multi_layer) behind a linear head, as in ScaLR. Teachers are DINOv2 ViT-S and ViT-B of random weights, 224x448 pixels.
The drive is synthetic with images of 1600x900 pixels, or a nuScenes tree that is given. The student's step (forward,
backward, optimiser) and the sample (points, voxels, pairs) are the same everywhere; what differs is where the pairs'
features come from:

- cached: `hilda-cache extract` has run; the frame's token grids are read, every checksum verified.
- as written: as the published code does it. Each step decodes the images (Pillow), resizes and standardises them, runs
  the transformers model in float32, upsamples each layer to the image's size and reads it at the pairs.
- best online: our fast teacher (bfloat16 where the processor computes in it) on decoded, resized frames that stay in
  memory, and token grids sampled at the pairs as from a cache.

Projection and the drive's own reading, which only a step without a cache needs, are not counted: that favours the two.
CPU seconds, which on a shared machine waver less than the wall clock; the fastest of the steps after one that warms
up. An extraction costs what one worker spends on a frame of a part, writing included. Break-even is that, divided by
what an epoch then saves for each frame: below 1, extracting pays in the first epoch.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from hilda_cache.drives.synthetic import make_drive
from hilda_cache.images import prepare as resized
from hilda_cache.images import read_image
from hilda_cache.parts import plan_parts
from hilda_cache.recipe import resolve_recipe, software_versions
from hilda_cache.request import DriveSpec, ExtractRequest, Selection, open_drive_once
from hilda_cache.teachers.precision import has_fast_bfloat16
from hilda_cache.teachers.random_vit import save_random_dinov2
from hilda_cache.teachers.spec import TeacherSpec
from hilda_cache.work import extract_part, load_teachers_once, teachers_of
from hilda_schema.manifest import Recipe
from hilda_schema.reader import StoredTokens
from hilda_schema.writer import finish_store, start_store
from hilda_train.commands import configure
from hilda_train.data.batches import Batch, collate
from hilda_train.data.tokens import ScanTokens, read_tokens
from hilda_train.distributed import World
from hilda_train.fit import Trainer, build_trainer, train_step
from hilda_train.heap import Heap
from hilda_train.prepare import Prepared, prepare

TEACHERS = {"ViT-S": {"hidden": 384, "heads": 6, "layers": 12}, "ViT-B": {"hidden": 768, "heads": 12, "layers": 12}}
STUDENTS = {"MinkUNet14-half": (14, 0.5), "MinkUNet18": (18, 1.0), "MinkUNet34": (34, 1.0)}
HEIGHT_PX, WIDTH_PX, PATCH_PX, FRAMES, PART_FRAMES = 224, 448, 14, 4, 2
CPU = torch.device("cpu")


def main() -> None:
    """Measure each teacher's three ways and each student's step; print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "hilda-cache-vs-live")
    parser.add_argument("--drive", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--head-layers", type=int, default=1, help="3: HilDA's head, of width 2048")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    Heap()
    arguments.work.mkdir(parents=True, exist_ok=True)
    drive = arguments.drive or arguments.work / "drive"
    if not drive.exists():
        make_drive(drive, scenes=1, frames=FRAMES, seed=0, image_size=(1600, 900))
    for name, sizes in TEACHERS.items():
        measure(name, sizes, drive, arguments)


@dataclass(frozen=True)
class Extracted:
    """A teacher's cache, and what made it."""

    store: Path
    request: ExtractRequest
    recipe: Recipe
    frame_s: float


def measure(name: str, sizes: dict[str, int], drive: Path, arguments: argparse.Namespace) -> None:
    """One teacher, all students."""
    work, steps, head = arguments.work, arguments.steps, arguments.head_layers
    vit = work / name
    if not vit.exists():
        save_random_dinov2(vit, seed=0, **sizes)
    made = extract(drive, vit, work / f"{name}-cache")
    prepared = prepared_run(made.store, *STUDENTS["MinkUNet18"], head)
    images = image_files(made)
    batch = sample(prepared, 0)
    ways = {
        "cached": lambda: read_tokens(batch, prepared.caches, prepared.tokens.layers, None),
        "as written": as_written(vit, images, batch),
        "best online": best_online(made, images),
    }
    tokens = {way: fastest(give, steps) for way, give in ways.items()}
    sample_s = fastest(lambda: sample(prepared, 0), steps)
    precision = made.recipe.teachers[0].precision
    print(f"\n{name}, {precision}: extraction {made.frame_s:.2f} s a frame; {sum(batch.pair_counts)} pairs")
    print("features of a frame, CPU s: " + ", ".join(f"{way} {seconds:.3f}" for way, seconds in tokens.items()))
    print(f"{'':16} {'cached step':>11} {'as written':>16} {'best online':>16}   break-even epochs")
    for student, shape in STUDENTS.items():
        trainer = build_trainer(prepared_run(made.store, *shape, head), World(), CPU)
        step_s = sample_s + fastest(stepping(trainer, batch), steps)
        cached, written, best = (step_s + seconds for seconds in tokens.values())
        print(
            f"{student:16} {cached:9.2f} s {written:8.2f} s {written / cached:4.1f}x"
            f" {best:8.2f} s {best / cached:4.1f}x"
            f"   {made.frame_s / (written - cached):.2f} and {made.frame_s / (best - cached):.2f}"
        )


def fastest(work: Callable[[], Any], times: int) -> float:
    """CPU seconds, once warm."""
    work()
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def extract(drive: Path, vit: Path, store: Path) -> Extracted:
    """A cache, by a worker's own functions; the first part, in which things warm up, is not timed."""
    teacher = TeacherSpec("vit", str(vit), ("-2", "-1"), (HEIGHT_PX, WIDTH_PX))
    request = ExtractRequest(
        DriveSpec("nuscenes", str(drive)),
        (teacher,),
        selection=Selection(frames=f":{FRAMES}"),
        precision="bfloat16" if has_fast_bfloat16("cpu") else "float32",
        part_frames=PART_FRAMES,
    )
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    load_teachers_once.cache_clear()
    recipe = resolve_recipe(request, None)
    plans = plan_parts(open_drive_once(request.drive), request.selection, recipe.part_frames)
    start_store(store, recipe, len(plans), software_versions())
    entries, seconds = [], []
    for plan in plans:
        start = time.process_time()
        entries.append(extract_part(request, recipe, str(store), plan).entry)
        seconds.append((time.process_time() - start) / (plan.stop - plan.start))
    finish_store(store, recipe, entries)
    return Extracted(store, request, recipe, min(seconds[1:]))


def prepared_run(store: Path, depth: int, width: float, head: int) -> Prepared:
    """A run on the cache with one student."""
    sets = [f"student.depth={depth}", f"student.width={width}", "data.batch_size=1", "data.workers=0"]
    sets.append(f"objectives.point.head.layers={head}")
    config, urls = configure("multi_layer", [*sets, "train.epochs=100", "train.precision=float32"], [str(store)])
    return prepare(config, urls, CPU)


def sample(prepared: Prepared, frame: int) -> Batch:
    """The batch of one frame."""
    number = next(k for k, clip in enumerate(prepared.clips) if clip.current == frame)
    batch = collate([prepared.dataset[0, 0, number]], 1)
    if not isinstance(batch, Batch):
        raise batch
    return batch


def stepping(trainer: Trainer, batch: Batch) -> Callable[[], Any]:
    """One optimiser step after another, on tokens that are there."""
    prepared = trainer.prepared
    tokens = read_tokens(batch, prepared.caches, prepared.tokens.layers, None)
    return lambda: train_step(trainer, [(batch, tokens)])


def image_files(made: Extracted) -> list[Path]:
    """The first frame's images."""
    drive = open_drive_once(made.request.drive)
    info = drive.frames(drive.scenes()[0])[0]
    return [view.image_path for view in info.cameras]


def as_written(vit: Path, files: list[Path], batch: Batch) -> Callable[[], list[ScanTokens]]:
    """Decode, resize, run, upsample, read at the pairs: each step anew."""
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(vit, attn_implementation="eager").eval()
    mean, std = (np.array(values, np.float32) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    size = np.array([WIDTH_PX, HEIGHT_PX])
    u, v = torch.from_numpy((batch.uv01.numpy() * size).astype(np.int64).clip(0, size - 1)).T

    def pixels(file: Path) -> NDArray[np.float32]:
        image = Image.open(file).convert("RGB").resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        return ((np.asarray(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1)

    def give() -> list[ScanTokens]:
        with torch.inference_mode():
            inputs = torch.from_numpy(np.stack([pixels(file) for file in files]))
            states = model(inputs, output_hidden_states=True).hidden_states[-2:]
            return [ScanTokens(tuple(at_pairs(state) for state in states), None)]

    def at_pairs(state: torch.Tensor) -> NDArray[np.float32]:
        rows, columns = HEIGHT_PX // PATCH_PX, WIDTH_PX // PATCH_PX
        grid = state[:, 1:].reshape(len(state), rows, columns, -1).permute(0, 3, 1, 2)
        dense = F.interpolate(grid, scale_factor=PATCH_PX, mode="bilinear", align_corners=False)
        return dense[batch.pair_group, :, v, u].numpy()

    return give


def best_online(made: Extracted, files: list[Path]) -> Callable[[], list[ScanTokens]]:
    """Decoded and resized once; the teacher in the precision that extraction chooses."""
    teachers = teachers_of(made.request, made.recipe)
    images = [read_image(file.read_bytes(), file.name) for file in files]
    kept = torch.stack([resized(image, teachers[0].card.preprocessing) for image in images])

    def give() -> list[ScanTokens]:
        features = teachers[0](kept)
        grids = [features.layers[layer.name].permute(0, 2, 3, 1).numpy() for layer in teachers[0].card.layers]
        return [ScanTokens(tuple(StoredTokens(grid, None, None, None) for grid in grids), None)]

    return give


if __name__ == "__main__":
    main()
