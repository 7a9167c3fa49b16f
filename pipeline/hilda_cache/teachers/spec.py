"""What a user says about a teacher, before anything is opened: small, hashable, picklable.

A spec is what travels to Dask workers; each of them loads the model from it. Folders and files are made absolute when
the spec is made, because a worker may run in another folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hilda_cache.user_code import parse_user_code
from hilda_schema.errors import UsageError

SourceKind = Literal["hub", "folder", "module", "file", "timm"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FORMS = "give a Hugging Face id (org/name[@revision]), a folder, module:factory, path/to/file.py:factory or timm:name"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from."""

    kind: SourceKind
    place: str  # hub id, absolute path, module, or what follows "timm:"
    factory: str = ""
    revision: str = ""

    @property
    def text(self) -> str:
        """The canonical spelling, with absolute paths."""
        prefix = "timm:" if self.kind == "timm" else ""
        return (
            prefix
            + self.place
            + (f":{self.factory}" if self.factory else "")
            + (f"@{self.revision}" if self.revision else "")
        )

    @property
    def public(self) -> str:
        """The spelling that a stranger may see: of a path only its last part, and no revision."""
        place = Path(self.place).name if Path(self.place).is_absolute() else self.place
        prefix = "timm:" if self.kind == "timm" else ""
        return prefix + place + (f":{self.factory}" if self.factory else "")


def parse_source(text: str) -> Source:
    """Read a source as users write it; see `TeacherSpec.source`. Looks at the disk, never at the network.

    Raises:
        UsageError: none of the known forms, or a path that is not there.
    """
    if text.startswith("timm:"):
        place = text.removeprefix("timm:")
        return Source("timm", str(Path(place).expanduser().resolve()) if Path(place).is_dir() else place)
    if (code := parse_user_code(text, "teacher", _FORMS)) is not None:
        return Source("file" if code.is_file else "module", code.place, code.factory)
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        return Source("folder", str(folder.resolve()))
    hub_id, _, revision = text.partition("@")
    if _HUB_ID.fullmatch(hub_id) and hub_id.split("/")[0] not in {".", ".."}:
        return Source("hub", hub_id, revision=revision)
    raise UsageError(f"teacher {text!r} is not a folder, nor any other known source", _FORMS)


@dataclass(frozen=True, slots=True)
class TeacherSpec:
    """A teacher as a user asks for it.

    Raises:
        UsageError: a field that cannot be right, whatever the model is.
    """

    name: str
    """What the teacher is called in the store: small letters, digits, "-" and "_"."""
    source: str
    """Hugging Face id `org/name[@revision]`, folder, `module:factory`, `path/to/file.py:factory` or `timm:name`."""
    layers: tuple[str | int, ...] = ("-2", "-1")
    """Block numbers from 1, negative indices from the end, or the model's own stage names; kept as text."""
    image_size: tuple[int, int] = (224, 448)
    """(height, width) in pixels that images are resized to."""
    norm: Literal["pre", "post"] = "pre"
    """Tokens before, or after, the model's final normalisation."""
    revision: str = ""
    """Hub branch, tag or commit; for other sources a label of the user's own."""
    trust_remote_code: bool = False
    """Whether code that comes with the weights may run."""
    allow_pickle: bool = False
    """Whether weights may be read from a pickle where there is no safetensors file."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"teacher name {self.name!r} is not usable", "use small letters, digits, - and _")
        source = parse_source(self.source)
        if source.revision and self.revision and source.revision != self.revision:
            raise UsageError(
                f"teacher {self.name!r} has two revisions, {source.revision!r} and {self.revision!r}", "give one"
            )
        layers = tuple(str(layer).strip() for layer in self.layers)
        if not layers or not all(layers):
            raise UsageError(f"teacher {self.name!r} has no layer, or an empty one", "give e.g. --layers -2,-1")
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise UsageError(f"teacher {self.name!r}: image size {self.image_size} is not (height, width)")
        if self.norm not in {"pre", "post"}:
            raise UsageError(f"teacher {self.name!r}: norm {self.norm!r} is not known", 'use "pre" or "post"')
        object.__setattr__(self, "revision", self.revision or source.revision)
        object.__setattr__(self, "source", Source(source.kind, source.place, source.factory).text)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "image_size", tuple(self.image_size))
