"""What the systems before HilDA claim, each as one comparison under several seeds.

    python benchmarks/seeds.py pandaset --samples FOLDER --teacher FILE.py:FACTORY --layers stage3,stage4,prelogit
    python benchmarks/seeds.py relational
    python benchmarks/seeds.py pillars
    python benchmarks/seeds.py splits

    pandaset    a real drive and a real teacher: random weights, the base and HilDA trained and probed on the first part
                of the drive and tested on the last one, beside the teacher's own probe, their ceiling
    relational  distillation by cosine, by contrast and by relations: what each leaves of the teacher's structure, and
                how that goes with what can be had from few labels or none
    pillars     ScaLR's three: the student's size, the teacher's quality, how much data of how many kinds
    splits      two ways to take few labels

The last three run on the synthetic drive of `ablation.py`. Each prints a table (mean and standard deviation over seeds,
paired differences) and writes FOLDER/COMMAND.png and FOLDER/COMMAND.json. What lies in FOLDER is used again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from arms import Arm, Judge, Scores, Setting, hilda, plot, record, run_all, table
from worlds import HELD_OUT, SMALL, TEACHER, call, small_head, small_occupancy, synthetic_cache

WORDS = ("--classes", "coarse8")
QUICK = (*WORDS, "--protocol", "quick")
FEW = (*QUICK, "--share", "5", "--split", "frames", "-s", "finetune.steps=60")
UNTRAINED = ("zeroshot",)  # needs a head that has learnt
OF_TEACHER = ("zeroshot", "finetune", "knn")  # a teacher's features are probed only
DEMO_LAYERS = ("demo/5", "demo/6")  # of the teacher that comes with the package; the last one teaches the base
COLOURS = ("#4477aa", "#ee6677", "#228833")


def pandaset(asked: argparse.Namespace) -> None:
    """A real drive, split in time: its first frames teach, its last ones test."""
    drive, early = asked.work / "drive-cache", asked.work / "early-cache"
    seen = ("-t", f"teacher={asked.teacher}", "--layers", asked.layers, "--image-size", asked.image_size)
    call("hilda-cache", "extract", asked.samples, "-d", "pandaset", *seen, "-o", drive)
    if not early.exists():
        call("hilda-cache", "subset", drive, "--frames", asked.train, "-o", early)
    ceilings = (
        Arm(f"teacher, {layer}", None, layer=f"teacher/{layer}", without=OF_TEACHER)
        for layer in asked.layers.split(",")[-2:]
    )
    arms = (
        Arm("random", None, without=UNTRAINED),
        Arm("base", "base", small_head(), caches=(early,)),
        Arm("HilDA", "hilda", (*small_head(), *small_occupancy()), caches=(early,)),
        *ceilings,
    )
    times = ("--train-frames", asked.train, "--test-frames", asked.test)
    # One clip a step: a sweep has three times the points of a synthetic one.
    sets = (*SMALL, "data.batch_size=1", f"train.max_steps={asked.steps}")
    judges = (Judge("probe", ("probe", *QUICK, *times), seen=True),)
    compare("pandaset", Setting(asked.work, (drive,), sets, judges, asked.seeds), arms, against="base")


def relational(asked: argparse.Namespace) -> None:
    """Three distances between student and teacher; everything else is the base's."""
    cache = synthetic_cache(asked.work)
    steps = sorted({max(1, asked.steps // 4), max(1, asked.steps // 2), asked.steps})
    contrast = ("objectives.point.weight=0", "objectives.contrastive.weight=1")
    arms = (
        Arm("random", None, without=UNTRAINED),
        Arm("cosine", "base", small_head()),
        Arm("contrastive", "base", (*small_head(), *contrast), without=UNTRAINED),
        Arm("relational", "relational", (*small_head(), "objectives.relational.pairs=512")),
        Arm("teacher", None, layer=DEMO_LAYERS[-1], without=OF_TEACHER),
    )
    judges = (
        Judge("zero-shot", ("zeroshot", *WORDS)),
        Judge("neighbours", ("knn", *WORDS)),
        Judge("fine-tuned, 5 %", ("finetune", *FEW)),
        Judge("probe", ("probe", *QUICK), seen=True),
    )
    often = (f"train.checkpoint_every={steps[0]}", "train.keep=4")
    setting = Setting(asked.work, (cache,), (*settings_of(asked), *often), judges, asked.seeds)
    scores = compare("relational", setting, arms, against="cosine")
    trained = [arm for arm in arms if arm.recipe is not None]
    dots = [dot for arm in trained for seed in asked.seeds for dot in structures(setting, arm, seed, steps)]
    print("\nGram gap of the backbone to the teacher, at the end")
    for arm in trained:
        gaps = [dot.gaps["backbone"] for dot in dots if (dot.arm, dot.step) == (arm.name, asked.steps)]
        print(f"  {arm.name:12} {sum(gaps) / len(gaps):.4f}  ({', '.join(f'{gap:.4f}' for gap in gaps)})")
    scatter(dots, scores, setting, asked.steps, asked.work / "gap.png")


def pillars(asked: argparse.Namespace) -> None:
    """The student's size, the teacher's quality and the data, one at a time, from one base."""
    cache = synthetic_cache(asked.work)
    other, untrained = other_drive(asked.work), untrained_cache(asked.work)
    few = 'data.scenes=["scene-0001", "scene-0002", "scene-0003"]'
    base = small_head()
    arms = (
        Arm("random, 14 x 0.25", None, like="base: 14 x 0.25, 12 scenes"),
        Arm("base: 14 x 0.25, 12 scenes", "base", base),
        Arm("random, 14 x 0.5", None, like="student 14 x 0.5"),
        Arm("student 14 x 0.5", "base", (*base, "student.width=0.5")),
        Arm("student 18 x 0.25", "base", (*base, "student.depth=18")),
        Arm("teacher's layer before", "base", (*base, 'targets=[{teacher: demo, layer: "5"}]')),
        Arm("teacher of random weights", "base", base, caches=(untrained,)),
        Arm("3 scenes", "base", (*base, few)),
        Arm("+ 12 scenes, other cameras", "base", base, caches=(cache, other)),
    )
    # All arms learn classes from the same scenes, also the one that was pre-trained on fewer.
    scenes = [w for each in ("scene-000*", "scene-0010", "scene-0011", "scene-0012") for w in ("--train-scenes", each)]
    judges = (
        Judge("probe", ("probe", *QUICK, *scenes)),
        Judge("fine-tuned, 5 %", ("finetune", *FEW, *scenes)),
    )
    setting = Setting(asked.work, (cache,), settings_of(asked), judges, asked.seeds)
    compare("pillars", setting, arms, against="base: 14 x 0.25, 12 scenes")


def splits(asked: argparse.Namespace) -> None:
    """Few labels as whole scenes, and as frames of all scenes."""
    cache = synthetic_cache(asked.work)
    rules = [(rule, share) for share in (10, 25) for rule in ("scenes", "frames")]
    judges = tuple(
        Judge(
            f"{share} % by {rule}",
            ("finetune", *QUICK, "--share", str(share), "--split", rule, "-s", "finetune.steps=100"),
        )
        for rule, share in rules
    )
    arms = (Arm("random", None), Arm("base", "base", small_head()))
    compare("splits", Setting(asked.work, (cache,), settings_of(asked), judges, asked.seeds), arms, against="random")


def settings_of(asked: argparse.Namespace) -> tuple[str, ...]:
    """What all arms on the synthetic drive have in common."""
    return (*SMALL, HELD_OUT, f"train.max_steps={asked.steps}")


def other_drive(work: Path) -> Path:
    """The cache of a second synthetic drive: other streets, cameras of half the resolution."""
    drive, cache = work / "other-drive", work / "other-cache"
    if not drive.exists():
        call("hilda-cache", "synth", drive, "--scenes", 12, "--frames", 10, "--seed", 77, "--image-size", "198x352")
    seen = ("-t", f"demo={TEACHER}", "--layers", "-2,-1", "--image-size", "224x392")
    call("hilda-cache", "extract", drive, "-d", "nuscenes", *seen, "-o", cache)
    return cache


def untrained_cache(work: Path) -> Path:
    """The synthetic drive as a model of the demo teacher's shape, with random weights, sees it."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    model, cache = work / "untrained-teacher", work / "untrained-cache"
    if not model.exists():
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config.from_pretrained(TEACHER)).save_pretrained(model)
    seen = ("-t", f"demo={model}", "--layers", "-2,-1", "--image-size", "224x392")
    call("hilda-cache", "extract", work / "drive", "-d", "nuscenes", *seen, "-o", cache)
    return cache


@dataclass(frozen=True, slots=True)
class Dot:
    """One checkpoint of one run."""

    arm: str
    seed: int
    step: int
    gaps: dict[str, float]  # of the student's head and of the backbone, to the teacher
    zeroshot: float  # balanced accuracy at the drawn pairs; NaN without a head


def structures(setting: Setting, arm: Arm, seed: int, steps: Sequence[int]) -> Iterator[Dot]:
    """A run's structure at some checkpoints."""
    folder = setting.work / f"{arm.name}-{seed}"
    out = folder / "structure.json"
    if not out.exists():
        words = [word for step in steps for word in ("--step", step)]
        caches = [word for cache in setting.caches for word in ("-c", cache)]
        out.write_text(hilda("structure", folder / "run", *caches, *words, "--json", log=folder / "structure.log"))
    for each in json.loads(out.read_text())["steps"]:
        (parts,) = each["targets"].values()
        head = "zeroshot" not in arm.without
        gaps = {
            name: parts[name]["gram_gap"]
            for name in ("student", "backbone")
            if name in parts and (head or name == "backbone")
        }
        yield Dot(arm.name, seed, each["step"], gaps, parts["student"]["zeroshot"] if head else float("nan"))


def scatter(dots: Sequence[Dot], scores: Scores, setting: Setting, last: int, path: Path) -> None:
    """Print and draw how the gap goes with what is had from few labels or none.

    A claim of the relational distillation's authors is that it falls. Checkpoints of one run are no independent
    samples, so no probability is said.
    """
    from matplotlib.figure import Figure
    from scipy.stats import pearsonr, spearmanr

    ends = [dot for dot in dots if dot.step == last]
    final = {
        (arm, seed, name): value
        for name, by in scores.items()
        for arm, values in by.items()
        for seed, value in zip(setting.seeds, values, strict=True)
    }
    panels = {
        "zero-shot accuracy at checkpoints": [
            (d, d.gaps["student"], 100 * d.zeroshot) for d in dots if "student" in d.gaps
        ],
        **{
            f"{name}, mIoU at the end": [(d, d.gaps["backbone"], final[d.arm, d.seed, name]) for d in ends]
            for name in ("neighbours", "fine-tuned, 5 %", "probe")
        },
    }
    figure = Figure(figsize=(3.4 * len(panels), 3.4), layout="constrained")
    print("\nGram gap against quality")
    for panel, (name, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        gaps, values = [gap for _, gap, _ in found], [value for _, _, value in found]
        pearson, spearman = pearsonr(gaps, values).statistic, spearmanr(gaps, values).statistic
        print(f"  {name:36} Pearson {pearson:+.2f}, Spearman {spearman:+.2f}, {len(found)} points")
        for number, arm in enumerate(dict.fromkeys(d.arm for d in dots)):
            of_arm = [(gap, value) for d, gap, value in found if d.arm == arm]
            if of_arm:
                panel.plot(
                    *zip(*of_arm, strict=True), "os^"[number % 3], color=COLOURS[number % 3], label=arm, alpha=0.75
                )
        panel.set_xlabel("Gram gap, " + ("head's output" if name.startswith("zero") else "backbone"))
        panel.set_title(f"{name}\nSpearman {spearman:+.2f}", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def compare(name: str, setting: Setting, arms: Sequence[Arm], against: str) -> Scores:
    """Train, judge, print, write."""
    scores = run_all(setting, arms)
    print(f"\nmIoU in per cent, mean ± standard deviation of {len(setting.seeds)} seeds")
    print(table(scores, arms, against))
    plot(scores, arms, setting.work / f"{name}.png")
    record(setting.work / f"{name}.json", scores, setting.seeds, settings=setting.sets)
    return scores


def main() -> None:
    """Run one comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (pandaset, relational, pillars, splits):
        each = commands.add_parser(command.__name__, help=command.__doc__)
        each.set_defaults(run=command)
        each.add_argument("--work", type=Path, default=Path("seeds-out") / command.__name__)
        each.add_argument("--steps", type=int, default=300)
        each.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        if command is pandaset:
            each.add_argument("--samples", type=Path, required=True, help="folder of PandaSet's sequences")
            each.add_argument("--teacher", required=True, help="a model, or FILE.py:FACTORY")
            each.add_argument("--layers", default="-2,-1", help="the last two teach")
            each.add_argument("--image-size", default="544x960")
            each.add_argument("--train", default="0:36", help="frames that teach")
            each.add_argument("--test", default="44:56", help="frames that test")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    asked.seeds = tuple(asked.seeds)
    asked.run(asked)


if __name__ == "__main__":
    main()
