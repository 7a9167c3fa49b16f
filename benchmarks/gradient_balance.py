"""How hard does each objective pull at the student, and where to? What to set the weights of a recipe by.

    python benchmarks/gradient_balance.py RUN --cache STORE [--clips 12] [--draws 1 4]

RUN is a run's folder: its newest checkpoint is taken, ideally of a tenth of the training. For every term of the loss,
unweighted, the gradient on the student's weights: its norm, the median over single clips and that of the mean over all
clips (noise cancels there), its share of the point term's with the run's weight, and its cosine with the point term's.
The recipes keep the share of the global context at 0.1 to 0.3 and that of the occupancy at 0.3 to 1.

The occupancy diffusion draws noise levels and noise. Its last lines say how far its gradient on one clip wavers over
them (root mean square of the deviation, four draws on each of four clips) for some numbers of draws in a step
(`objectives.occupancy.draws`), and the processor time of a step.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hilda_train.data.batches import Batch
from hilda_train.data.tokens import Targets
from hilda_train.evaluate.restore import restore_run, spread
from hilda_train.learner import Learner
from hilda_train.objectives.occupancy_diffusion import OccupancyDiffusion

REPEATS = 4


def main() -> None:
    """Take gradients clip by clip and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", action="append", required=True)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    restored = restore_run(arguments.run, arguments.cache)
    learner, weights = restored.learner, restored.learner.weights()
    whole = [clip for clip in restored.prepared.clips if clip.whole]
    rows = [gradients(learner, *restored.batch(clip)) for clip in spread(whole, arguments.clips)]
    mean = {name: torch.stack([row[name] for row in rows]).mean(dim=0) for name in rows[0]}
    reference = weights["point"] * mean["point"].norm()
    print(f"step {restored.step}, {len(rows)} clips")
    print(f"{'':12} {'weight':>7} {'norm, a clip':>13} {'norm, mean':>11} {'share of point':>15} {'cosine':>7}")
    for name, gradient in mean.items():
        each = statistics.median(row[name].norm().item() for row in rows)
        share = (weights[name] * gradient.norm() / reference).item()
        towards = cosine_similarity(gradient, mean["point"], dim=0).item()
        print(f"{name:12} {weights[name]:7.3f} {each:13.4f} {gradient.norm():11.4f} {share:15.2f} {towards:7.2f}")
    if isinstance(learner.occupancy, OccupancyDiffusion):
        some = [restored.batch(clip) for clip in spread(whole, 4)]
        for draws in arguments.draws:
            learner.occupancy.draws = draws
            began = time.process_time()
            wavers = statistics.fmean(deviation_over_draws(learner, *each) ** 2 for each in some) ** 0.5
            seconds = (time.process_time() - began) / len(some) / REPEATS
            print(f"occupancy, {draws} draws: wavers by {wavers:.4f} over draws; {seconds:.2f} s a clip")


def deviation_over_draws(learner: Learner, batch: Batch, targets: Targets) -> float:
    """How far the occupancy term's gradient on one clip is from its mean over noise levels and noise."""
    found = []
    for repeat in range(REPEATS):
        seeds = tuple(seed + 1000 * repeat for seed in batch.target_seeds)
        found.append(gradients(learner, replace(batch, target_seeds=seeds), targets)["occupancy"])
    return float(torch.stack(found).var(dim=0).sum().sqrt())


def gradients(learner: Learner, batch: Batch, targets: Targets) -> dict[str, Tensor]:
    """Term -> its gradient on all weights of the student, in one row."""
    parameters = [each for each in learner.student.parameters() if each.requires_grad]
    found = {}
    for name, term in learner(batch, targets).items():
        parts = torch.autograd.grad(term.loss, parameters, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(own) if part is None else part for part, own in zip(parts, parameters, strict=True)]
        found[name] = torch.cat([part.flatten() for part in filled])
    return found


if __name__ == "__main__":
    main()
