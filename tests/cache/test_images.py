"""Untrusted image bytes never decode to wrong pixels, and the resampler is the one that the manifest names."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hilda_cache.images import MAX_IMAGE_PIXELS, prepare, read_image
from hilda_cache.teachers.base import Preprocessing
from hilda_schema.errors import DriveError

WHERE = "camera/front/03.jpg (frame pandaset/002/03)"
PLAIN = Preprocessing(224, 448, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A smooth random scene with noise on top, so that every part of the file carries information."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_file(width: int, height: int, before_header: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + before_header + header + body


def test_png_pixels_are_exact():
    image = picture(37, 53)
    decoded = read_image(encode(image, "PNG"), WHERE)
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.numpy(), np.asarray(image))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_jpeg_agrees_with_pillow(options):
    data = encode(picture(120, 200), "JPEG", quality=92, **options)
    ours = read_image(data, WHERE).numpy().astype(int)
    theirs = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 0.1
    assert np.abs(ours - theirs).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_grey_image_becomes_three_equal_channels(kind):
    grey = picture(40, 60).convert("L")
    decoded = read_image(encode(grey, kind), WHERE).numpy()
    assert decoded.shape == (40, 60, 3)
    assert (decoded[..., 0] == decoded[..., 1]).all()
    assert (decoded[..., 0] == decoded[..., 2]).all()


def test_alpha_and_palette_are_resolved_without_a_warning():
    image = picture(20, 30)
    transparent = image.copy()
    transparent.putalpha(128)
    assert np.array_equal(read_image(encode(transparent, "PNG"), WHERE).numpy(), np.asarray(image))
    palette = image.quantize(16)
    data = encode(palette, "PNG", transparency=bytes([0] * 16))
    assert np.array_equal(read_image(data, WHERE).numpy(), np.asarray(palette.convert("RGB")))


@settings(max_examples=60, deadline=None)
@given(kept=st.floats(0, 0.999), progressive=st.booleans())
def test_a_truncated_jpeg_is_never_an_image(kept, progressive):
    data = encode(picture(96, 128), "JPEG", quality=85, progressive=progressive)
    with pytest.raises(DriveError, match="frame pandaset/002/03"):
        read_image(data[: int(kept * (len(data) - 2))], WHERE)


@settings(max_examples=60, deadline=None)
@given(kept=st.floats(0, 0.99))
def test_an_end_marker_glued_on_does_not_hide_that_a_jpeg_was_cut(kept):
    data = encode(picture(96, 128), "JPEG", quality=85)
    with pytest.raises(DriveError, match="frame pandaset/002/03"):
        read_image(data[: int(kept * (len(data) - 2))] + b"\xff\xd9", WHERE)


@settings(max_examples=60, deadline=None)
@given(kept=st.floats(0, 0.99))
def test_a_truncated_png_is_never_an_image(kept):
    data = encode(picture(48, 64), "PNG")
    with pytest.raises(DriveError, match="frame pandaset/002/03"):
        read_image(data[: int(kept * len(data))], WHERE)


@settings(max_examples=80, deadline=None)
@given(position=st.integers(8, 10**6), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG"]))
def test_damaged_bytes_give_an_image_of_the_declared_kind_or_a_named_error(position, value, kind):
    data = bytearray(encode(picture(48, 64), kind))
    data[position % len(data)] = value
    try:
        image = read_image(bytes(data), WHERE)
    except DriveError as error:
        named = WHERE in str(error)
    else:  # flipped pixels cannot be noticed here, only by the hash that a drive keeps
        named = image.dtype == torch.uint8 and image.shape[2] == 3
    assert named


@settings(max_examples=60, deadline=None)
@given(head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]), tail=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(head, tail):
    with pytest.raises(DriveError, match="frame pandaset/002/03"):
        read_image(head + tail, WHERE)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_only_jpeg_and_png_are_opened(kind):
    with pytest.raises(DriveError, match="neither JPEG nor PNG"):
        read_image(encode(picture(16, 16), kind), WHERE)


def test_an_empty_file_says_so():
    with pytest.raises(DriveError, match="it is empty"):
        read_image(b"", WHERE)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_png_bomb_is_refused_before_it_is_unpacked(hidden):
    # A chunk before the header moves the true size away from the place where it is first looked for.
    decoy = png_chunk(b"tEXt", struct.pack(">II", 8, 8)) if hidden else b""
    with pytest.raises(DriveError, match=r"declares 9000x9000 pixels|damaged or truncated"):
        read_image(png_file(9000, 9000, decoy), WHERE)


def test_a_jpeg_bomb_is_refused_before_it_is_unpacked():
    data = bytearray(encode(picture(16, 16), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", 60000, 60000)
    assert MAX_IMAGE_PIXELS < 60000 * 60000
    with pytest.raises(DriveError, match="declares 60000x60000 pixels"):
        read_image(bytes(data), WHERE)


def test_pixels_that_have_no_plain_rgb_meaning_are_refused():
    with pytest.raises(DriveError, match="CMYK"):
        read_image(encode(picture(16, 16).convert("CMYK"), "JPEG"), WHERE)
    deep = Image.fromarray(np.full((16, 16), 40000, np.uint16))
    with pytest.raises(DriveError, match="mode I;16"):
        read_image(encode(deep, "PNG"), WHERE)


@settings(max_examples=10, deadline=None)
@given(size=st.tuples(st.integers(225, 500), st.integers(449, 900)), seed=st.integers(0, 99))
def test_shrinking_is_pillows_bicubic(size, seed):
    image = picture(*size, seed=seed)
    ours = prepare(torch.from_numpy(np.array(image)), PLAIN).numpy() * 255
    theirs = np.asarray(image.resize((448, 224), Image.BICUBIC)).transpose(2, 0, 1)
    assert ours.shape == (3, 224, 448)
    # Both round to whole grey levels between the two passes, and Pillow picks which pass comes first.
    # Lanczos, the next best guess, is 0.6 levels away on the average, everything else more.
    assert np.abs(ours - theirs).mean() < 0.3
    assert np.abs(ours - theirs).max() < 3.01


def test_standardisation_is_that_of_the_teacher():
    pre = Preprocessing(28, 42, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    image = np.array(picture(28, 42))  # no resampling: the arithmetic alone
    want = (image.transpose(2, 0, 1) / 255 - np.reshape(pre.mean, (3, 1, 1))) / np.reshape(pre.std, (3, 1, 1))
    got = prepare(torch.from_numpy(image), pre)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert np.abs(got.numpy() - want).max() < 1e-6


def test_real_images_decode_and_resize_as_pillow_does(sample_data):
    paths = [
        sample_data / "data/pandaset/002/camera/front_camera/05.jpg",
        sample_data / "data/pandaset/002/camera/left_camera/00.jpg",
        *sorted((sample_data / "data/nuscenes_keyframe").rglob("*.jpg"))[:2],
        *sorted((sample_data / "data/kitti_raw").rglob("*.png"))[:1],
    ]
    for path in paths:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as reference:
            theirs = np.asarray(reference.convert("RGB").resize((448, 224), Image.BICUBIC)).transpose(2, 0, 1)
        ours = prepare(read_image(data, path.name), PLAIN).numpy() * 255
        assert np.abs(ours - theirs).mean() < 0.1, path
