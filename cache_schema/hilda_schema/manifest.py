"""manifest.json: what was asked, what is here, by whose hands.

Strict models: an unknown or mistyped field is an error, so that a newer or damaged manifest never passes for this
one. Nothing here holds an absolute path, a user name or a credential, and nothing varies between two runs of the
same extraction: an interrupted and an uninterrupted run end in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = "1.0"


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8, no NaN; what every hash here is taken of."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_hex(data: bytes) -> str:
    """sha256 of bytes, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


class Strict(BaseModel):
    """Base of every model of the contract: frozen, no unknown field, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DatasetInfo(Strict):
    """Which recorded drive the features belong to."""

    name: str
    version: str = ""
    options: dict[str, str] = Field(default_factory=dict)
    cameras: tuple[str, ...] = Field(strict=False)
    """Stored cameras in the order of every camera axis."""


class SelectionInfo(Strict):
    """The part of the drive that was asked for."""

    scenes: tuple[str, ...] | None = Field(default=None, strict=False)
    """None: all of them."""
    frames: str = ":"
    """A:B, positions within each scene."""


class LayerInfo(Strict):
    """One stored layer and its token grid."""

    name: str
    channels: int = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)


class TeacherInfo(Strict):
    """A frozen vision model, with all that changes a feature."""

    name: str
    source: str
    revision: str = ""
    architecture: str
    weights_sha256: str
    licence: str = "unknown"
    norm: Literal["pre", "post"]
    image_height_px: int = Field(gt=0)
    image_width_px: int = Field(gt=0)
    mean: tuple[float, float, float] = Field(strict=False)
    std: tuple[float, float, float] = Field(strict=False)
    resize: str
    """Decoder and resampler: they change features more than anything else outside the model."""
    precision: Literal["float32", "bfloat16"]
    precision_reason: str
    """Why this precision, with the measured mean-centred cosine where one was measured."""
    layers: tuple[LayerInfo, ...] = Field(strict=False)
    global_width: int = Field(ge=0)

    def layer(self, name: str | int) -> LayerInfo | None:
        """The stored layer of that name or block number, None where it is not stored."""
        return next((layer for layer in self.layers if layer.name == str(name)), None)


class ProjectionInfo(Strict):
    """How points found their pixels."""

    min_depth_m: float = 1.0
    pixel_convention: Literal["centres-at-integers"] = "centres-at-integers"
    ego_motion: bool = True
    occlusion: str
    """Name and parameters of the rule behind `pairs/visible`."""
    ground: str
    """Name and parameters of the rule behind `points/ground`."""


class EncodingInfo(Strict):
    """What lies on disk for a layer."""

    kind: Literal["grid", "point"] = "grid"
    dtype: Literal["float16", "int8"] = "float16"


class Recipe(Strict):
    """Everything that determines a store's content, except the sensor files themselves."""

    dataset: DatasetInfo
    selection: SelectionInfo
    teachers: tuple[TeacherInfo, ...] = Field(strict=False)
    projection: ProjectionInfo
    encoding: EncodingInfo
    part_frames: int = Field(gt=0)
    missing: Literal["fail", "skip"] = "fail"
    store_points: bool = True

    def digest(self) -> str:
        """sha256 of what goes into every part id: all but the selection, which only says which parts there are."""
        content = self.model_dump(mode="json", exclude={"selection"})
        return sha256_hex(canonical_json({"schema": SCHEMA_VERSION, "recipe": content}))


class FileSeal(Strict):
    """One file of a part."""

    size: int = Field(ge=0)
    sha256: str
    chunk_crc32c: tuple[int, ...] | None = Field(default=None, strict=False)
    """For a shard: crc32c of each inner chunk in C order. Binds every chunk to its place, so that a chunk or a whole
    shard swapped in from elsewhere is noticed on read although its own checksum is right."""


class CameraSize(Strict):
    """Original image size of one camera in this part."""

    name: str
    width_px: int = Field(gt=0)
    height_px: int = Field(gt=0)


class EncodingError(Strict):
    """Measured difference between what the teacher said and what a reader gets back."""

    cosine_min: float
    cosine_mean: float
    relative_l2_max: float
    relative_l2_mean: float
    tokens: int = Field(ge=0)


class FrameRow(Strict):
    """One frame of a part; frames.parquet has the same fields."""

    key: str
    stamp_ns: int
    world_SE3_lidar: tuple[float, ...] = Field(strict=False, min_length=16, max_length=16)
    world_SE3_ego: tuple[float, ...] = Field(strict=False, min_length=16, max_length=16)
    points: int = Field(ge=0)
    points_dropped: int = Field(ge=0)
    pairs: int = Field(ge=0)
    points_seen: int = Field(ge=0)
    absent: dict[str, str] = Field(default_factory=dict)
    """camera -> why its image is not here (only with missing="skip")."""


class Seal(Strict):
    """seal.json: written last into a part; a part without it does not exist."""

    schema_version: str = SCHEMA_VERSION
    part: str
    recipe_digest: str
    scene: str
    cameras: tuple[CameraSize, ...] = Field(strict=False)
    frames: tuple[FrameRow, ...] = Field(strict=False)
    sources: dict[str, str]
    """Drive-relative name of every sensor file read -> sha256 of its bytes."""
    calibration_sha256: str
    encoding_error: dict[str, EncodingError]
    """"teacher/layer" -> error, over all tokens (grid) or pairs (point) of the part."""
    files: dict[str, FileSeal]
    """Every other file below the part's folder, "/"-separated."""


class PartEntry(Strict):
    """A part as the manifest lists it."""

    part: str
    scene: str
    frames: int = Field(gt=0)
    bytes: int = Field(ge=0)
    seal_sha256: str


class Manifest(Strict):
    """The store's own account of itself."""

    schema_version: str = SCHEMA_VERSION
    writer: str
    recipe: Recipe
    state: Literal["partial", "complete"]
    planned_parts: int = Field(ge=0)
    parts: tuple[PartEntry, ...] = Field(default=(), strict=False)
    """In reading order: by scene, then by time."""
    frames: int = 0
    frames_sha256: str = ""
    """Of frames.parquet; empty while partial."""
    group_sha256: str = ""
    """Of the root zarr.json."""
    encoding_error: dict[str, EncodingError] = Field(default_factory=dict)
    software: dict[str, str] = Field(default_factory=dict)
    root_sha256: str = ""
    """Over the part ids and seal hashes: names the store's exact content."""
