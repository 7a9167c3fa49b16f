"""A model folder is loaded whole, without running anything in it, or refused with the reason."""

import hashlib
import json
import pickle
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from hilda_cache.teachers import TeacherSpec, load_teacher
from hilda_cache.teachers.checkpoint import Checkpoint, check_loaded, licence
from hilda_schema.errors import TeacherError
from hilda_schema.manifest import canonical_json

SIZE = (28, 42)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A tiny DINOv2 as transformers saves it."""
    torch.manual_seed(0)
    config = hf.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=28, mlp_ratio=2
    )
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-dino"
    hf.utils.logging.disable_progress_bar()
    hf.Dinov2Model(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-dino"))


def load(source, **options):
    return load_teacher(TeacherSpec("t", str(source), **({"layers": ("1", "2"), "image_size": SIZE} | options)))


def features(teacher):
    return teacher(torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))).layers["2"]


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_config(folder, **entries):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


class Bomb:
    """A pickle of this writes a file when it is opened."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def test_a_lacking_weight_is_an_error_that_names_it(folder):
    change_weights(folder, lambda weights: weights.pop("layernorm.weight"))
    with pytest.raises(TeacherError, match=r"did not load whole: weights not in the file: layernorm\.weight \["):
        load(folder)


def test_a_weight_too_many_is_an_error_that_names_it(folder):
    change_weights(folder, lambda weights: weights.update({"neck.weight": torch.zeros(3)}))
    with pytest.raises(TeacherError, match=r"weights in the file and not in the model: neck\.weight"):
        load(folder)


def test_a_weight_of_another_shape_is_an_error(folder):
    change_weights(folder, lambda weights: weights.update({"layernorm.bias": torch.zeros(17)}))
    with pytest.raises(TeacherError, match=r"weights of another shape in the file: layernorm\.bias"):
        load(folder)


def test_a_config_of_another_model_is_an_error(folder):
    change_config(folder, num_hidden_layers=3)
    with pytest.raises(TeacherError, match=r"weights not in the file: encoder.* and \d+ more"):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    change_weights(folder, lambda weights: weights["layernorm.bias"].fill_(value))
    with pytest.raises(TeacherError, match=r"weight layernorm\.bias is not finite"):
        load(folder)


def test_statistics_that_a_library_resets_after_loading_are_noticed(tmp_path):
    torch.manual_seed(0)
    model = hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1])).eval()
    model.embedder.embedder.normalization.running_mean.normal_()
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path, "resnet", "", {}, (tmp_path / "model.safetensors",))
    check_loaded(model, checkpoint)
    model.embedder.embedder.normalization.running_mean.zero_()
    with pytest.raises(TeacherError, match=r"embedder\.embedder\.normalization\.running_mean changed while"):
        check_loaded(model, checkpoint)


@pytest.mark.parametrize(
    "data",
    [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"\xff" * 64],
    ids=["empty", "lfs-pointer", "noise"],
)
def test_a_damaged_weight_file_is_an_error(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(TeacherError, match="tiny-dino cannot be loaded"):
        load(folder)


def test_a_truncated_weight_file_is_an_error(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TeacherError, match="tiny-dino cannot be loaded"):
        load(folder)


def test_a_pickle_is_refused_unopened(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    with pytest.raises(TeacherError, match=r"pytorch_model\.bin, a pickle.*--allow-pickle"):
        load(folder)
    with pytest.raises(TeacherError, match="cannot be loaded"):  # allowed, but still opened as weights only
        load(folder, allow_pickle=True)
    assert not (tmp_path / "marker").exists()


def test_a_pickle_may_be_allowed(folder):
    want = features(load(folder))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    teacher = load(folder, allow_pickle=True)
    assert torch.equal(features(teacher), want)
    assert teacher.card.weights_sha256 == hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()


def test_a_pickle_beside_safetensors_is_never_read(folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "marker")))
    load(folder, allow_pickle=True)
    assert not (tmp_path / "marker").exists()


REMOTE_CODE = """
from pathlib import Path
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

Path({marker!r}).write_text("ran")


class TinyConfig(PretrainedConfig):
    model_type = "tiny_of_its_own"

    def __init__(self, hidden_size=8, num_hidden_layers=2, patch_size=14, **rest):
        super().__init__(**rest)
        self.hidden_size, self.num_hidden_layers, self.patch_size = hidden_size, num_hidden_layers, patch_size


class Block(nn.Linear):
    def forward(self, x):
        return x + super().forward(x)


class Tiny(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.cls = nn.Parameter(torch.ones(1, 1, config.hidden_size))
        self.embed = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.blocks = nn.ModuleList(Block(config.hidden_size, config.hidden_size) for _ in range(2))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, pixel_values):
        x = self.embed(pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=self.norm(x))
"""


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A model that brings its own code, and the file that the code writes when it runs."""
    monkeypatch.setattr(hf.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = tmp_path / "own-code", tmp_path / "marker"
    folder.mkdir()
    (folder / "modeling_tiny.py").write_text(REMOTE_CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "modeling_tiny.TinyConfig", "AutoModel": "modeling_tiny.Tiny"}
    config = {"model_type": "tiny_of_its_own", "auto_map": auto_map, "hidden_size": 8, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config | {"patch_size": 14}))
    generator = torch.Generator().manual_seed(3)
    shapes = {"cls": (1, 1, 8), "embed.weight": (8, 3, 14, 14), "embed.bias": (8,)}
    shapes |= {f"blocks.{i}.weight": (8, 8) for i in range(2)} | {f"blocks.{i}.bias": (8,) for i in range(2)}
    shapes |= {"norm.weight": (8,), "norm.bias": (8,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, marker, weights


def test_code_that_comes_with_weights_is_not_run(remote):
    folder, marker, _ = remote
    with pytest.raises(TeacherError, match=r"own-code comes with code of its own .*--trust-remote-code"):
        load(folder)
    assert not marker.exists()


def test_a_known_architecture_does_not_make_remote_code_welcome(folder):
    change_config(folder, auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(TeacherError, match="was not run"):
        load(folder)


def test_trusted_code_runs_and_its_tokens_are_found(remote):
    folder, marker, weights = remote
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    seen = load(folder, trust_remote_code=True, layers=("1",))(images)
    assert marker.exists()
    kernel = weights["embed.weight"]
    for y in range(2):
        for x in range(3):
            patch = images[:, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
            token = torch.einsum("bchw,dchw->bd", patch, kernel) + weights["embed.bias"]
            token = token + token @ weights["blocks.0.weight"].T + weights["blocks.0.bias"]
            assert torch.allclose(seen.layers["1"][:, :, y, x], token, rtol=1e-4, atol=1e-4)
    cls = weights["cls"][0, 0]
    for i in range(2):
        cls = cls + weights[f"blocks.{i}.weight"] @ cls + weights[f"blocks.{i}.bias"]
    cls = torch.nn.functional.layer_norm(cls, (8,), weights["norm.weight"], weights["norm.bias"])
    assert torch.allclose(seen.global_token, cls.expand(2, -1), rtol=1e-4, atol=1e-4)


def test_the_hash_of_one_file_is_that_of_its_bytes(folder):
    want = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert load(folder).card.weights_sha256 == want


@pytest.fixture
def sharded(saved, tmp_path):
    model = hf.Dinov2Model.from_pretrained(saved)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def test_shards_load_like_one_file_and_are_hashed_together(saved, sharded):
    teacher = load(sharded)
    assert torch.equal(features(teacher), features(load(saved)))
    shards = sorted(sharded.glob("*.safetensors"))
    hashes = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in shards]
    assert teacher.card.weights_sha256 == hashlib.sha256(canonical_json(hashes)).hexdigest()


def test_a_lacking_shard_is_named(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(TeacherError, match=f"lacks shard {lost.name}"):
        load(sharded)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", 7])
def test_an_index_cannot_lead_out_of_the_folder(sharded, name):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"layernorm.weight": name}}))
    with pytest.raises(TeacherError, match=r"no shard beside it|lists no shards"):
        load(sharded)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no config.json"),
        ("{", r"config\.json cannot be read"),
        ("[1]", r"config\.json is not a JSON object"),
        ("[" * 100_000, r"config\.json cannot be read"),
        ("{}", "type 'unknown', which is no known image teacher"),
        ('{"model_type": "bert"}', "type 'bert', which is no known image teacher"),
    ],
)
def test_a_config_that_is_no_image_model_is_refused(folder, text, message):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(TeacherError, match=message):
        load(folder)


def test_a_folder_without_weights_says_what_it_lacks(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"has no weights.*model\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("card", "want"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n", "apache-2.0"),
        ("---\r\nlicense: 'cc-by-nc-4.0'\r\n---\r\n", "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        ("---\nlicense: other\n---\n", "other"),
        ("# Model\nlicense: mit\n", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_licence_is_what_the_card_states(tmp_path, card, want):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    assert licence(tmp_path) == want


def test_mean_and_std_come_from_beside_the_weights(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}))
    pre = load(folder).card.preprocessing
    assert (pre.mean, pre.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    path.write_text(json.dumps({"do_normalize": False, "image_mean": [1, 1, 1]}))
    pre = load(folder).card.preprocessing
    assert (pre.mean, pre.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    path.write_text(json.dumps({"image_mean": [0.1], "image_std": [1, 2, 3]}))
    with pytest.raises(TeacherError, match=r"image_mean is \[0\.1\], not three numbers"):
        load(folder)


def test_the_card_tells_a_stranger_no_path(folder):
    card = load(folder, revision="mine").card
    assert card.source == "tiny-dino"
    assert card.revision == "mine"
    assert card.architecture == "Dinov2Model"
    assert str(folder.parent) not in repr(card)


def test_a_folder_is_loaded_without_the_network(folder, monkeypatch):
    def refuse(*_args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(folder)


def test_a_model_of_the_hub_is_found_in_the_local_cache_by_revision(folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1").write_text(commit)
    shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    teacher = load("someone/tiny@v1")
    assert torch.equal(features(teacher), features(load(folder)))
    assert (teacher.card.source, teacher.card.revision) == ("someone/tiny", commit)
    with pytest.raises(TeacherError, match=r"cannot get someone/tiny \(revision main\) from the Hugging Face hub"):
        load("someone/tiny")
