"""Hierarchical backbones give a grid per stage, before the next stage merges cells."""

import pytest
import torch
import transformers as hf

from hilda_cache.teachers import TeacherSpec, load_teacher
from hilda_schema.errors import TeacherError

WINDOWS = {"embed_dim": 12, "depths": [1, 2, 1], "num_heads": [1, 2, 4], "window_size": 4, "image_size": 64}
SIZES = {"depths": [1, 2, 1], "hidden_sizes": [8, 16, 24]}
MAPS = SIZES | {"num_stages": 3}

MAKERS = {
    "swin": lambda: hf.SwinModel(hf.SwinConfig(**WINDOWS)),
    "swin-absolute": lambda: hf.SwinModel(hf.SwinConfig(**WINDOWS, use_absolute_embeddings=True)),
    "swinv2": lambda: hf.Swinv2Model(hf.Swinv2Config(**WINDOWS)),
    "convnext": lambda: hf.ConvNextModel(hf.ConvNextConfig(**MAPS)),
    "convnextv2": lambda: hf.ConvNextV2Model(hf.ConvNextV2Config(**MAPS)),
    "dinov3_convnext": lambda: hf.DINOv3ConvNextModel(
        hf.DINOv3ConvNextConfig(depths=[1, 2, 1], hidden_sizes=[8, 16, 24])
    ),
    "resnet": lambda: hf.ResNetModel(hf.ResNetConfig(depths=[1, 2, 1], hidden_sizes=[8, 16, 24], embedding_size=8)),
    "resnet-early": lambda: hf.ResNetModel(
        hf.ResNetConfig(depths=[1, 2, 1], hidden_sizes=[8, 16, 24], embedding_size=8, downsample_in_first_stage=True)
    ),
}
STEM = {"resnet-early": 8}
every_family = pytest.mark.parametrize("family", MAKERS)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """family -> (the model, the folder it was saved in); every weight and statistic is random."""
    made = {}
    hf.utils.logging.disable_progress_bar()
    for number, (family, make) in enumerate(MAKERS.items()):
        torch.manual_seed(number)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.25)
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0.0, 0.25)
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 2.0)
        folder = tmp_path_factory.mktemp("pyramids") / family
        model.save_pretrained(folder)
        made[family] = model, folder
    return made


def load(folder, **options):
    return load_teacher(TeacherSpec("t", str(folder), **options))


def images_of(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


def close(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def reference(model, images):
    """The stages' grids as the library hands them to detectors, or found by running the stages one by one."""
    with torch.no_grad():
        if hasattr(model, "layernorm") and hasattr(model.encoder, "layers"):
            tokens, size = model.embeddings(images, interpolate_pos_encoding=True)
            grids = []
            for stage in model.encoder.layers:
                for block in stage.blocks:
                    tokens = block(tokens, size)
                    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
                grids.append(torch.stack([t.T.reshape(-1, *size) for t in tokens]))
                if stage.downsample is not None:
                    tokens, size = stage.downsample(tokens, size), (size[0] // 2, size[1] // 2)
            return grids
        return list(model(images, output_hidden_states=True).hidden_states[1:])


@every_family
@pytest.mark.parametrize("size", [(64, 96), (160, 64)])
def test_every_stage_is_there_before_merging(models, family, size):
    model, folder = models[family]
    images = images_of(*size)
    teacher = load(folder, layers=("stage1", "2", "-1"), image_size=size)
    step = STEM.get(family, 4)
    want = [(f"stage{i + 1}", size[0] // (step << i), size[1] // (step << i)) for i in range(3)]
    assert [(layer.name, layer.height, layer.width) for layer in teacher.card.layers] == want
    features = teacher(images)
    for grid, theirs in zip(features.layers.values(), reference(model, images), strict=True):
        assert close(grid, theirs)


@every_family
def test_the_global_token_is_the_pooled_output(models, family):
    model, folder = models[family]
    images = images_of(64, 64)
    teacher = load(folder, layers=("-1",), image_size=(64, 64))
    with torch.no_grad():
        want = model(images).pooler_output.flatten(1)
    token = teacher(images).global_token
    assert close(token, want)
    assert teacher.card.global_width == want.shape[1]


@pytest.mark.parametrize("family", ["swin", "swinv2", "convnext", "convnextv2", "dinov3_convnext"])
def test_the_final_norm_belongs_to_the_last_stage(models, family):
    model, folder = models[family]
    images = images_of(64, 96)
    before = load(folder, layers=("-1",), image_size=(64, 96))(images).layers["stage3"]
    after = load(folder, layers=("-1",), image_size=(64, 96), norm="post")(images).layers["stage3"]
    norm = model.layer_norm if family == "dinov3_convnext" else model.layernorm
    mean = before.mean(1, keepdim=True)
    spread = (before.var(1, keepdim=True, correction=0) + norm.eps).sqrt()
    weight, bias = norm.weight.detach()[:, None, None], norm.bias.detach()[:, None, None]
    assert close(after, (before - mean) / spread * weight + bias)
    with pytest.raises(TeacherError, match="only the last stage"):
        load(folder, layers=("-2", "-1"), image_size=(64, 96), norm="post")


def test_a_pyramid_without_a_final_norm_says_so(models):
    with pytest.raises(TeacherError, match="no final normalisation"):
        load(models["resnet"][1], layers=("-1",), image_size=(64, 64), norm="post")


def test_a_misspelt_stage_gets_a_suggestion(models):
    with pytest.raises(TeacherError, match=r"did you mean 'stage3'.*3 layers, stage1 to stage3"):
        load(models["swin"][1], layers=("stage33",), image_size=(64, 64))


@pytest.mark.parametrize(("family", "step"), [("swin", 16), ("convnext", 16), ("resnet-early", 32)])
def test_a_size_that_is_not_whole_cells_of_the_coarsest_stage_is_refused(models, family, step):
    with pytest.raises(TeacherError, match=f"not a multiple of {step}x{step} pixels.*--image-size 64x64 or"):
        load(models[family][1], image_size=(70, 70))


def test_an_image_of_less_than_one_window_is_refused(models):
    with pytest.raises(TeacherError, match=r"smaller than one window of 4x4 cells.*at least 64 pixels"):
        load(models["swin"][1], image_size=(32, 160))


@pytest.mark.parametrize("family", ["swin", "swinv2", "convnext", "resnet"])
def test_bfloat16_is_near_and_float32_comes_back_exactly(models, family):
    images = images_of(64, 64)
    teacher = load(models[family][1], layers=("stage1", "stage2"), image_size=(64, 64))
    exact = teacher(images).layers["stage2"]
    teacher.to_precision(torch.bfloat16)
    near = teacher(images).layers["stage2"]
    teacher.to_precision(torch.float32)
    assert 1e-4 < float((near - exact).norm() / exact.norm()) < 0.2
    assert torch.equal(teacher(images).layers["stage2"], exact)
