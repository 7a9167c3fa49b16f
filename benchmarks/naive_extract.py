"""What people write before they look for a library: the script that benchmarks/extract.py holds extraction against.

    python benchmarks/naive_extract.py DRIVE DATASET MODEL FRAMES OUT FIRST STEP

Takes frames FIRST, FIRST + STEP, ... of the first FRAMES, in float32. The drive is read with our reader, in place of a
devkit.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hilda_cache.drives import open_drive


def transform(points, matrix):
    points = np.hstack([points, np.ones((len(points), 1))])
    return (matrix @ points.T).T[:, :3]


def main():
    root, dataset, folder, frames, out, first, step = sys.argv[1:]
    processor, model = AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoModel.from_pretrained(folder)
    stages = ("decode", "project", "vit", "upsample", "save")
    drive, spent, images, began = open_drive(dataset, Path(root)), dict.fromkeys(stages, 0.0), 0, None
    Path(out).mkdir(parents=True, exist_ok=True)
    for info in drive.frames(drive.scenes()[0])[int(first) : int(frames) : int(step)]:
        if began is None:  # the model is loaded; the first image also tunes
            model(torch.zeros(1, 3, 224, 448))
            began, cpu_began = time.perf_counter(), time.process_time()
        clock = time.process_time()
        sweep = drive.read(info).points.xyz_m.astype(np.float64)
        for view in info.cameras:
            image = processor(images=Image.open(view.image_path).convert("RGB"), return_tensors="pt")["pixel_values"]
            clock, spent["decode"] = time.process_time(), spent["decode"] + time.process_time() - clock
            points = transform(sweep.copy(), info.ego_SE3_lidar)
            points = transform(points, info.world_SE3_ego)
            points = transform(points, np.linalg.inv(view.world_SE3_ego))
            points = transform(points, view.cam_SE3_ego)
            pixels = (view.intrinsics @ points.T).T
            pixels = pixels[:, :2] / pixels[:, 2:]
            seen = (points[:, 2] > 1) & (pixels >= -0.5).all(1)
            seen &= (pixels[:, 0] < view.width_px - 0.5) & (pixels[:, 1] < view.height_px - 0.5)
            clock, spent["project"] = time.process_time(), spent["project"] + time.process_time() - clock
            with torch.no_grad():
                hidden = model(image, output_hidden_states=True).hidden_states[-2:]
            clock, spent["vit"] = time.process_time(), spent["vit"] + time.process_time() - clock
            features = []
            for tokens in hidden:
                grid = tokens[:, 1:].transpose(1, 2).reshape(1, -1, 16, 32)
                dense = torch.nn.functional.interpolate(grid, (224, 448), mode="bilinear", align_corners=False)
                u = ((pixels[seen, 0] + 0.5) / view.width_px * 448).astype(int)
                v = ((pixels[seen, 1] + 0.5) / view.height_px * 224).astype(int)
                features.append(dense[0, :, v, u].T.numpy())
            clock, spent["upsample"] = time.process_time(), spent["upsample"] + time.process_time() - clock
            name = f"{info.key.frame}_{view.name}"
            np.save(Path(out) / f"{name}_points.npy", np.flatnonzero(seen))
            np.save(Path(out) / f"{name}.npy", np.stack(features))
            clock, spent["save"] = time.process_time(), spent["save"] + time.process_time() - clock
            images += 1
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    print(json.dumps({"images": images, "wall_s": wall_s, "cpu_s": cpu_s, "stages_cpu_s": spent}))


if __name__ == "__main__":
    main()
