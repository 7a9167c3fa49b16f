"""From command-line options to a request; every mistake is found here, before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from hilda_cache.drives import DATASETS, reader_options
from hilda_cache.request import (
    DriveSpec,
    ExtractRequest,
    Precision,
    Selection,
    name_teacher,
    parse_image_size,
    split_per_teacher,
    with_absolute_path,
)
from hilda_cache.teachers.spec import TeacherSpec
from hilda_schema.errors import UsageError

if TYPE_CHECKING:
    from hilda_schema.manifest import TeacherInfo

DEFAULT_LAYERS = "-2,-1"  # the last two, matched separately: HilDA's K = 1
DEFAULT_IMAGE_SIZE = "224x448"  # ScaLR's and SuperFlow's
ENCODINGS = {
    "grid": ("grid", "float16"),
    "grid-int8": ("grid", "int8"),
    "point": ("point", "float16"),
    "point-int8": ("point", "int8"),
}


def build_request(
    root: Path,
    dataset: str,
    teachers: list[str],
    layers: list[str] | None,
    image_sizes: list[str] | None,
    norms: list[str] | None,
    options: list[str] | None,
    lidar: str | None,
    scenes: str | None,
    frames: str,
    cameras: str | None,
    encoding: str,
    precision: str,
    missing: str,
    part_frames: int | None,
    no_points: bool,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> ExtractRequest:
    """Build the request from what was typed.

    Raises:
        UsageError: saying which option is wrong and what it takes.
    """
    kind, dtype = ENCODINGS[_one_of("--encoding", encoding, tuple(ENCODINGS))]
    selection = Selection(scenes=scene_names(scenes), frames=frames, cameras=_names("--cameras", cameras))
    selection.frame_slice()
    return ExtractRequest(
        drive=drive_spec(root, dataset, options or [], lidar),
        teachers=teacher_specs(teachers, layers or [], image_sizes or [], norms or [], trust_remote_code, allow_pickle),
        selection=selection,
        encoding=cast("Literal['grid', 'point']", kind),
        dtype=cast("Literal['float16', 'int8']", dtype),
        precision=cast("Precision", _one_of("--precision", precision, get_args(Precision))),
        missing=cast("Literal['fail', 'skip']", _one_of("--missing", missing, ("fail", "skip"))),
        part_frames=part_frames,
        store_points=not no_points,
    )


def drive_spec(root: Path, dataset: str, options: list[str], lidar: str | None = None) -> DriveSpec:
    """Which drive, with its reader's options from KEY=VALUE texts; `--lidar` is the plain way to say one of them.

    Raises:
        UsageError: a text is not of that form, a key has two values, or the dataset has no choice of LiDAR.
    """
    dataset = with_absolute_path(dataset)
    values: dict[str, str] = {}
    if lidar is not None:
        if "lidar" not in reader_options(dataset):
            others = ", ".join(name for name in sorted(DATASETS) if "lidar" in reader_options(name))
            raise UsageError(f"{dataset} has no choice of LiDAR", f"leave --lidar out; it is for {others}")
        values["lidar"] = lidar
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {text!r} is not KEY=VALUE", "write e.g. --option version=v1.0-mini")
        if values.setdefault(key, value) != value:
            raise UsageError(f"{key} is given twice: {values[key]!r} and {value!r}")
    return DriveSpec(dataset, str(root.resolve()), tuple(sorted(values.items())))


def teacher_specs(
    texts: list[str],
    layers: list[str],
    image_sizes: list[str],
    norms: list[str],
    trust_remote_code: bool,
    allow_pickle: bool,
) -> tuple[TeacherSpec, ...]:
    """The teachers, each with its own layers, image size and norm.

    Raises:
        UsageError: two teachers of one name, or an option that is not of its form.
    """
    named = [name_teacher(text) for text in texts]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two teachers are named {name!r}", "name them apart: --teacher NAME=SPEC")
    layers_of = split_per_teacher("--layers", layers, names)
    size_of = split_per_teacher("--image-size", image_sizes, names)
    norm_of = split_per_teacher("--norm", norms, names)
    return tuple(
        TeacherSpec(
            name=name,
            source=source,
            layers=tuple(layers_of.get(name, DEFAULT_LAYERS).split(",")),
            image_size=parse_image_size(size_of.get(name, DEFAULT_IMAGE_SIZE)),
            norm=cast("Literal['pre', 'post']", _one_of("--norm", norm_of.get(name, "pre"), ("pre", "post"))),
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        for name, source in named
    )


def specs_of_store(infos: tuple[TeacherInfo, ...], texts: list[str]) -> tuple[TeacherSpec, ...]:
    """The store's teachers again, with their sources from [NAME=]SPEC texts, for re-extraction.

    Raises:
        UsageError: a teacher of the store is not given, or one is given that the store does not have.
    """
    given = dict(name_teacher(text) for text in texts)
    if len(given) == len(infos) == 1:
        given = {infos[0].name: next(iter(given.values()))}
    names = [info.name for info in infos]
    if sorted(given) != sorted(names):
        raise UsageError(f"the store's teachers are {', '.join(names)}", "give each with --teacher NAME=SPEC")
    return tuple(
        TeacherSpec(
            name=info.name,
            source=given[info.name],
            layers=tuple(layer.name for layer in info.layers),
            image_size=(info.image_height_px, info.image_width_px),
            norm=info.norm,
        )
        for info in infos
    )


def scene_names(text: str | None) -> tuple[str, ...] | None:
    """The scenes of `--scenes`; None for all."""
    return _names("--scenes", text)


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise UsageError(f"{option} {text!r} names nothing", f"write {option} NAME[,NAME...], or leave it out for all")
    return names


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{option} {value!r} is not known", f"use one of {', '.join(known)}")
    return value
