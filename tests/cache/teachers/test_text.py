"""Class vectors against transformers called by hand, on tiny random models saved as transformers folders."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.numpy import load_file
from typer.testing import CliRunner

from hilda_cache.cli import app
from hilda_cache.teachers import TeacherSpec, load_teacher
from hilda_cache.teachers.text import read_classes, text_prototypes
from hilda_schema.errors import TeacherError, UsageError

TOWER = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
VISION = TOWER | {"patch_size": 14, "image_size": 56}
CLASSES = {"car": ("car", "red van"), "road": ("road",)}
TEMPLATES = ("a {}.", "one {} here")


def letters():
    """A tokeniser that spells: every letter is a token, alone or at a word's end."""
    vocab = {}
    for letter in "abcdefghijklmnopqrstuvwxyz.":
        vocab[letter] = len(vocab)
        vocab[f"{letter}</w>"] = len(vocab)
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return vocab


def save(model, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    model.save_pretrained(folder)
    hf.CLIPTokenizer(vocab=letters(), merges=[]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    ids = letters()
    text = TOWER | {"hidden_size": 16, "vocab_size": len(ids), "eos_token_id": ids["<|endoftext|>"]}
    text |= {"bos_token_id": ids["<|startoftext|>"], "pad_token_id": ids["<|endoftext|>"]}
    config = hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    return save(hf.CLIPModel(config), tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    text = TOWER | {"vocab_size": len(letters()), "max_position_embeddings": 32}
    config = hf.SiglipConfig(text_config=text, vision_config=VISION)
    return save(hf.SiglipModel(config), tmp_path_factory.mktemp("models") / "siglip")


def embedded(model, tokens):
    """What the library itself calls text features."""
    with torch.no_grad():
        features = model.get_text_features(**tokens)
    return getattr(features, "pooler_output", features)


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def test_clip_one_prompt_at_a_time(clip):
    """By hand each prompt goes alone, so that no padding is ever seen."""
    model, tokenise = hf.CLIPModel.from_pretrained(clip).eval(), hf.AutoTokenizer.from_pretrained(clip)
    made = text_prototypes(str(clip), CLASSES, TEMPLATES, "text")
    assert made.vectors.keys() == CLASSES.keys()
    for name, words in CLASSES.items():
        rows = [
            embedded(model, tokenise(template.replace("{}", word), return_tensors="pt"))
            for word in words
            for template in TEMPLATES
        ]
        expected = unit(unit(torch.cat(rows)).mean(dim=0))
        np.testing.assert_allclose(made.vectors[name], expected.numpy(), atol=1e-5)
    assert abs(made.vectors["car"] @ made.vectors["road"]) < 0.999


def test_siglip_sees_its_padding(siglip):
    model, tokenise = hf.SiglipModel.from_pretrained(siglip).eval(), hf.AutoTokenizer.from_pretrained(siglip)
    made = text_prototypes(str(siglip), {"road": ("road",)}, ("a {}.",), "text")
    tokens = tokenise(["a road."], padding="max_length", max_length=32, return_tensors="pt")
    expected = unit(embedded(model, {"input_ids": tokens["input_ids"]}))[0]
    np.testing.assert_allclose(made.vectors["road"], expected.numpy(), atol=1e-5)


def test_products_with_stored_tokens_rank_as_cosines_in_the_shared_space(clip):
    """Tokens as a cache would hold them, against the library's projection of them."""
    teacher = load_teacher(TeacherSpec("clip", str(clip), layers=("-1",), image_size=(56, 56), norm="post"))
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    tokens = next(iter(teacher(images).layers.values())).flatten(2).transpose(1, 2).reshape(-1, VISION["hidden_size"])
    model = hf.CLIPModel.from_pretrained(clip).eval()
    classes = {name: (name,) for name in ("car", "road", "tree", "van", "sky")}
    shared = text_prototypes(str(clip), classes, TEMPLATES, "text").vectors
    with torch.no_grad():
        projected = model.visual_projection(tokens)
    cosines = unit(projected) @ torch.from_numpy(np.stack(list(shared.values()))).T
    pulled = text_prototypes(str(clip), classes, TEMPLATES).vectors
    products = tokens @ torch.from_numpy(np.stack(list(pulled.values()))).T
    torch.testing.assert_close(products / projected.norm(dim=1, keepdim=True), cosines, atol=1e-4, rtol=1e-4)


def test_the_command_writes_vectors_and_where_they_are_from(clip, tmp_path):
    (tmp_path / "classes.txt").write_text("# street\ncar: car, red van\n\nroad_marking  # paint\n")
    out = tmp_path / "out.safetensors"
    words = ["prototypes", str(clip), "--classes", str(tmp_path / "classes.txt"), "-o", str(out), "--template", "a {}"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "2 classes, 24 channels" in done.stderr
    expected = text_prototypes(str(clip), {"car": ("car", "red van"), "road_marking": ("road marking",)}, ("a {}",))
    stored = load_file(out)
    assert stored.keys() == expected.vectors.keys()
    for name, vector in stored.items():
        np.testing.assert_array_equal(vector, expected.vectors[name])
    with safe_open(out, "numpy") as file:
        about = file.metadata()
    assert about["model"] == "clip"
    assert about["space"] == "tokens"
    assert len(about["weights_sha256"]) == 64
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_siglip_has_no_linear_way_from_tokens_to_text(siglip):
    with pytest.raises(TeacherError, match=r"no linear projection.*--space text"):
        text_prototypes(str(siglip), {"road": ("road",)})


def test_models_that_cannot_read(clip, tiny_vit, tmp_path):
    with pytest.raises(TeacherError, match="type 'dinov2', which has no text tower"):
        text_prototypes(str(tiny_vit), {"road": ("road",)})
    mute = shutil.copytree(clip, tmp_path / "mute")
    for path in mute.iterdir():
        if path.name not in {"config.json", "model.safetensors"}:
            path.unlink()
    with pytest.raises(TeacherError, match="no tokeniser: all words are one to it"):
        text_prototypes(str(mute), {"road": ("road",)})


def test_weights_that_are_missing_are_not_made_up(clip, tmp_path):
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file

    harmed = shutil.copytree(clip, tmp_path / "harmed")
    tensors = load_torch(harmed / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, harmed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"did not load whole: weights not in the file: text_projection\.weight"):
        text_prototypes(str(harmed), {"road": ("road",)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no class"),
        ("# only a comment\n", "names no class"),
        ("car\n: wheel\n", "line 2: ': wheel' is no class"),
        ("car: sedan,,van\n", "line 1"),
        ("car\nroad\ncar: van\n", "line 3: car is there twice"),
    ],
)
def test_files_of_classes_that_mean_nothing(tmp_path, text, words):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_classes(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_classes(tmp_path / "nowhere")


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_templates_have_one_place(clip, template):
    with pytest.raises(UsageError, match="no place for the class"):
        text_prototypes(str(clip), CLASSES, (template,))
