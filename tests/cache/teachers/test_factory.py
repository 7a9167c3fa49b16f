"""A user's own network is a teacher like any other, and its code stays in its own corner."""

import hashlib
import importlib.util
import json
import struct
import sys
import textwrap

import numpy as np
import pytest
import torch

from hilda_cache.images import prepare, read_image
from hilda_cache.teachers import Teacher, TeacherSpec, load_teacher
from hilda_schema.errors import TeacherError

SIZE = (32, 48)

NETWORK = """
import torch
from torch import nn

MEAN = (0.1, 0.2, 0.3)
STD = (0.4, 0.5, 0.6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 5.0])[:, None, None])

    def forward(self, images):
        fine = nn.functional.avg_pool2d(images, 4) * self.scale
        coarse = nn.functional.avg_pool2d(fine, 2)
        return {"fine": fine, "coarse": coarse, "global": coarse.mean((2, 3))}


def make():
    return Net()
"""


def write(folder, text, name="net.py"):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def load(source, **options):
    return load_teacher(TeacherSpec("t", str(source), **({"layers": ("fine", "coarse"), "image_size": SIZE} | options)))


def images_of(seed=0):
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def test_a_file_gives_its_maps_and_its_standardisation(tmp_path):
    teacher = load(f"{write(tmp_path / 'a', NETWORK)}:make")
    assert isinstance(teacher, Teacher)
    images = images_of()
    features = teacher(images)
    scale = np.array([2.0, 3.0, 5.0])[None, :, None, None]
    fine = images.numpy().reshape(2, 3, 8, 4, 12, 4).mean((3, 5)) * scale
    assert np.allclose(features.layers["fine"], fine, atol=1e-5)
    assert np.allclose(features.layers["coarse"], fine.reshape(2, 3, 4, 2, 6, 2).mean((3, 5)), atol=1e-5)
    assert np.allclose(features.global_token, fine.mean((2, 3)), atol=1e-5)
    card = teacher.card
    assert [(layer.name, layer.channels, layer.height, layer.width) for layer in card.layers] == [
        ("fine", 3, 8, 12),
        ("coarse", 3, 4, 6),
    ]
    assert (card.preprocessing.mean, card.preprocessing.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (card.source, card.architecture, card.global_width) == ("net.py:make", "Net", 3)
    assert str(tmp_path) not in repr(card)


def test_only_the_chosen_maps_are_given_and_indices_follow_the_dict(tmp_path):
    path = write(tmp_path / "a", NETWORK)
    assert list(load(f"{path}:make", layers=("-1",))(images_of()).layers) == ["coarse"]
    assert list(load(f"{path}:make", layers=("1",))(images_of()).layers) == ["fine"]


def test_without_a_global_token_there_is_none(tmp_path):
    path = write(tmp_path / "a", NETWORK.replace(', "global": coarse.mean((2, 3))', ""))
    teacher = load(f"{path}:make")
    assert teacher(images_of()).global_token is None
    assert teacher.card.global_width == 0


def test_an_importable_module_works_and_defaults_to_imagenet(tmp_path, monkeypatch):
    text = NETWORK.replace("MEAN = (0.1, 0.2, 0.3)\nSTD = (0.4, 0.5, 0.6)", "")
    write(tmp_path, text, "hilda_test_network.py")
    monkeypatch.syspath_prepend(tmp_path)
    card = load("hilda_test_network:make").card
    assert card.source == "hilda_test_network:make"
    assert card.preprocessing.mean == (0.485, 0.456, 0.406)
    del sys.modules["hilda_test_network"]


def test_the_weights_hash_is_the_documented_one(tmp_path):
    header = json.dumps(["scale", "torch.float32", [3, 1, 1]], separators=(",", ":")).encode()
    want = hashlib.sha256(header + b"\0" + struct.pack("<3f", 2, 3, 5)).hexdigest()
    assert load(f"{write(tmp_path / 'a', NETWORK)}:make").card.weights_sha256 == want


def test_changed_code_with_the_same_weights_is_another_revision(tmp_path):
    first = load(f"{write(tmp_path / 'a', NETWORK)}:make").card
    second = load(f"{write(tmp_path / 'b', NETWORK.replace('avg_pool2d(fine, 2)', 'max_pool2d(fine, 2)'))}:make").card
    assert first.weights_sha256 == second.weights_sha256
    assert first.revision != second.revision
    again = load(f"{write(tmp_path / 'c', NETWORK)}:make", revision="v2").card
    assert again.revision == f"v2 {first.revision}"


def test_neighbours_of_one_name_do_not_meet_and_nothing_stays_behind(tmp_path):
    text = NETWORK.replace(
        "import torch\n", "import torch\nfrom helpers import FACTOR\nfrom parts.more import PLUS\n", 1
    )
    text = text.replace("* self.scale", "* FACTOR + PLUS")
    for folder, factor in (("a", 2.0), ("b", 7.0)):
        write(tmp_path / folder, f"FACTOR = {factor}", "helpers.py")
        write(tmp_path / folder / "parts", f"PLUS = {factor} / 4", "more.py")
    elsewhere = type(sys)("helpers")
    sys.modules["helpers"] = elsewhere
    path, modules = list(sys.path), {name for name in sys.modules if not name.startswith("_hilda_user_")}
    try:
        means = []
        for folder in ("a", "b", "a"):
            teacher = load(f"{write(tmp_path / folder, text)}:make")
            means.append(teacher(torch.ones(1, 3, *SIZE)).layers["fine"].mean().item())
        assert means == [2.5, 8.75, 2.5]
        assert sys.modules["helpers"] is elsewhere
        assert sys.path == path
        assert {name for name in sys.modules if not name.startswith("_hilda_user_")} == modules
    finally:
        del sys.modules["helpers"]


def test_a_factory_may_import_its_neighbours_late(tmp_path):
    write(tmp_path / "a", "FACTOR = 3.0", "late_helper.py")
    text = NETWORK.replace(
        "return Net()", "import late_helper\n    net = Net()\n    net.factor = late_helper.FACTOR\n    return net"
    )
    assert load(f"{write(tmp_path / 'a', text)}:make")._model.factor == 3.0
    assert "late_helper" not in sys.modules


def test_an_object_that_is_handed_out_twice_is_not_shared(tmp_path):
    text = (
        NETWORK.replace("return Net()", "return ONLY") + "\nONLY = Net()\nwith torch.no_grad():\n    ONLY.scale /= 3\n"
    )
    path = write(tmp_path / "a", text)
    first, second = load(f"{path}:make"), load(f"{path}:make")
    images = images_of()
    want = first(images).layers["fine"]
    second.to_precision(torch.bfloat16)
    assert not torch.equal(second(images).layers["fine"], want)
    assert torch.equal(first(images).layers["fine"], want)
    second.to_precision(torch.float32)
    assert torch.equal(second(images).layers["fine"], want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return Net()", "return 3"), "returned int, not a torch module"),
        (("return Net()", "raise OSError('no weights\\nat all')"), "failed: OSError: no weights"),
        (("def make():", "def make(folder):"), "failed: TypeError"),
        (("import torch\n", "import torch\nimport nothing_of_that_name\n"), "cannot be imported: ModuleNotFoundError"),
        (("import torch\n", "import torch\n(\n"), "cannot be imported: SyntaxError"),
        (("def make", "def other"), "there is no function 'make'"),
        (("MEAN = (0.1, 0.2, 0.3)", "MEAN = 0.5"), "MEAN of net.py:make is 0.5, not three numbers"),
        (("return {", "return 3; {"), "returned int, not a dict of maps"),
        (('"coarse": coarse', '"coarse": 3'), "returned int for 'coarse' and 1 images"),
        (('"coarse": coarse', '"coarse": coarse[:, 0]'), r"returned \(1, 4, 6\) for 'coarse'"),
        (("coarse.mean((2, 3))}", "coarse}"), r"returned \(1, 3, 4, 6\) for 'global'"),
        (("fine = nn", "raise ValueError('not these'); fine = nn"), "Net failed on images of shape .* not these"),
    ],
)
def test_what_is_wrong_with_the_users_code_is_said(tmp_path, change, message):
    assert change[0] in NETWORK
    path = write(tmp_path / "a", NETWORK.replace(*change, 1))
    with pytest.raises(TeacherError, match=message):
        load(f"{path}:make")


def test_a_norm_is_the_functions_own_business(tmp_path):
    with pytest.raises(TeacherError, match="only the function itself"):
        load(f"{write(tmp_path / 'a', NETWORK)}:make", norm="post")


def test_an_unknown_map_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(TeacherError, match=r"did you mean 'coarse'\? it has 2 layers, fine to coarse"):
        load(f"{write(tmp_path / 'a', NETWORK)}:make", layers=("course",))


def test_a_module_that_is_not_installed_is_an_error():
    with pytest.raises(TeacherError, match="cannot be imported: ModuleNotFoundError"):
        load("nothing_of_that_name:make")


def test_a_trained_driving_network_gives_what_it_gives_alone(sample_data):
    path = sample_data / "weights/efficientvit-b0-cityscapes/efficientvit_b0.py"
    teacher = load(f"{path}:teacher", layers=("stage3", "stage4"), image_size=(128, 256))
    images = torch.stack(
        [
            prepare(read_image(file.read_bytes(), file.name), teacher.card.preprocessing)
            for file in sorted((sample_data / "data/pandaset/002/camera").glob("*/05.jpg"))[:2]
        ]
    )
    spec = importlib.util.spec_from_file_location("direct_efficientvit", path)
    direct = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(direct)
    assert (teacher.card.preprocessing.mean, teacher.card.preprocessing.std) == (direct.MEAN, direct.STD)
    with torch.no_grad():
        want = direct.teacher()(images)
    got = teacher(images)
    assert torch.equal(got.layers["stage3"], want["stage3"])
    assert torch.equal(got.layers["stage4"], want["stage4"])
    assert torch.equal(got.global_token, want["global"])
    with pytest.raises(TeacherError, match="multiples of 32"):
        load(f"{path}:teacher", image_size=(120, 256))
