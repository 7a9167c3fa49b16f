"""Vision transformers give the tokens that transformers itself gives, in the right place, at any image size."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf

from hilda_cache.teachers import Teacher, TeacherSpec, load_teacher
from hilda_schema.errors import TeacherError

WIDTH, DEPTH, PATCH = 24, 3, 14
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "patch_size": PATCH}
TOWER = COMMON | {"image_size": 56, "intermediate_size": 40}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 99}


def make_dinov2():
    return hf.Dinov2Model(hf.Dinov2Config(**COMMON, image_size=56))


def make_swiglu():
    return hf.Dinov2Model(hf.Dinov2Config(**COMMON, image_size=56, use_swiglu_ffn=True))


def make_registers():
    return hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**COMMON, image_size=56, num_register_tokens=4))


def make_dinov3():
    return hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**COMMON, image_size=56, num_register_tokens=4, intermediate_size=40))


def make_clip():
    return hf.CLIPVisionModel(hf.CLIPVisionConfig(**TOWER))


def make_clip_with_text():
    return hf.CLIPModel(hf.CLIPConfig(text_config=TEXT | {"eos_token_id": 2}, vision_config=TOWER, projection_dim=8))


def make_siglip():
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**TOWER))


def make_headless_siglip():
    return hf.SiglipVisionModel(hf.SiglipVisionConfig(**TOWER, vision_use_head=False))


def make_siglip_with_text():
    return hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=TOWER))


def make_siglip2():
    sizes = {key: value for key, value in TOWER.items() if key != "image_size"}
    return hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**sizes, num_patches=16))


def make_radio():
    return hf.RadioModel(hf.RadioConfig(**COMMON, max_img_size=56, num_cls_tokens=2, num_registers=3))


# family -> (maker, prefix tokens, final LayerNorm)
FAMILIES = {
    "dinov2": (make_dinov2, 1, "layernorm"),
    "dinov2-swiglu": (make_swiglu, 1, "layernorm"),
    "registers": (make_registers, 5, "layernorm"),
    "dinov3": (make_dinov3, 5, "norm"),
    "clip": (make_clip, 1, "post_layernorm"),
    "clip-with-text": (make_clip_with_text, 1, "post_layernorm"),
    "siglip": (make_siglip, 0, "post_layernorm"),
    "siglip-headless": (make_headless_siglip, 0, "post_layernorm"),
    "siglip-with-text": (make_siglip_with_text, 0, "post_layernorm"),
    "siglip2": (make_siglip2, 0, "post_layernorm"),
    "radio": (make_radio, 5, None),
}
if not hasattr(hf, "RadioModel"):  # transformers before 5
    del FAMILIES["radio"]
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """family -> a saved model in which every weight, norms and biases too, is random and so makes a difference."""
    made = {}
    for number, (family, (make, _, _)) in enumerate(FAMILIES.items()):
        torch.manual_seed(number)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.25)
        made[family] = tmp_path_factory.mktemp("models") / family
        hf.utils.logging.disable_progress_bar()
        model.save_pretrained(made[family])
    return made


@cache
def tower(folder, family):
    """The same model loaded by transformers alone."""
    names = {"clip-with-text": "CLIPVisionModel", "siglip-with-text": "SiglipVisionModel"}
    name = names.get(family) or type(FAMILIES[family][0]()).__name__
    return getattr(hf, name).from_pretrained(folder, attn_implementation="eager").eval()


def call(model, images):
    """What transformers alone makes of images, hidden states and all."""
    kind = type(model).__name__
    options = {"interpolate_pos_encoding": True} if kind in {"CLIPVisionModel", "SiglipVisionModel"} else {}
    if kind == "Siglip2VisionModel":
        rows, columns = images.shape[2] // PATCH, images.shape[3] // PATCH
        patches = [
            image[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH].permute(1, 2, 0).flatten()
            for image in images
            for y in range(rows)
            for x in range(columns)
        ]
        options["pixel_attention_mask"] = torch.ones(len(images), rows * columns, dtype=torch.long)
        options["spatial_shapes"] = torch.tensor([(rows, columns)] * len(images))
        images = torch.stack(patches).reshape(len(images), rows * columns, -1)
    with torch.no_grad():
        return model(pixel_values=images, output_hidden_states=True, **options)


def by_hand(tokens, prefix, rows, columns):
    """(B, prefix + N, C) -> (B, C, H, W), one token at a time."""
    grid = np.zeros((len(tokens), tokens.shape[2], rows, columns), np.float32)
    for y in range(rows):
        for x in range(columns):
            grid[:, :, y, x] = tokens[:, prefix + y * columns + x]
    return torch.from_numpy(grid)


def close(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def images_of(rows, columns, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, rows * PATCH, columns * PATCH, generator=generator)


def load(folder, **options):
    return load_teacher(TeacherSpec("t", str(folder), **options))


@every_family
@pytest.mark.parametrize(("rows", "columns"), [(4, 8), (3, 5)])
def test_layers_are_the_outputs_of_the_blocks(folders, family, rows, columns):
    prefix = FAMILIES[family][1]
    images = images_of(rows, columns)
    model = tower(folders[family], family)
    hidden = call(model, images).hidden_states
    teacher = load(folders[family], layers=(1, 2), image_size=(rows * PATCH, columns * PATCH))
    assert isinstance(teacher, Teacher)
    features = teacher(images)
    assert list(features.layers) == ["1", "2"]
    for name, grid in features.layers.items():
        assert grid.dtype == torch.float32
        assert close(grid, by_hand(hidden[int(name)], prefix, rows, columns)), name
    shapes = [(layer.name, layer.channels, layer.height, layer.width) for layer in teacher.card.layers]
    assert shapes == [("1", WIDTH, rows, columns), ("2", WIDTH, rows, columns)]


@every_family
def test_norm_decides_whether_the_last_layer_is_normalised(folders, family):
    _, prefix, norm = FAMILIES[family]
    if norm is None:
        with pytest.raises(TeacherError, match="no final normalisation"):
            load(folders[family], norm="post", image_size=(56, 84))
        return
    images = images_of(4, 6)
    model = tower(folders[family], family)
    options = {"layers": ("-1",), "image_size": (56, 84)}
    before = load(folders[family], **options)(images).layers["3"]
    after = load(folders[family], norm="post", **options)(images).layers["3"]
    layer_norm = getattr(getattr(model, "vision_model", model), norm)
    assert close(
        after.permute(0, 2, 3, 1),
        F.layer_norm(
            before.permute(0, 2, 3, 1), (WIDTH,), layer_norm.weight.detach(), layer_norm.bias.detach(), layer_norm.eps
        ),
    )
    last = call(model, images).last_hidden_state  # normalised by every family but CLIP, which leaves it as it is
    assert close(before if "clip" in family else after, by_hand(last, prefix, 4, 6))
    assert not close(before, after)


@every_family
def test_the_global_token_is_the_models_own(folders, family):
    images = images_of(4, 6)
    output = call(tower(folders[family], family), images)
    if family == "radio":
        want = torch.cat([output.last_hidden_state[:, 0], output.last_hidden_state[:, 1]], dim=1)
    elif family == "siglip-headless":
        want = output.last_hidden_state.mean(dim=1)
    else:
        want = output.pooler_output
    teacher = load(folders[family], layers=("-1",), image_size=(56, 84))
    token = teacher(images).global_token
    assert teacher.card.global_width == token.shape[1] == want.shape[1]
    assert close(token, want)


@pytest.mark.parametrize("family", ["dinov2", "siglip"])
def test_the_norm_of_the_layers_does_not_touch_the_global_token(folders, family):
    images = images_of(4, 6)
    pre, post = (load(folders[family], layers=("-1",), image_size=(56, 84), norm=norm) for norm in ("pre", "post"))
    assert torch.equal(pre(images).global_token, post(images).global_token)


@every_family
def test_a_changed_patch_changes_most_the_token_at_its_place(folders, family):
    rows, columns = 3, 7
    teacher = load(folders[family], layers=("1",), image_size=(rows * PATCH, columns * PATCH))
    dark = torch.zeros(1, 3, rows * PATCH, columns * PATCH)
    before = teacher(dark).layers["1"][0]
    for y, x in [(0, 0), (0, 6), (2, 0), (1, 4)]:
        lit = dark.clone()
        lit[0, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] = 3.0
        change = (teacher(lit).layers["1"][0] - before).norm(dim=0)
        assert divmod(int(change.argmax()), columns) == (y, x)


def test_negative_layers_count_from_the_end_and_come_shallow_to_deep(folders):
    images = images_of(4, 4)
    teacher = load(folders["dinov2"], layers=("-1", "1", "-2"), image_size=(56, 56))
    assert [layer.name for layer in teacher.card.layers] == ["1", "2", "3"]
    numbered = load(folders["dinov2"], layers=(1, 2, 3), image_size=(56, 56))
    for name, grid in teacher(images).layers.items():
        assert torch.equal(grid, numbered(images).layers[name])


def test_one_image_is_seen_alike_alone_and_in_a_batch(folders):
    images = images_of(4, 8, batch=3)
    for family in ("dinov2", "siglip2", "dinov3"):
        teacher = load(folders[family], image_size=(56, 112))
        whole = teacher(images)
        alone = [teacher(images[i : i + 1]) for i in range(3)]
        for name in whole.layers:
            assert close(torch.cat([one.layers[name] for one in alone]), whole.layers[name])
        assert close(torch.cat([one.global_token for one in alone]), whole.global_token)


def test_two_teachers_side_by_side_do_not_touch_each_other(folders):
    images = images_of(4, 4)
    first = load(folders["dinov2"], layers=("-1",), image_size=(56, 56))
    alone = first(images).layers["3"]
    second = load(folders["dinov2"], layers=("-1",), image_size=(56, 56))
    second.to_precision(torch.bfloat16)
    other = load(folders["clip"], layers=("-1",), image_size=(56, 56))
    rounded = second(images).layers["3"]
    other(images)
    assert torch.equal(first(images).layers["3"], alone)
    assert rounded.dtype == torch.float32
    assert 1e-4 < float((rounded - alone).norm() / alone.norm()) < 0.1


@pytest.mark.parametrize("family", ["registers", "dinov3", "clip", "siglip2", "radio"])
def test_bfloat16_is_near_and_float32_comes_back_exactly(folders, family):
    if family not in folders:
        pytest.skip(f"transformers {hf.__version__} has no {family}")
    images = images_of(4, 4)
    teacher = load(folders[family], layers=("2",), image_size=(56, 56))
    exact = teacher(images)
    teacher.to_precision(torch.bfloat16)
    near = teacher(images)
    teacher.to_precision(torch.float32)
    again = teacher(images)
    assert 1e-4 < float((near.layers["2"] - exact.layers["2"]).norm() / exact.layers["2"].norm()) < 0.1
    assert torch.equal(again.layers["2"], exact.layers["2"])
    assert torch.equal(again.global_token, exact.global_token)
    with pytest.raises(TeacherError, match=r"cannot run in torch\.float16"):
        teacher.to_precision(torch.float16)


def test_rotary_angles_keep_their_precision_in_bfloat16(folders):
    teacher = load(folders["dinov3"], layers=("1",), image_size=(56, 56))
    before = {name: buffer.clone() for name, buffer in teacher._model.named_buffers() if "inv_freq" in name}
    teacher.to_precision(torch.bfloat16)
    after = {name: buffer for name, buffer in teacher._model.named_buffers() if "inv_freq" in name}
    assert before
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())


@pytest.mark.parametrize(
    ("size", "advice"), [((225, 448), "224x448 or 238x448"), ((230, 455), "224x448 or 238x462"), ((5, 28), "14x28")]
)
def test_a_size_that_is_not_whole_patches_is_refused_with_the_nearest(folders, size, advice):
    with pytest.raises(TeacherError, match=f"not a multiple of 14x14 pixels.*--image-size {advice}$"):
        load(folders["dinov2"], image_size=size)


@pytest.mark.parametrize("layer", ["4", "0", "-4", "stage2", "1.5"])
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(folders, layer):
    with pytest.raises(TeacherError, match=r"no layer .* 3 layers, 1 to 3 \(or -3 to -1\)"):
        load(folders["dinov2"], layers=(layer,), image_size=(56, 56))


def test_images_of_another_size_are_refused(folders):
    teacher = load(folders["dinov2"], image_size=(56, 56))
    with pytest.raises(TeacherError, match=r"prepare them as \(B, 3, 56, 56\)"):
        teacher(torch.zeros(1, 3, 56, 70))


@pytest.mark.parametrize(
    ("family", "mean"),
    [
        ("dinov2", (0.485, 0.456, 0.406)),
        ("clip", (0.48145466, 0.4578275, 0.40821073)),
        ("siglip", (0.5, 0.5, 0.5)),
        ("radio", (0.0, 0.0, 0.0)),
    ],
)
def test_images_are_standardised_as_the_family_was_trained(folders, family, mean):
    if family not in folders:
        pytest.skip(f"transformers {hf.__version__} has no {family}")
    assert load(folders[family], image_size=(56, 56)).card.preprocessing.mean == mean
