"""Trains the vision model that `make demo` uses as a teacher, on the project's own synthetic renders.

    python tools/train_demo_teacher.py OUT [--scenes 64] [--steps 2500] [--seed 1000]

A small DINOv2 learns, from images of scenes that no demonstration shows, what is in every quarter of a patch (from its
token) and what kind of place the image shows (from the CLS token). Writes a transformers folder and OUT/training.txt:
the curve, and how well held-out images are segmented. It takes half an hour of one core; the result depends on
the seed, and in its last digits on the machine.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from hilda_cache.drives.synthetic.categories import CATEGORIES
from hilda_cache.drives.synthetic.render import render, still_shadow
from hilda_cache.drives.synthetic.scene import draw_scene
from hilda_cache.drives.synthetic.styles import STYLES

PATCH = 14
FULL, CROP = (16 * PATCH, 28 * PATCH), (8 * PATCH, 14 * PATCH)  # height, width
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMES_S = (0.5, 4.0)
HELD_OUT = 8  # scenes, the last ones
BATCH, FULL_BATCH, FULL_EVERY = 16, 4, 4  # every fourth step sees whole images
LR, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 100
CARD = """---
license: apache-2.0
---
# The demonstration teacher

A DINOv2 architecture of {parameters:.1f} M parameters, trained by `tools/train_demo_teacher.py` on HilDA's own
synthetic renders ({images} images, seed {seed}) to say what is in every patch and what kind of place an image shows.
It knows that world and no other: use it for demonstrations and comparisons on synthetic drives, never on real images.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Renders and the truth behind them."""

    rgb: Tensor  # (N, 3, H, W) uint8
    category: Tensor  # (N, H, W) uint8; 0 is the sky
    kind: Tensor  # (N,) int64

    def part(self, rows: slice) -> Images:
        """Some of them."""
        return Images(self.rgb[rows], self.category[rows], self.kind[rows])


class Supervised(nn.Module):
    """The model and the two heads that are thrown away."""

    def __init__(self, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.backbone = Dinov2Model(
            Dinov2Config(
                hidden_size=hidden,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                image_size=CROP[0],
                patch_size=PATCH,
                layerscale_value=1.0,
                attn_implementation="sdpa",
            )
        )
        self.segment = nn.Linear(hidden, 4 * len(CATEGORIES))
        self.place = nn.Linear(hidden, len(STYLES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, classes, H / 7, W / 7) logits of quarter patches, (B, kinds) logits."""
        rows, columns = (size // PATCH for size in pixels.shape[2:])
        tokens = self.backbone(pixels).last_hidden_state
        grid = self.segment(tokens[:, 1:]).transpose(1, 2).unflatten(2, (rows, columns))
        return F.pixel_shuffle(grid, 2), self.place(tokens[:, 0])


def main() -> None:
    """Render, train, judge, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1000)
    arguments = parser.parse_args()
    images = render_all(arguments.seed, arguments.scenes)
    held_out = HELD_OUT * len(images.kind) // arguments.scenes
    torch.manual_seed(arguments.seed)
    model = Supervised(hidden=128, layers=6, heads=4)
    curve = train(model, images.part(slice(None, -held_out)), arguments.steps, arguments.seed)
    verdict = judge(model.eval(), images.part(slice(-held_out, None)))
    save(model, arguments, len(images.kind) - held_out, [*curve, *verdict])


def render_all(seed: int, scenes: int) -> Images:
    """Images of every scene at two moments, six cameras each."""
    rgb, category, kind = [], [], []
    for index in range(scenes):
        scene = draw_scene(seed, index, frames=12, image_size_px=FULL[::-1], azimuth_steps=8)
        shadow = still_shadow(scene.world)
        for t_s in TIMES_S:
            for camera in scene.rig.cameras:
                picture = render(scene.world, camera, t_s, shadow)
                rgb.append(picture.rgb)
                category.append(picture.category)
                kind.append(index % len(STYLES))
        print(f"scene {index + 1}/{scenes} rendered", flush=True)
    pixels = torch.from_numpy(np.stack(rgb)).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.from_numpy(np.stack(category)), torch.tensor(kind))


def train(model: Supervised, images: Images, steps: int, seed: int) -> list[str]:
    """AdamW with warm-up and cosine; the curve, a line for every hundred steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    lines, began, losses = [], time.perf_counter(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / WARMUP, (1 + math.cos(math.pi * step / steps)) / 2)
        whole = step % FULL_EVERY == FULL_EVERY - 1
        pixels, truth, kind = sample(images, FULL_BATCH if whole else BATCH, FULL if whole else CROP, generator)
        quarters, places = model(pixels)
        loss = F.cross_entropy(quarters, shares(truth)) + 0.1 * F.cross_entropy(places, kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            lines.append(f"step {step + 1:5} loss {np.mean(losses[-100:]):.3f}")
            print(f"{lines[-1]}  ({(time.perf_counter() - began) / (step + 1):.2f} s a step)", flush=True)
    return lines


def sample(
    images: Images, number: int, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random images, cropped, mirrored, and lit and coloured a little differently.

    Returns:
        (B, 3, h, w) float32 normalised pixels, (B, h, w) categories, (B,) kinds.
    """
    rows = torch.randint(len(images.kind), (number,), generator=generator)
    pixels, truth = [], []
    for row in rows.tolist():
        top, left = (
            int(torch.randint(full - part + 1, (), generator=generator)) for full, part in zip(FULL, size, strict=True)
        )
        window = (slice(top, top + size[0]), slice(left, left + size[1]))
        image, category = images.rgb[row, :, *window].float() / 255, images.category[row, *window]
        if torch.rand((), generator=generator) < 0.5:
            image, category = image.flip(2), category.flip(1)
        gain = 1 + 0.2 * torch.randn(3, 1, 1, generator=generator) * 0.5 + 0.2 * torch.randn((), generator=generator)
        noise = 0.02 * torch.randn(image.shape, generator=generator)
        pixels.append((image * gain + noise).clamp(0, 1))
        truth.append(category)
    return normalised(torch.stack(pixels)), torch.stack(truth), images.kind[rows]


def normalised(pixels: Tensor) -> Tensor:
    """0..1 to the scale that the model is given."""
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def shares(category: Tensor) -> Tensor:
    """(B, classes, h / 7, w / 7): what share of each quarter patch is of each class."""
    one_hot = F.one_hot(category.long(), len(CATEGORIES)).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(one_hot, PATCH // 2)


@torch.no_grad()
def judge(model: Supervised, images: Images) -> list[str]:
    """IoU of every class over held-out images, by the most frequent class of quarter patches; the kinds' accuracy."""
    classes = len(CATEGORIES)
    confusion, right = torch.zeros(classes, classes), 0
    for pixels, category, kind in zip(images.rgb, images.category, images.kind, strict=True):
        quarters, places = model(normalised(pixels.float() / 255)[None])
        truth, said = shares(category[None]).argmax(1).flatten(), quarters.argmax(1).flatten()
        confusion += torch.bincount(truth * classes + said, minlength=classes**2).view(classes, classes)
        right += int(places.argmax(1) == kind)
    both = confusion.diag()
    union = confusion.sum(0) + confusion.sum(1) - both
    seen = confusion.sum(1) > 0
    lines = [f"held-out images: {len(images.kind)}; kind of place right in {right / len(images.kind):.1%}"]
    lines.append(f"mIoU {float((both / union)[seen].mean()):.3f} over {int(seen.sum())} classes that occur")
    names = ["sky", *CATEGORIES[1:]]
    iou = (both / union).tolist()
    return lines + [f"  {names[index]:36} {iou[index]:.3f}" for index in seen.nonzero()[:, 0].tolist()]


def save(model: Supervised, arguments: argparse.Namespace, images: int, lines: list[str]) -> None:
    """Write the backbone, its card and how it was made."""
    model.backbone.save_pretrained(arguments.out, safe_serialization=True)
    parameters = sum(parameter.numel() for parameter in model.backbone.parameters()) / 1e6
    card = CARD.format(parameters=parameters, images=images, seed=arguments.seed)
    (arguments.out / "README.md").write_text(card)
    command = f"python tools/train_demo_teacher.py --scenes {arguments.scenes} --steps {arguments.steps}"
    (arguments.out / "training.txt").write_text("\n".join([f"$ {command} --seed {arguments.seed}", *lines]) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
