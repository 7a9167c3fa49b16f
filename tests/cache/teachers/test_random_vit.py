"""The random teacher says something about an image, the same thing every time, and is described like any other."""

import json

import pytest
import torch

from hilda_cache.images import RESIZE, prepare, read_image
from hilda_cache.teachers import TeacherSpec, load_teacher
from hilda_cache.teachers.info import teacher_info
from hilda_cache.teachers.random_vit import save_random_dinov2
from hilda_schema.manifest import TeacherInfo


def load(folder, **options):
    return load_teacher(TeacherSpec("t", str(folder), **({"layers": ("-2", "-1"), "image_size": (112, 224)} | options)))


def photo(seed):
    """Smooth blobs, as much alike from pixel to pixel as a photograph."""
    coarse = torch.randn(1, 3, 5, 9, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (112, 224), mode="bicubic")


def test_a_seed_is_a_model_whatever_the_global_generator_has_done(tmp_path):
    torch.manual_seed(1)
    first = save_random_dinov2(tmp_path / "a", 7, hidden=24, layers=2, heads=2)
    state = torch.get_rng_state()
    second = save_random_dinov2(tmp_path / "b", 7, hidden=24, layers=2, heads=2)
    assert torch.equal(torch.get_rng_state(), state)
    other = save_random_dinov2(tmp_path / "c", 8, hidden=24, layers=2, heads=2)
    cards = [load(folder).card for folder in (first, second, other)]
    assert cards[0].weights_sha256 == cards[1].weights_sha256 != cards[2].weights_sha256


@pytest.mark.parametrize(("hidden", "layers", "heads", "patch"), [(24, 2, 2, 14), (96, 4, 3, 14), (48, 6, 4, 16)])
def test_features_differ_from_place_to_place_and_from_image_to_image(tmp_path, hidden, layers, heads, patch):
    folder = save_random_dinov2(tmp_path / "vit", 0, hidden=hidden, layers=layers, heads=heads, patch=patch)
    features = load(folder)(torch.cat([photo(seed) for seed in range(4)]))
    previous = None
    for grid in features.layers.values():
        tokens = grid.permute(0, 2, 3, 1).flatten(0, 2).double()
        centred = tokens - tokens.mean(0)
        assert 0.3 < float(tokens.square().mean().sqrt()) < 10
        assert centred.square().sum() > 0.3 * tokens.square().sum()
        energy = torch.linalg.svdvals(centred).square()
        share = energy / energy.sum()
        assert torch.exp(-(share * share.log()).sum()) > 4  # directions that matter
        by_place = grid.double() - grid.double().mean(0)
        assert by_place.square().sum() > 0.3 * centred.square().sum()  # what the image says, not where the token is
        if previous is not None:
            assert torch.nn.functional.cosine_similarity(centred, previous).mean() < 0.999
        previous = centred
    assert (features.global_token.std(0) > 0.01).all()


def test_a_real_street_gives_rich_features(sample_data, tmp_path):
    teacher = load(save_random_dinov2(tmp_path / "vit", 0), image_size=(224, 448))
    files = sorted((sample_data / "data/pandaset/002/camera").glob("*/05.jpg"))
    images = [prepare(read_image(file.read_bytes(), file.name), teacher.card.preprocessing) for file in files]
    tokens = teacher(torch.stack(images)).layers["4"].permute(0, 2, 3, 1).flatten(0, 2).double()
    energy = torch.linalg.svdvals(tokens - tokens.mean(0)).square()
    share = energy / energy.sum()
    assert torch.exp(-(share * share.log()).sum()) > 15


def test_the_manifest_tells_all_that_the_card_knows(tmp_path):
    teacher = load(save_random_dinov2(tmp_path / "vit", 3, hidden=24, layers=3, heads=2), norm="post")
    info = teacher_info(teacher.card, "float32", "float32: asked for")
    card = teacher.card
    told = json.loads(info.model_dump_json())
    assert TeacherInfo.model_validate_json(json.dumps(told)) == info
    assert told == {
        "name": "t",
        "source": "vit",
        "revision": "",
        "architecture": "Dinov2Model",
        "weights_sha256": card.weights_sha256,
        "licence": "apache-2.0",
        "norm": "post",
        "image_height_px": 112,
        "image_width_px": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": RESIZE,
        "precision": "float32",
        "precision_reason": "float32: asked for",
        "layers": [{"name": name, "channels": 24, "height": 8, "width": 16} for name in ("2", "3")],
        "global_width": 24,
    }
