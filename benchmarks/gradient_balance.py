"""How hard does each objective pull at the student, and where to? What to set the weights of a recipe by.

    python benchmarks/gradient_balance.py RUN --cache STORE [--clips 12]

RUN is a run's folder: its newest checkpoint is taken, ideally of a tenth of the training. For every term of the loss,
unweighted, the gradient on the student's weights: its norm, the median over single clips and that of the mean over all
clips (noise cancels there), its share of the point term's with the run's weight, and its cosine with the point term's.
The recipes keep the share of the global context at 0.1 to 0.3 and that of the occupancy at 0.3 to 1.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hilda_train.data.batches import Batch
from hilda_train.data.tokens import Targets
from hilda_train.evaluate.restore import restore_run, spread
from hilda_train.learner import Learner


def main() -> None:
    """Take gradients clip by clip and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", action="append", required=True)
    parser.add_argument("--clips", type=int, default=12)
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
