"""manifest.json: what was asked, what is here, by whose hands.

Strict models: an unknown or mistyped field is an error, so that a newer or damaged manifest never passes for this
one. Nothing here holds an absolute path, a user name or a credential, and nothing varies between two runs of the
same extraction: an interrupted and an uninterrupted run end in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from hilda_schema.errors import CacheCorrupt, CacheVersion

SCHEMA_VERSIONS = ("1.0", "1.1")
"""What this program reads and writes. A store has the lowest number that can say what is in it: `Recipe.schema`."""

SCHEMA_VERSION = SCHEMA_VERSIONS[-1]

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
"""What may become a folder: no separator, no leading dot, nothing that a shell or a file system reads twice."""

SafeName = Annotated[str, Field(pattern=SAFE_NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Bounds far above any real drive and far below where int64 products overflow.
Count = Annotated[int, Field(ge=0, le=2**40)]
Extent = Annotated[int, Field(gt=0, le=2**20)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Crc32c = Annotated[int, Field(ge=0, lt=2**32)]


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8, no NaN; what every hash here is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """sha256 of bytes, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def parse_json(data: bytes, where: str) -> Any:
    """Read untrusted JSON: no duplicate key, no NaN, no nesting that exhausts the stack, canonical bytes only.

    Args:
        data: the file's bytes; the caller has bounded their number.
        where: file name for the message.

    Raises:
        CacheCorrupt: it is not the canonical JSON that this program writes.
    """
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
        canonical = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise CacheCorrupt(f"{where} is not valid JSON: {_first_line(error)}") from None
    if canonical != data:
        raise CacheCorrupt(f"{where} is not in canonical form, so it was edited or damaged")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("an object names a key twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Strict(BaseModel):
    """Base of every model of the contract: frozen, no unknown field, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SelfChecked(Strict):
    """A file of the contract that carries the hash of its own content."""

    schema_version: str = SCHEMA_VERSIONS[0]
    self_sha256: str = ""
    """Of the canonical JSON without this field; filled in by `to_bytes`."""

    def to_bytes(self) -> bytes:
        """The file's bytes: canonical JSON with its own hash."""
        content = self.model_dump(mode="json", exclude={"self_sha256"})
        return canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """Read the file back; the inverse of `to_bytes`.

        Raises:
            CacheVersion: a newer schema wrote it.
            CacheCorrupt: it is damaged, edited or not of this kind.
        """
        value = parse_json(data, where)
        if not isinstance(value, dict):
            raise CacheCorrupt(f"{where} is not a JSON object")
        require_known_schema(value.get("schema_version"), where)
        content = {name: field for name, field in value.items() if name != "self_sha256"}
        if sha256_hex(canonical_json(content)) != value.get("self_sha256"):
            raise CacheCorrupt(f"{where} does not match its own checksum")
        try:
            found = cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise CacheCorrupt(f"{where}: {field[:200]}: {first['msg'][:200]}") from None
        # Else a left-out default or an integer for a number would give one content two files and two hashes.
        if found.to_bytes() != data:
            raise CacheCorrupt(f"{where} leaves out a field, or writes a number in another form")
        return found


def require_known_schema(version: object, where: str) -> None:
    """Refuse what a later program wrote, before anything else in it is looked at.

    Raises:
        CacheVersion: naming both versions.
        CacheCorrupt: there is no version at all.
    """
    if version in SCHEMA_VERSIONS:
        return
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,6}\.[0-9]{1,6}", version):
        raise CacheCorrupt(f"{where} does not say which schema it has")
    raise CacheVersion(
        f"{where} has schema {version}, this program reads {', '.join(SCHEMA_VERSIONS)}",
        "update hilda-lidar: pip install -U hilda-lidar",
    )


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


class ReductionInfo(Strict):
    """The channels of a layer are coordinates in a subspace of those that the model gave (schema 1.1)."""

    channels: Extent
    """How many the model gave."""
    basis_sha256: Sha256
    """Of the values of the layer's `basis`, which every part holds: orthonormal rows, one a stored channel."""
    explained_variance: float
    """Share of the features' variance that lies in the subspace, over those that it was fitted to."""
    method: str
    """For people: how the basis was found."""


class LayerInfo(Strict):
    """One stored layer and its token grid."""

    name: SafeName
    channels: Extent
    height: Extent
    width: Extent
    reduction: ReductionInfo | None = None
    """None: the channels are the model's own; not written then."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        return {name: value for name, value in written.items() if name != "reduction" or value is not None}


class TeacherInfo(Strict):
    """A frozen vision model, with all that changes a feature."""

    name: SafeName
    source: str
    revision: str = ""
    architecture: str
    weights_sha256: str
    licence: str = "unknown"
    norm: Literal["pre", "post"]
    image_height_px: Extent
    image_width_px: Extent
    mean: tuple[float, float, float] = Field(strict=False)
    std: tuple[float, float, float] = Field(strict=False)
    resize: str
    """Decoder and resampler: they change features more than anything else outside the model."""
    precision: Literal["float32", "bfloat16"]
    precision_reason: str
    """Why this precision, with the measured mean-centred cosine where one was measured."""
    layers: tuple[LayerInfo, ...] = Field(strict=False)
    global_width: int = Field(ge=0, le=2**20)

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
    store_points: bool = True

    @property
    def schema_version(self) -> str:
        """The lowest number of the format that can say this."""
        reduced = any(layer.reduction for teacher in self.teachers for layer in teacher.layers)
        return SCHEMA_VERSIONS[1 if reduced else 0]

    def digest(self) -> str:
        """sha256 of what goes into every part id: all but the selection, which only says which parts there are."""
        content = self.model_dump(mode="json", exclude={"selection"})
        return sha256_hex(canonical_json({"schema": self.schema_version, "recipe": content}))


class FileSeal(Strict):
    """One file of a part."""

    size: Count
    sha256: Sha256
    chunk_crc32c: tuple[Crc32c, ...] | None = Field(default=None, strict=False)
    """For a shard: crc32c of each inner chunk in C order. Binds every chunk to its place, so that a chunk or a whole
    shard swapped in from elsewhere is noticed on read although its own checksum is right."""


class CameraSize(Strict):
    """Original image size of one camera in this part; 0 x 0 where no frame of the part has the camera."""

    name: str
    width_px: int = Field(ge=0, le=2**20)
    height_px: int = Field(ge=0, le=2**20)


class EncodingError(Strict):
    """Measured difference between what the teacher said and what a reader gets back.

    The cosine is taken after subtracting the mean of every channel over the part: plain cosine hides the loss of
    everything but the outlier channels of a vision transformer. Relative L2 is |decoded - original| / |original|.
    """

    cosine_min: float
    cosine_mean: float
    relative_l2_max: float
    relative_l2_mean: float
    tokens: Count
    """How many tokens (grid) or pairs (point) were compared."""


class FrameRow(Strict):
    """One frame of a part; frames.parquet has the same fields."""

    key: str
    position: Count | None = None
    """Place in the scene as the drive lists it; None where the writer did not say."""
    stamp_ns: Int64
    world_SE3_lidar: tuple[float, ...] = Field(strict=False, min_length=16, max_length=16)
    world_SE3_ego: tuple[float, ...] = Field(strict=False, min_length=16, max_length=16)
    points: Count
    points_dropped: Count
    pairs: Count
    points_seen: Count
    """Points with at least one pair."""
    absent: dict[str, str] = Field(default_factory=dict)
    """camera (or "lidar") -> why its image (or sweep) is not here."""


class Seal(SelfChecked):
    """seal.json: written last into a part; a part without it does not exist."""

    part: SafeName
    recipe_digest: Sha256
    scene: str
    cameras: tuple[CameraSize, ...] = Field(strict=False)
    frames: tuple[FrameRow, ...] = Field(strict=False, min_length=1)
    sources: dict[str, str]
    """Drive-relative name of every sensor file read -> sha256 of its bytes."""
    calibration_sha256: str
    encoding_error: dict[str, EncodingError]
    """"teacher/layer" -> error, over all tokens (grid) or pairs (point) of the part."""
    files: dict[str, FileSeal]
    """Every other file below the part's folder, "/"-separated."""


def key_digests(seal: Seal) -> set[str]:
    """sha256 of each frame's key, as `Forgotten` has them."""
    return {sha256_hex(frame.key.encode()) for frame in seal.frames}


class PartEntry(Strict):
    """A part as the manifest lists it."""

    part: SafeName
    scene: str
    frames: Extent
    bytes: int = Field(ge=0, le=2**62)
    """Of all its files, seal.json included."""
    seal_sha256: Sha256


GENERATIONS = 32
"""How far back a manifest tells what its store was made from: nesting costs stack."""


class Parent(Strict):
    """A store that this one was made from."""

    root_sha256: Sha256
    """Names the parent's content."""
    operation: Literal["merge", "subset", "reencode", "forget"]
    detail: str
    """For people: what was asked, as on a command line."""
    encoding_error: dict[str, EncodingError]
    """Of the parent, where features were encoded anew: the store's own error is then measured against the parent's
    features; empty otherwise."""
    parents: tuple[Parent, ...] = Field(strict=False)
    """What the parent itself was made from."""


class Forgotten(Strict):
    """Frames that were removed on somebody's request."""

    reason: str
    frames: tuple[Sha256, ...] = Field(strict=False, min_length=1)
    """sha256 of each frame's key, sorted: enough to notice that one comes back, too little to say which it was."""


class History(SelfChecked):
    """history.json: what only the manifest knows, once more, for the day on which it is lost."""

    recipe_digest: Sha256
    """Whose history it is."""
    selection: SelectionInfo
    software: dict[str, str]
    parents: tuple[Parent, ...] = Field(strict=False)
    forgotten: tuple[Forgotten, ...] = Field(strict=False)


class Manifest(SelfChecked):
    """manifest.json: the store's own account of itself."""

    writer: str
    recipe: Recipe
    state: Literal["partial", "complete"]
    planned_parts: Count
    parts: tuple[PartEntry, ...] = Field(default=(), strict=False)
    """In reading order: by scene, then by time."""
    frames: Count = 0
    frames_sha256: str = ""
    """Of frames.parquet; empty while partial."""
    group_sha256: str = ""
    """Of the root zarr.json."""
    encoding_error: dict[str, EncodingError] = Field(default_factory=dict)
    software: dict[str, str] = Field(default_factory=dict)
    root_sha256: str = ""
    """Over the part ids and seal hashes: names the store's exact content."""
    parents: tuple[Parent, ...] = Field(default=(), strict=False)
    """What the store was made from, where it is no extraction of its own; not written where empty."""
    forgotten: tuple[Forgotten, ...] = Field(default=(), strict=False)
    """What was removed from it, or from its parents; not written where empty."""

    @model_validator(mode="before")
    @classmethod
    def _versioned(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(recipe := values.get("recipe"), Recipe):
            return {"schema_version": recipe.schema_version, **values}
        return values

    @field_validator("parents")
    @classmethod
    def _not_too_deep(cls, parents: tuple[Parent, ...]) -> tuple[Parent, ...]:
        found, generations = parents, 0
        while found:
            found, generations = tuple(older for parent in found for older in parent.parents), generations + 1
        if generations > GENERATIONS:
            raise ValueError(f"tells of more than {GENERATIONS} generations")
        return parents

    def history(self) -> History:
        """What cannot be derived from the parts."""
        return History(
            schema_version=self.schema_version,
            recipe_digest=self.recipe.digest(),
            selection=self.recipe.selection,
            software=self.software,
            parents=self.parents,
            forgotten=self.forgotten,
        )

    @model_serializer(mode="wrap")
    def _without_empty_history(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialise(self)
        return {name: value for name, value in written.items() if value or name not in ("parents", "forgotten")}
