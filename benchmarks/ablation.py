"""Does each part of HilDA help? The rows of its ablation on a synthetic drive, every one under several seeds.

    python benchmarks/ablation.py [--work FOLDER] [--steps 150] [--seeds 0 1 2] [--arms base HilDA] [--jobs 2]

Makes a drive of 16 scenes, extracts it with the small teacher that comes with the package (trained on other scenes of
the same world), pre-trains a small student on 12 of them by the base (ScaLR's distillation with an MLP head), by each
part of HilDA alone and together, and with the diffusion replaced by a plain decoder and by ALSO. Every arm has
the same student, clips, optimiser and number of steps. Judged on the other four scenes: a linear probe on all
labels, and fine-tuning on 5 % of the labelled frames (1 % of 120 frames would be one). Prints a table; writes
FOLDER/ablation.png and FOLDER/ablation.json. What lies in FOLDER already is used again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from arms import Arm, Judge, Setting, plot, record, run_all, table
from worlds import HELD_OUT, SMALL, small_head, small_occupancy, synthetic_cache

ARMS = (
    Arm("random", None, published="8.1 (SLidR)"),
    Arm("base", "base", small_head(), "46.36 / 55.01"),
    Arm("+ diffusion", "base_diffusion", (*small_head(), *small_occupancy()), "50.43 / 56.97"),
    Arm("+ multi-layer", "multi_layer", small_head(), "53.77 / 57.03"),
    Arm("multi-layer + global", "hilda_no_diffusion", small_head(), "55.13 / 57.81"),
    Arm("multi-layer + diffusion", "hilda_no_global", (*small_head(), *small_occupancy()), "55.53 / 59.04"),
    Arm("HilDA", "hilda", (*small_head(), *small_occupancy()), "56.29 / 59.46"),
    Arm("HilDA, decoder", "hilda_bce", (*small_head(), *small_occupancy()), "49.1"),
    Arm("HilDA, ALSO", "hilda_also", (*small_head(), "objectives.occupancy.queries=1024"), "54.7"),
)


def main() -> None:
    """Make what is missing, train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("ablation-out"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    names = [arm.name for arm in ARMS]
    parser.add_argument("--arms", nargs="+", default=names, choices=names, help="rows to run; base must be one")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time, each with one thread")
    arguments = parser.parse_args()
    if "base" not in arguments.arms:
        parser.error("every row is held against base: add it to --arms")
    arms = [arm for arm in ARMS if arm.name in arguments.arms]
    words = ("--classes", "coarse8", "--protocol", "quick")
    few = ("--share", "5", "--split", "frames", "-s", "finetune.steps=60")
    setting = Setting(
        work=arguments.work,
        caches=(synthetic_cache(arguments.work),),
        sets=(*SMALL, HELD_OUT, f"train.max_steps={arguments.steps}"),
        judges=(Judge("probe", ("probe", *words)), Judge("fine-tuned, 5 %", ("finetune", *words, *few))),
        seeds=tuple(arguments.seeds),
        jobs=arguments.jobs,
    )
    scores = run_all(setting, arms)
    print(f"\nmIoU in per cent, mean ± standard deviation of {len(setting.seeds)} seeds, {arguments.steps} steps;")
    print("published: nuScenes, linear probe / fine-tuned on 1 %")
    print(table(scores, arms, against="base"))
    plot(scores, arms, arguments.work / "ablation.png")
    record(arguments.work / "ablation.json", scores, setting.seeds, steps=arguments.steps)


if __name__ == "__main__":
    main()
