"""The head and its training: known optima, scikit-learn's optimum, frozen backbones, rates, labels of voxels."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn

from hilda_train.data.augment import AugmentOptions
from hilda_train.evaluate.head import Encoded, segmentation_loss
from hilda_train.evaluate.lovasz import lovasz_softmax
from hilda_train.evaluate.protocols import StageConfig, load_protocol, protocol_names
from hilda_train.evaluate.segment import Segmenter, build_stage_optimizer, one_label_a_row, rate_factor
from hilda_train.optim import set_learning_rate
from hilda_train.students import Level, Student, build_student


class Bare(Student):
    """A backbone that hands its input on."""

    def __init__(self, channels):
        super().__init__()
        self.channels = (channels,)
        self.scale = nn.Parameter(torch.ones(channels))

    def encode(self, batch):
        return [Level.of_points(batch.feats * self.scale, batch)]


def stage(**changes):
    adam = {"kind": "adamw", "lr": 0.1, "weight_decay": 0.0}
    given = {"epochs": 1, "batch_size": 1, "optim": adam, "schedule": {"kind": "constant"}} | changes
    return StageConfig.model_validate_json(json.dumps(given))


def trained(encoded, classes, steps, *, norm=True, lovasz=0.0):
    model = Segmenter(Bare(encoded.feats.shape[1]), classes, norm=norm, frozen=True).train()
    optimizer = build_stage_optimizer(model, stage())
    for step in range(steps):
        set_learning_rate(optimizer, 0.1 * (1 - step / steps))
        optimizer.zero_grad()
        segmentation_loss(model.head, encoded, lovasz).backward()
        optimizer.step()
    return model.eval()


def blobs(spread, seed=0):
    """Three classes of 2-D points around three places, far from the origin, and their features' scale far from one."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, 900)
    centres = np.array([[100.0, 0.0], [100.3, 0.0], [100.0, 0.3]])
    feats = centres[target] + rng.normal(0, spread, (900, 2))
    return Encoded(torch.from_numpy(feats).float(), None, torch.from_numpy(target))


@pytest.mark.parametrize("lovasz", [0.0, 1.0])
def test_separable_features_are_separated_whatever_their_scale(lovasz):
    """The running statistics of 60 steps must be exact: with the usual average the test would see other features."""
    encoded = blobs(0.01)
    model = trained(encoded, 3, 60, lovasz=lovasz)
    assert torch.equal(model.head(encoded.feats).argmax(1), encoded.target)


def test_the_probe_reaches_the_optimum_that_scikit_learn_finds():
    encoded = blobs(0.2)  # the classes overlap
    model = trained(encoded, 3, 600)
    loss = float(segmentation_loss(model.head, encoded, 0.0).detach())
    feats, target = encoded.feats.double().numpy(), encoded.target.numpy()
    feats = (feats - feats.mean(0)) / feats.std(0)
    best = LogisticRegression(C=1e9, max_iter=5000, tol=1e-10).fit(feats, target)
    optimum = log_loss(target, best.predict_proba(feats))
    assert optimum < 0.9 < np.log(3)  # neither nothing nor everything can be learned
    assert loss == pytest.approx(optimum, abs=1e-4)


def test_a_head_starts_undecided():
    model = Segmenter(Bare(2), 3, norm=True, frozen=True)
    encoded = blobs(0.1)
    assert float(segmentation_loss(model.head, encoded, 0.0).detach()) == pytest.approx(np.log(3))


def test_the_loss_is_the_mean_over_labelled_points_of_what_they_read():
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn((5, 3), generator=generator)
    rows = torch.tensor([0, 0, 1, 2, 3, 4, 4, 4])
    target = torch.tensor([0, 1, -1, 2, 1, -1, 0, 2])
    model = Segmenter(Bare(3), 3, norm=False, frozen=True)
    nn.init.normal_(model.head.linear.weight, generator=generator)
    found = segmentation_loss(model.head, Encoded(feats, rows, target), 0.7)
    logits = model.head.linear(feats)[rows][target >= 0].double()
    known = target[target >= 0]
    cross_entropy = -logits.log_softmax(1)[range(len(known)), known].mean()
    expected = cross_entropy + 0.7 * lovasz_softmax(logits.softmax(1), known)
    assert float(found.detach()) == pytest.approx(float(expected.detach()))


def test_sweeps_without_a_label_cost_nothing_and_break_nothing():
    model = Segmenter(Bare(2), 3, norm=True, frozen=True).train()
    loss = segmentation_loss(model.head, Encoded(torch.randn(4, 2), None, torch.full((4,), -1)), 1.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not model.head.linear.weight.grad.any()


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_a_row_takes_the_label_of_its_first_point(rows, more, seed):
    rng = np.random.default_rng(seed)
    point_row = rng.permutation(np.append(np.arange(rows), rng.integers(0, rows, more)))
    target = rng.integers(-1, 4, rows + more)
    found = one_label_a_row(torch.from_numpy(point_row), torch.from_numpy(target))
    assert found.tolist() == [target[list(point_row).index(row)] for row in range(rows)]


def test_joining_keeps_what_every_label_reads():
    parts = [
        Encoded(torch.full((n, 1), float(n)), torch.arange(n).repeat(2), torch.full((2 * n,), n)) for n in (2, 3, 1)
    ]
    joined = Encoded.cat(parts)
    assert torch.equal(joined.feats[joined.rows][:, 0].long(), joined.target)


def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics():
    student = build_student({"name": "minkunet", "depth": 14, "width": 0.1, "in_channels": 2})
    model = Segmenter(student, 3, norm=True, frozen=True).train()
    assert not any(module.training for module in student.modules())
    assert model.head.norm.training
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.norm.weight", "head.norm.bias", "head.linear.weight", "head.linear.bias",
    }  # fmt: skip
    free = Segmenter(student, 3, norm=True, frozen=False).train()
    assert all(module.training for module in student.modules())
    assert all(p.requires_grad for p in free.parameters())


def test_layers_learn_at_scalrs_rates():
    """As its code counts: embedding 0, layer i of D has i + 1, the head D + 1; decay^(D + 1 - number)."""
    student = build_student({"name": "waffleiron", "depth": 3, "width": 8, "in_channels": 5, "levels": [3]})
    model = Segmenter(student, 2, norm=True, frozen=False)
    protocol = load_protocol("scalr")
    assert protocol.finetune.layer_decay == 0.95
    optimizer = build_stage_optimizer(model, protocol.finetune)
    set_learning_rate(optimizer, 1.0)
    found = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, rate in found.items():
        step = name.removeprefix("student.").split(".")
        number = int(step[1]) + 1 if step[0].endswith("_mix") else 4 if not name.startswith("student.") else 0
        assert rate == pytest.approx(0.95 ** (4 - number)), name


def test_the_head_may_learn_faster():
    model = Segmenter(Bare(2), 3, norm=False, frozen=False)
    slidr = load_protocol("slidr").finetune
    optimizer = build_stage_optimizer(model, slidr)
    set_learning_rate(optimizer, slidr.optim.lr)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates == {"student.scale": 0.02, "head.linear.weight": 2.0, "head.linear.bias": 2.0}
    assert rate_factor(model, "student.scale", load_protocol("scalr").finetune) == 1.0  # it has no numbered layers


def test_protocols_are_the_published_ones():
    """PEERS: what each line's code says."""
    scalr, slidr, superflow = map(load_protocol, ("scalr", "slidr", "superflow"))
    assert (scalr.probe.epochs, slidr.probe.epochs, superflow.probe.epochs) == (20, 100, 100)
    assert (scalr.probe.optim.lr, slidr.probe.optim.lr, superflow.probe.optim.lr) == (1e-3, 0.05, 0.01)
    assert (scalr.head_norm, slidr.head_norm, superflow.head_norm) == (True, False, False)
    assert (scalr.absent, slidr.absent, superflow.absent) == ("left out", "one", "left out")
    assert superflow.finetune.optim.lr * superflow.finetune.head_rate == superflow.probe.optim.lr
    assert superflow.report == "best"
    assert AugmentOptions(**scalr.augment.model_dump()) == AugmentOptions()
    assert set(protocol_names()) == {"quick", "scalr", "slidr", "superflow"}
