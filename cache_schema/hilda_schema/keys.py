"""The spine of the pipeline: one small immutable key.

    drive / scene / frame / camera / teacher / layer

A key names as much as its user needs: `Key("nuscenes", "scene-0061")` is a scene, with a frame it is a sweep, with
all six fields one teacher layer of one image. Keys are hashable, sort in reading order and have one string form,
so a Dask graph, an error message, a log line and a Parquet column all speak of a frame in the same words.

    >>> key = Key("kitti_raw", "2011_09_26", "0000000005")
    >>> str(key)
    'kitti_raw/2011_09_26/0000000005'
    >>> Key.parse(str(key)) == key
    True
    >>> key < Key("kitti_raw", "2011_09_26", "0000000006")
    True
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from urllib.parse import quote, unquote

from hilda_schema.errors import UsageError

_FIELDS = ("drive", "scene", "frame", "camera", "teacher", "layer")


@dataclass(frozen=True, order=True, slots=True)
class Key:
    """Names a drive, scene, frame, camera image, teacher or layer; unused trailing fields are empty.

    Raises:
        UsageError: a field is given although one before it is empty, or a field is ".", ".." or no Unicode text.
    """

    drive: str
    scene: str = ""
    frame: str = ""
    camera: str = ""
    teacher: str = ""
    layer: str = ""

    def __post_init__(self) -> None:
        fields = astuple(self)
        used = [bool(field) for field in fields]
        if used != sorted(used, reverse=True) or not self.drive:
            raise UsageError(f"key {fields} leaves a gap: name fields in the order {'/'.join(_FIELDS)}")
        if any(field in {".", ".."} for field in fields):
            raise UsageError(f"key {fields} has a field that is a path step")
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            raise UsageError(f"key {fields} is no Unicode text", "give the file or folder a name in UTF-8") from None

    def __str__(self) -> str:
        # Fields come from datasets and may hold any character; quoting keeps "/" the only separator.
        return "/".join(quote(field, safe=" +,:@=~") for field in astuple(self) if field)

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read the string form back; the inverse of `str`.

        Raises:
            UsageError: more than six fields, or an empty one.
        """
        fields = [unquote(field) for field in text.split("/")]
        if len(fields) > len(_FIELDS) or not all(fields):
            raise UsageError(f"{text!r} is not a key: write {'/'.join(_FIELDS)}, leaving out trailing fields")
        return cls(*fields)
