"""timm's models, where timm can be imported; elsewhere, the error that says what is lacking."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import save_file

from hilda_cache.teachers import TeacherSpec, load_teacher
from hilda_schema.errors import TeacherError

THERE = importlib.util.find_spec("timm") is not None
needs_timm = pytest.mark.skipif(not THERE, reason="timm is not installed")


@pytest.mark.skipif(THERE, reason="timm is installed")
def test_without_timm_the_error_says_what_to_install():
    with pytest.raises(TeacherError, match=r"'t' needs timm, which cannot be imported: .*pip install timm torchvision"):
        load_teacher(TeacherSpec("t", "timm:resnet18"))


def save(folder, architecture, **model_args):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **model_args).eval()
    folder.mkdir()
    config = {"architecture": architecture, "num_classes": 0, "model_args": model_args}
    config["pretrained_cfg"] = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


@needs_timm
def test_a_vision_transformer_of_timm(tmp_path):
    model = save(tmp_path / "vit", "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2)
    teacher = load_teacher(TeacherSpec("t", f"timm:{tmp_path / 'vit'}", image_size=(32, 32), norm="post"))
    images = torch.randn(2, 3, 32, 32)
    features = teacher(images)
    with torch.no_grad():
        tokens = model.forward_features(images)
    assert list(features.layers) == ["2", "3"]
    assert torch.allclose(features.layers["3"].flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5)
    assert torch.allclose(features.global_token, tokens[:, 0], atol=1e-5)
    assert teacher.card.preprocessing.mean == (0.5, 0.4, 0.3)
    wide = load_teacher(TeacherSpec("t", f"timm:{tmp_path / 'vit'}", image_size=(32, 64)))
    assert [(layer.height, layer.width) for layer in wide.card.layers] == [(2, 4), (2, 4)]


@needs_timm
def test_a_pyramid_of_timm(tmp_path):
    model = save(tmp_path / "net", "resnet10t")
    teacher = load_teacher(TeacherSpec("t", f"timm:{tmp_path / 'net'}", layers=("-1",), image_size=(64, 96)))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last = model.forward_features(images)
    assert torch.allclose(teacher(images).layers["5"], last, atol=1e-4)
    with pytest.raises(TeacherError, match="not a multiple of 32x32"):
        load_teacher(TeacherSpec("t", f"timm:{tmp_path / 'net'}", image_size=(60, 96)))
    with pytest.raises(TeacherError, match="no final normalisation"):
        load_teacher(TeacherSpec("t", f"timm:{tmp_path / 'net'}", image_size=(64, 96), norm="post"))


@needs_timm
def test_weights_of_another_timm_model_are_refused(tmp_path):
    save(tmp_path / "net", "resnet10t")
    config = json.loads((tmp_path / "net/config.json").read_text())
    (tmp_path / "net/config.json").write_text(json.dumps(config | {"architecture": "resnet18"}))
    with pytest.raises(TeacherError, match="net cannot be loaded by timm"):
        load_teacher(TeacherSpec("t", f"timm:{tmp_path / 'net'}", image_size=(64, 96)))
