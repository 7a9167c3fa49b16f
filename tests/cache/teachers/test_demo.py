"""The demonstration teacher knows what its images show: class means of its tokens find the classes in new scenes."""

from pathlib import Path

import pytest
import torch
from sklearn.neighbors import NearestCentroid

import hilda_cache.teachers
from hilda_cache.drives.synthetic.render import render, still_shadow
from hilda_cache.drives.synthetic.scene import draw_scene
from hilda_cache.images import prepare
from hilda_cache.teachers import TeacherSpec, load_teacher
from hilda_cache.teachers.random_vit import save_random_dinov2

FOLDER = Path(hilda_cache.teachers.__file__).parent / "demo"
SIZE = (224, 392)


@pytest.fixture(scope="module")
def pictures():
    """Front and rear images of four scenes that neither training nor the demonstration has seen."""
    found = []
    for index in range(4):
        scene = draw_scene(77, index, frames=2, image_size_px=SIZE[::-1], azimuth_steps=8)
        shadow = still_shadow(scene.world)
        found.append([render(scene.world, scene.rig.cameras[camera], 0.0, shadow) for camera in (0, 3)])
    return found


def tokens_and_classes(folder, pictures):
    teacher = load_teacher(TeacherSpec("t", str(folder), layers=("-1",), image_size=SIZE))
    tokens, classes = [], []
    for picture in pictures:
        (grid,) = teacher(prepare(torch.from_numpy(picture.rgb), teacher.card.preprocessing)[None]).layers.values()
        tokens.append(grid[0].flatten(1).T)
        blocks = torch.from_numpy(picture.category).unfold(0, 14, 14).unfold(1, 14, 14).flatten(2)
        classes.append(blocks.mode(dim=2).values.flatten())
    return torch.cat(tokens).numpy(), torch.cat(classes).numpy()


def accuracy(folder, pictures):
    """On the last two scenes, learnt from the first two."""
    train, test = [picture for pair in pictures[:2] for picture in pair], [p for pair in pictures[2:] for p in pair]
    probe = NearestCentroid().fit(*tokens_and_classes(folder, train))
    return probe.score(*tokens_and_classes(folder, test))


def test_it_knows_more_than_a_random_one(pictures, tmp_path):
    untrained = save_random_dinov2(tmp_path / "random", seed=0, hidden=128, layers=6, heads=4)
    assert accuracy(FOLDER, pictures) > accuracy(untrained, pictures) + 0.1


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
