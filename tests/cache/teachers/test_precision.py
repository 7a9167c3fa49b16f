"""bfloat16 is chosen where it is fast and shown to be right, and never for a network that it ruins."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hilda_cache.images import prepare, read_image
from hilda_cache.teachers import Features, TeacherSpec, load_teacher
from hilda_cache.teachers.precision import (
    THRESHOLD,
    choose_precision,
    has_fast_bfloat16,
    mean_centred_cosine,
    measure_bfloat16,
)
from hilda_cache.teachers.random_vit import save_random_dinov2

FAST = has_fast_bfloat16("cpu")


class Noisy:
    """A teacher whose bfloat16 answers differ by noise of a given size; of two layers the second is the worse."""

    def __init__(self, noise, token=True):
        self.noise, self.token, self.dtype, self.seen = noise, token, torch.float32, []

    def to_precision(self, dtype):
        self.dtype = dtype

    def __call__(self, images):
        self.seen.append(len(images))
        generator = torch.Generator().manual_seed(0)
        base = torch.randn(len(images), 32, 5, 7, generator=generator) + 100
        error = torch.randn(base.shape, generator=generator) * (self.noise if self.dtype == torch.bfloat16 else 0.0)
        layers = {"1": base + error / 2, "2": base + error}
        return Features(layers, layers["1"].mean((2, 3)) if self.token else None)


def images_of(count):
    return torch.randn(count, 3, 10, 14, generator=torch.Generator().manual_seed(1))


@given(
    hnp.arrays(np.float32, (9, 5), elements=st.floats(-10, 10, width=32)),
    hnp.arrays(np.float32, (9, 5), elements=st.floats(-10, 10, width=32)),
)
def test_the_cosine_is_the_textbooks(reference, other):
    centre = reference.astype(np.float64).mean(0)
    cosines = []
    for a, b in zip(reference - centre, other - centre, strict=True):
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        if norms < 1e-3:
            return  # no direction to speak of
        cosines.append(a @ b / norms)
    assert mean_centred_cosine(torch.from_numpy(reference), torch.from_numpy(other)) == pytest.approx(np.mean(cosines))


def test_a_large_common_part_does_not_hide_an_error():
    generator = torch.Generator().manual_seed(0)
    signal, error = torch.randn(2, 500, 32, generator=generator)
    reference, other = signal + 100, signal + error + 100
    assert torch.nn.functional.cosine_similarity(reference, other).mean() > 0.9999
    assert mean_centred_cosine(reference, other) < 0.8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_agreement(value):
    reference = torch.randn(6, 4)
    other = reference.clone()
    other[2, 1] = value
    assert mean_centred_cosine(reference, other) == -1


@pytest.mark.skipif(not FAST, reason="this processor has no fast bfloat16")
@pytest.mark.parametrize(("noise", "want"), [(0.01, "bfloat16"), (0.2, "float32")])
def test_the_worst_layer_decides(noise, want):
    teacher = Noisy(noise)
    choice = choose_precision(teacher, images_of(6), device="cpu")
    assert choice.dtype == want
    assert teacher.dtype == getattr(torch, want)
    assert set(choice.cosines) == {"1", "2", "global"}
    assert choice.cosines["2"] == min(choice.cosines.values())
    assert (choice.cosines["2"] >= THRESHOLD) == (want == "bfloat16")
    told = float(choice.reason.split("cosine ")[1].removeprefix(">= ").split(" ")[0])
    assert 0 <= choice.cosines["2"] - told < 1e-5
    assert choice.reason.startswith(f"{want}: ")
    assert "on 6 images" in choice.reason
    assert choose_precision(Noisy(noise), images_of(6), device="cpu").reason == choice.reason


def test_a_single_image_is_joined_by_its_quarters_to_judge_the_global_token():
    teacher = Noisy(0.01)
    assert measure_bfloat16(teacher, images_of(1))["global"] > 0.99
    assert teacher.seen == [5, 5]


def test_a_teacher_without_a_global_token_is_judged_by_its_layers():
    assert set(measure_bfloat16(Noisy(0.01, token=False), images_of(2))) == {"1", "2"}


@pytest.mark.parametrize(
    ("text", "fast"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f\nbugs\t\t: amx_bf16\n", False),
        ("", False),
    ],
)
def test_fast_bfloat16_is_read_from_the_processors_flags(tmp_path, text, fast):
    (tmp_path / "cpuinfo").write_text(text)
    assert has_fast_bfloat16("cpu", tmp_path / "cpuinfo") is fast
    assert has_fast_bfloat16("cpu", tmp_path / "none") is False
    assert has_fast_bfloat16("mps", tmp_path / "cpuinfo") is False


def test_a_processor_without_it_stays_in_float32_unmeasured(tmp_path):
    teacher = Noisy(0.0)
    choice = choose_precision(teacher, images_of(6), device="mps")
    assert (choice.dtype, choice.reason) == ("float32", "float32: this processor has no fast bfloat16")
    assert not teacher.seen


def street(sample_data, teacher, count):
    files = sorted((sample_data / "data/pandaset/002/camera").glob("*/05.jpg"))[:count]
    pre = teacher.card.preprocessing
    return torch.stack([prepare(read_image(file.read_bytes(), file.name), pre) for file in files])


def test_a_network_with_linear_attention_is_kept_out_of_bfloat16(sample_data):
    path = sample_data / "weights/efficientvit-b0-cityscapes/efficientvit_b0.py"
    spec = TeacherSpec("t", f"{path}:teacher", layers=("stage3", "stage4"), image_size=(128, 256))
    teacher = load_teacher(spec)
    images = street(sample_data, teacher, 2)
    before = teacher(images).layers["stage4"]
    choice = choose_precision(teacher, images)
    assert choice.dtype == "float32"
    assert torch.equal(teacher(images).layers["stage4"], before)
    cosines = choice.cosines or measure_bfloat16(teacher, images)
    assert max(cosines["stage3"], cosines["stage4"]) < 0.99


def test_a_plain_vision_transformer_keeps_its_layers_in_bfloat16(sample_data, tmp_path):
    folder = save_random_dinov2(tmp_path / "vit", 0)
    teacher = load_teacher(TeacherSpec("t", str(folder), layers=("3", "4"), image_size=(224, 448)))
    cosines = measure_bfloat16(teacher, street(sample_data, teacher, 2))
    assert min(cosines["3"], cosines["4"]) > THRESHOLD
