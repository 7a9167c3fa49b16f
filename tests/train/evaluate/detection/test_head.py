"""Targets and decoding agree; a head that is told where the boxes are finds them; classes and augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hilda_schema.boxes import Boxes
from hilda_schema.errors import UsageError
from hilda_train.data.augment import IDENTITY, AugmentOptions, draw
from hilda_train.evaluate.detection.classes import BoxClass, BoxClasses, load_box_classes
from hilda_train.evaluate.detection.head import DetectionHead, decode, heat_loss
from hilda_train.evaluate.detection.protocol import DetectionProtocol
from hilda_train.evaluate.detection.targets import box_target, heat_map, reach_cells, regression_target
from hilda_train.evaluate.detection.task import _found, _true, counting, verdict
from hilda_train.evaluate.heads.items import Item
from hilda_train.evaluate.heads.protocol import BevConfig, load_head_protocol
from hilda_train.objectives.bev import BevGrid
from hilda_train.students.points import PointBatch

GRID = BevGrid(16.0, 1.0)
CLASSES = BoxClasses("two", {"car": BoxClass(range_m=30), "person": BoxClass(range_m=30)}, {"toy": {"a": 0, "b": 1}})


def some_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    cells = rng.permutation(16 * 16)[:count]  # every second cell each way, so that peaks stand apart
    xy = np.stack([cells // 16, cells % 16], axis=1) * 2 - 15.5 + rng.uniform(-0.45, 0.45, (count, 2))
    yaw = rng.uniform(-np.pi, np.pi, count)
    return Boxes(
        centre_m=np.column_stack([xy, rng.uniform(-1, 1, count)]),
        size_m=rng.uniform(0.5, 5, (count, 3)),
        lidar_q_box=np.stack([np.cos(yaw / 2), 0 * yaw, 0 * yaw, np.sin(yaw / 2)], axis=1),
        velocity_mps=np.where(rng.random((count, 1)) < 0.3, np.nan, rng.normal(size=(count, 2))),
        points=np.ones(count, np.int64),
        category=np.array([["a", "b"][k] for k in rng.integers(0, 2, count)], dtype=object),
        track=np.arange(count).astype(str).astype(object),
    )


def test_what_maps_are_made_of_boxes_give_back_the_boxes():
    boxes = some_boxes(40)
    label = CLASSES.merge(boxes, "toy")
    target = box_target(boxes, label, IDENTITY)
    heat = heat_map(target, 2, GRID, 0.1, 2)
    assert heat.shape == (2, 32, 32)
    assert heat.max() == 1
    assert int((heat == 1).sum()) == 40
    cells, wanted = regression_target(target, GRID)
    maps = torch.zeros((10, 32 * 32))
    maps[:, cells] = wanted.nan_to_num().T
    found = decode(torch.logit(heat * 0.998 + 0.001), maps.view(10, 32, 32), GRID, 40)
    order = np.argsort(found.centre_m[:, 0] * 100 + found.centre_m[:, 1])
    expected = np.argsort(boxes.centre_m[:, 0] * 100 + boxes.centre_m[:, 1])
    np.testing.assert_allclose(found.centre_m[order], boxes.centre_m[expected], atol=1e-5)
    np.testing.assert_allclose(found.size_m[order], boxes.size_m[expected], rtol=1e-5)
    np.testing.assert_array_equal(found.label[order], label[expected])
    turn = found.yaw_rad[order] - boxes.yaw_rad[expected]
    np.testing.assert_allclose(np.cos(turn), 1, atol=1e-6)
    np.testing.assert_allclose(found.velocity_mps[order], np.nan_to_num(boxes.velocity_mps[expected]), atol=1e-6)
    scores = verdict([_true(target, 0)], [_found(found, 0)], CLASSES).scores
    assert scores[0].value == pytest.approx(1)


def test_a_reach_is_the_most_that_corners_may_be_off():
    """Checked by the overlaps themselves, in the three cases."""
    sizes = torch.tensor([[4.0, 2.0], [10.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
    for overlap in (0.1, 0.5, 0.9):
        for (a, b), r in zip(sizes.tolist(), reach_cells(sizes, overlap).tolist(), strict=True):

            def ious(r, a=a, b=b):
                moved = max(0, a - r) * max(0, b - r)
                grown = (a + 2 * r) * (b + 2 * r)
                shrunk = max(0, a - 2 * r) * max(0, b - 2 * r)
                return moved / (2 * a * b - moved), shrunk / (a * b), a * b / grown

            assert min(ious(r - 1e-6)) >= overlap
            assert min(ious(r + 1e-6)) < overlap


def test_boxes_turn_with_the_points_of_their_sweep():
    """A corner of a box, augmented as a point, is a corner of the augmented box."""
    boxes = some_boxes(6)
    rng = np.random.default_rng(3)
    for _ in range(4):
        augmentation = draw(AugmentOptions(rotation_deg=180, flip=0.5, scale=0.2), rng)
        target = box_target(boxes, np.zeros(6, np.int64), augmentation)
        for k in range(6):
            half = boxes.size_m[k] / 2
            front = boxes.centre_m[k] + Rotation.from_euler("z", boxes.yaw_rad[k]).apply([half[0], 0, 0])
            expected = augmentation.matrix @ front
            length = float(target.size_m[k, 0]) / 2
            found = target.centre_m[k, :2].numpy() + length * target.front[k].numpy()
            np.testing.assert_allclose(found, expected[:2], atol=1e-4)
            grown = target.size_m[k].numpy() / boxes.size_m[k]
            np.testing.assert_allclose(grown, grown[0], rtol=1e-5)
        speed = np.linalg.norm(target.velocity_mps.numpy(), axis=1) / np.linalg.norm(boxes.velocity_mps, axis=1)
        np.testing.assert_allclose(speed[~np.isnan(speed)], np.cbrt(abs(np.linalg.det(augmentation.matrix))), rtol=1e-5)


def test_the_focal_loss_is_the_published_one():
    rng = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn((1, 2, 4, 4), generator=rng).double(), torch.rand((1, 2, 4, 4), generator=rng).double()
    wanted[0, 0, 1, 1] = wanted[0, 1, 2, 3] = 1
    total = 0.0
    for p, y in zip(logits.sigmoid().flatten().tolist(), wanted.flatten().tolist(), strict=True):
        total -= (1 - p) ** 2 * np.log(p) if y == 1 else (1 - y) ** 4 * p**2 * np.log(1 - p)
    assert float(heat_loss(logits, wanted)) == pytest.approx(total / 2)
    assert float(heat_loss(logits, wanted * 0.5)) > 0  # a frame without a box


def item_of(boxes, label, seed):
    """A sweep whose points say which box is theirs: every number that is to be learned is among their inputs."""
    target = box_target(boxes, label, IDENTITY)
    rng = torch.Generator().manual_seed(seed)
    empty = torch.rand((600, 3), generator=rng) * 32 - 16
    xyz_m = torch.cat((target.centre_m, empty))
    _, wanted = regression_target(target, GRID)
    said = torch.cat((torch.nn.functional.one_hot(target.label, 2).float(), wanted.nan_to_num()), dim=1)
    feats = torch.cat((said, torch.zeros((len(empty), said.shape[1]))))
    return Item("toy/s/f", PointBatch.single(xyz_m, feats), torch.eye(4)[None], target)


def test_a_head_that_is_told_where_the_boxes_are_finds_them(echo, overfit):
    torch.manual_seed(0)
    protocol = DetectionProtocol.model_validate(
        {**load_head_protocol(DetectionProtocol, "hilda_train.evaluate.detection", "quick", ()).model_dump(),
         "bev": BevConfig(range_m=16.0, cell_m=1.0, channels=16, blocks=1), "box_weight": 1.0}
    )  # fmt: skip
    model = DetectionHead(echo(12), 2, protocol, frozen=True)
    items = []
    for seed in range(2):
        boxes = some_boxes(8, seed)
        items.append(item_of(boxes, CLASSES.merge(boxes, "toy"), seed))
    seen = model.see(items, torch.device("cpu"))
    overfit(model, seen, 250)
    truth = [_true(each.target, k) for k, each in enumerate(seen)]
    found = [_found(model.predict(each), k) for k, each in enumerate(seen)]
    scores = {score.name: score.value for score in verdict(truth, found, CLASSES).scores}
    assert scores["mAP"] > 0.95
    assert scores["translation error"] < 0.15
    assert scores["scale error"] < 0.15
    assert scores["orientation error"] < 0.2


def test_boxes_count_within_their_class_range_with_points():
    boxes = some_boxes(3)
    boxes.centre_m[:] = [[3, 4, 0], [29, 0, 9], [31, 0, 0]]
    boxes.points[:] = [0, 1, 5]
    found, label = counting(boxes, CLASSES, "toy", DetectionProtocol.model_construct(min_points=1))
    assert found.track.tolist() == ["1"]
    assert label.tolist() == [CLASSES.merge(boxes, "toy")[1]]


def test_a_category_that_a_file_does_not_mention_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"say nothing of category '.' of nuscenes"):
        load_box_classes("coarse3").merge(some_boxes(2), "nuscenes")
    path = tmp_path / "twice.yaml"
    path.write_text("about: x\nclasses: {car: {range_m: 5}}\ndatasets: {toy: {ignored: [a], car: [a]}}\n")
    with pytest.raises(UsageError, match="mentions 'a' twice"):
        load_box_classes(str(path))
    with pytest.raises(UsageError, match="there is no file of box classes 'nuscenes1'"):
        load_box_classes("nuscenes1")
