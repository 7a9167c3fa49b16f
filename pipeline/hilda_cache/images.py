"""Camera images: untrusted bytes to RGB pixels, RGB pixels to a teacher's input.

The resampler changes a teacher's features more than the decoder does, and both change them more than anything else
outside the model. So there is exactly one of each, `RESIZE` names them, and the name is part of every recipe.

Orientation tags (EXIF) are not applied: intrinsics are calibrated on the pixels as they are stored.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hilda_cache.teachers.base import Preprocessing
from hilda_schema.errors import DriveError

RESIZE = "full decode (JPEG libjpeg-turbo, PNG Pillow); antialiased bicubic on uint8 (torch)"
"""Decoder and resampler as the manifest names them; change the text with either."""

MAX_IMAGE_BYTES = 2**27
MAX_IMAGE_PIXELS = 2**26  # 67 megapixels, 8 times a large automotive camera; 201 MB as RGB

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_ERRORS = (OSError, SyntaxError, ValueError, EOFError, zlib.error, struct.error, Image.DecompressionBombError)
_PNG_MODES = {"RGB", "RGBA", "L", "LA", "P"}  # 8 bits a channel; Pillow would clip 16-bit grey silently


def read_image(data: bytes, where: str) -> Tensor:
    """Decode a camera image at full size.

    Args:
        data: the file's bytes: JPEG, or PNG with at most 8 bits a channel (an alpha channel is dropped).
        where: the file, and the frame where there is one, for messages.

    Returns:
        (H, W, 3) uint8 RGB. Grey images have three equal channels.

    Raises:
        DriveError: not such an image, truncated, damaged, or larger than `MAX_IMAGE_PIXELS`.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise DriveError(f"{where}: {len(data):,} bytes are too many for a camera image", "check the file")
    if data.startswith(_JPEG):
        return torch.from_numpy(_decode_jpeg(data, where))
    if data.startswith(_PNG):
        return torch.from_numpy(_decode_png(data, where))
    found = f"starts with {data[:8].hex(' ')}" if data else "is empty"
    raise DriveError(f"{where} is neither JPEG nor PNG: it {found}", "restore the file from the dataset")


def prepare(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize (never crop), scale to 0..1 and standardise an image.

    Bicubic with a = -0.5, widened by the scale when shrinking, rounded to whole grey levels: Pillow's BICUBIC.

    Args:
        image: (H, W, 3) uint8 RGB.
        preprocessing: the teacher's; h and w below are its height_px and width_px.

    Returns:
        (3, h, w) float32, contiguous.
    """
    size = (preprocessing.height_px, preprocessing.width_px)
    batch = image.permute(2, 0, 1)[None]  # a view: torch's fast path wants channels last in memory
    small = F.interpolate(batch, size=size, mode="bicubic", align_corners=False, antialias=True)[0]
    mean = torch.tensor(preprocessing.mean, dtype=torch.float32)[:, None, None]
    std = torch.tensor(preprocessing.std, dtype=torch.float32)[:, None, None]
    return ((small.to(torch.float32) / 255 - mean) / std).contiguous()


def _check_size(height: int, width: int, where: str) -> None:
    """Refuse a declared size before anything of that size is allocated."""
    if height * width > MAX_IMAGE_PIXELS:
        raise DriveError(
            f"{where} declares {width}x{height} pixels, more than the {MAX_IMAGE_PIXELS:,} that are decoded",
            "check the file: no camera makes such an image",
        )


def _damaged(where: str, kind: str, error: Exception) -> DriveError:
    return DriveError(f"{where} is a damaged or truncated {kind}: {error}", "restore the file from the dataset")


def _decode_jpeg(data: bytes, where: str) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; strict, because a lenient decoder paints what is missing of a truncated file in flat grey."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        _check_size(height, width, where)
        if colour in {"CMYK", "YCCK"}:
            raise DriveError(f"{where} is a JPEG in {colour} colours", "convert it to RGB")
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    except ValueError as error:
        raise _damaged(where, "JPEG", error) from error
    return image


def _decode_png(data: bytes, where: str) -> NDArray[np.uint8]:
    """(H, W, 3) RGB."""
    try:
        width, height = struct.unpack(">II", data[16:24])  # its fixed place, read before Pillow sees the file
        _check_size(height, width, where)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            _check_size(picture.height, picture.width, where)  # a malformed file may hide the true one elsewhere
            if picture.mode not in _PNG_MODES:
                raise DriveError(f"{where} is a PNG of mode {picture.mode}", "convert it to 8-bit RGB")
            if picture.mode == "P":  # a palette may carry transparency, which only this step understands
                return np.array(picture.convert("RGBA").convert("RGB"))
            return np.array(picture.convert("RGB"))
    except _PNG_ERRORS as error:
        raise _damaged(where, "PNG", error) from error
