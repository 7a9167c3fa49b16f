"""`hilda-cache`: the command line of stage one. Words only; everything heavy is imported inside a command's body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilda_cache import completion
from hilda_cache.reshape import cli as reshape
from hilda_cache.share import cli as share
from hilda_schema.command_line import make_app
from hilda_schema.completion import (
    folders,
    layer_list_of_store,
    teacher_list_of_store,
    teachers_of_store,
    words,
)
from hilda_schema.errors import UsageError
from hilda_schema.terminal import EXIT_INCOMPLETE, run

app = make_app(
    "hilda-cache", "Run frozen vision models over a recorded drive once, and keep what every LiDAR point saw."
)

# Options that `extract` and `plan` share, named once.
Root = Annotated[Path, typer.Argument(help="Folder of the raw dataset.", show_default=False)]
Store = Annotated[str, typer.Argument(help="The cache: a folder or a URL.", show_default=False, autocompletion=folders)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the cache to write.", show_default=False)]
Dataset = Annotated[
    str,
    typer.Option(
        "--dataset",
        "-d",
        help="nuscenes, pandaset, kitti_raw, semantickitti, argoverse2, or your own module:factory, file.py:factory.",
        show_default=False,
        autocompletion=words(completion.DATASETS),
    ),
]
OwnReader = Annotated[
    str | None, typer.Option("--dataset", "-d", help="With --root: your own reader, where the cache was made with one.")
]
DatasetOption = Annotated[
    list[str] | None, typer.Option("--option", help="Reader option KEY=VALUE, e.g. version=v1.0-mini, poses=identity.")
]
Lidar = Annotated[
    str | None,
    typer.Option(
        help="Which LiDAR of PandaSet: pandar64, pandargt or both.",
        show_default="pandar64",
        autocompletion=words(completion.LIDARS),
    ),
]
TeacherOption = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        "-t",
        help="[NAME=]SPEC: hub id, hub id@revision, local folder, module:factory or file.py:factory. Repeatable.",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(help="[NAME=]layers: block numbers, negative indices or names, e.g. -2,-1 or stage3,stage4."),
]
ImageSize = Annotated[list[str] | None, typer.Option(help="[NAME=]HEIGHTxWIDTH that images are resized to.")]
Norm = Annotated[
    list[str] | None, typer.Option(help="[NAME=]pre or post: features before or after the model's final norm.")
]
Scenes = Annotated[str | None, typer.Option(help="Only these scenes: NAME[,NAME...].")]
Frames = Annotated[str, typer.Option(help="Only frames A:B of each scene.")]
Cameras = Annotated[str | None, typer.Option(help="Only these cameras: NAME[,NAME...].")]
Encoding = Annotated[
    str, typer.Option(help="grid, grid-int8, point or point-int8.", autocompletion=words(completion.ENCODINGS))
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto, float32 or bfloat16; auto checks bfloat16 on the drive's images.",
        autocompletion=words(completion.PRECISIONS),
    ),
]
Missing = Annotated[
    str,
    typer.Option(
        help="fail, or skip: record missing and unreadable sensor files as absent.",
        autocompletion=words(completion.MISSING),
    ),
]
PartFrames = Annotated[int | None, typer.Option(min=1, help="Frames per part; default: about 256 MB of tokens.")]
NoPoints = Annotated[bool, typer.Option("--no-points", help="Leave the points out, where a licence forbids them.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let a model repository run its own Python code.")
]
AllowPickle = Annotated[bool, typer.Option("--allow-pickled-weights", help="Load weights from pickle files.")]
Workers = Annotated[int | None, typer.Option("--workers", "-w", min=1, help="Worker processes; default: one a core.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@app.command()
def extract(
    context: typer.Context,
    root: Root,
    out: Out,
    dataset: Dataset,
    teacher: TeacherOption,
    layers: Layers = None,
    image_size: ImageSize = None,
    norm: Norm = None,
    option: DatasetOption = None,
    lidar: Lidar = None,
    scenes: Scenes = None,
    frames: Frames = ":",
    cameras: Cameras = None,
    encoding: Encoding = "grid",
    precision: Precision = "auto",
    missing: Missing = "fail",
    part_frames: PartFrames = None,
    no_points: NoPoints = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickled_weights: AllowPickle = False,
    workers: Workers = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="A running Dask scheduler, tls://... or tcp://..., or slurm: --workers jobs from here."),
    ] = None,
    insecure_network: Annotated[
        bool, typer.Option("--insecure-network", help="Allow an unencrypted scheduler on another machine.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it costs; write nothing.")] = False,
    print_sbatch: Annotated[
        bool, typer.Option("--print-sbatch", help="Only print a batch script for Slurm that runs this command.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Extract a teacher cache from a recorded drive; run it again to go on after an interruption."""
    from hilda_cache import commands
    from hilda_cache.options import build_request

    request = build_request(
        root, dataset, teacher, layers, image_size, norm, option, lidar, scenes, frames, cameras, encoding, precision,
        missing, part_frames, no_points, trust_remote_code, allow_pickled_weights,
    )  # fmt: skip
    if print_sbatch:
        raise typer.Exit(commands.print_sbatch(context, workers, scheduler))
    if dry_run:
        raise typer.Exit(commands.plan(request, out, workers, as_json=as_json))
    raise typer.Exit(commands.extract(request, out, workers, scheduler, insecure=insecure_network, as_json=as_json))


@app.command()
def plan(
    root: Root,
    dataset: Dataset,
    teacher: TeacherOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the cache would go.")] = Path(),
    layers: Layers = None,
    image_size: ImageSize = None,
    norm: Norm = None,
    option: DatasetOption = None,
    lidar: Lidar = None,
    scenes: Scenes = None,
    frames: Frames = ":",
    cameras: Cameras = None,
    encoding: Encoding = "grid",
    precision: Precision = "auto",
    missing: Missing = "fail",
    part_frames: PartFrames = None,
    no_points: NoPoints = False,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickled_weights: AllowPickle = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Say what an extraction costs, by a short probe: parts, images, bytes, files, hours; fail if it will not fit."""
    from hilda_cache import commands
    from hilda_cache.options import build_request

    request = build_request(
        root, dataset, teacher, layers, image_size, norm, option, lidar, scenes, frames, cameras, encoding, precision,
        missing, part_frames, no_points, trust_remote_code, allow_pickled_weights,
    )  # fmt: skip
    raise typer.Exit(commands.plan(request, out, workers, as_json=as_json))


@app.command()
def info(store: Store, as_json: Json = False) -> None:
    """Show a cache's card: dataset, teachers, layers, sizes, coverage, content hash."""
    from hilda_cache import commands

    commands.info(store, as_json=as_json)


@app.command()
def verify(
    store: Store,
    sample: Annotated[
        str | None, typer.Option(help="Read only so many parts, drawn at random: 20, or 5%; of the others sizes.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Read no arrays: seals, and sizes of files.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a verification was interrupted.")] = False,
    signers: Annotated[
        Path | None, typer.Option(help="Also check who signed it: OpenSSH's file of allowed signers.")
    ] = None,
    signature: Annotated[
        str | None, typer.Option(help="The signature, for --signers; default: root.sig of the cache.")
    ] = None,
    deep: Annotated[int, typer.Option(min=0, help="Also extract N frames again and compare.")] = 0,
    root: Annotated[Path | None, typer.Option(help="The raw dataset, for --deep.")] = None,
    dataset: OwnReader = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", "-t", help="[NAME=]SPEC, for --deep. Repeatable.", autocompletion=teachers_of_store),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read everything again and check every checksum and count. Exits with 3 when something is wrong or missing."""
    from hilda_cache import commands

    if deep and (root is None or not teacher):
        raise UsageError("--deep needs the drive and the teachers", "add --root FOLDER and --teacher [NAME=]SPEC")
    if signature and signers is None:
        raise UsageError("--signature says nothing without --signers", "add --signers FILE: whose keys you trust")
    depth = commands.depth_of(store, sample, fast=fast, resume=resume)
    signed = commands.check_signature(store, signers, signature) if signers else ""
    sound = commands.verify(store, depth, signed, deep, root, teacher or [], dataset, as_json=as_json)
    raise typer.Exit(0 if sound else EXIT_INCOMPLETE)


@app.command()
def repair(
    store: Annotated[str, typer.Argument(help="The cache's folder.", show_default=False)],
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Check every byte first, and remove the parts that are damaged.")
    ] = False,
) -> None:
    """Restore a cache's manifest and table of frames from its sealed parts, and say what to do about lost ones."""
    from hilda_cache.reshape import commands

    commands.repair(store, drop_damaged=drop_damaged)


@app.command()
def show(
    store: Store,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG to write: one view.")] = None,
    html: Annotated[Path | None, typer.Option(help="HTML page to write: all views and layers, in one file.")] = None,
    rerun: Annotated[Path | None, typer.Option(help="RRD file to write, for the Rerun viewer.")] = None,
    view: Annotated[
        str, typer.Option(help="Of the PNG: cameras, bev, perspective, coverage, occlusion or similarity.")
    ] = "cameras",
    frame: Annotated[int, typer.Option(min=0, help="Which frame, counted from 0.")] = 0,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", "-t", help="Which teacher; default: the first.", autocompletion=teachers_of_store),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Which layers, side by side; default: the last, in a page all.", autocompletion=layer_list_of_store
        ),
    ] = None,
    point: Annotated[int | None, typer.Option(min=0, help="Row of the point that others are compared with.")] = None,
    at: Annotated[str | None, typer.Option(help="CAMERA:U,V: compare with the point at this pixel instead.")] = None,
    root: Annotated[Path | None, typer.Option(help="The raw dataset, to draw over its images.")] = None,
    dataset: OwnReader = None,
) -> None:
    """Draw a frame: features, coverage, occlusion or similarity of its points, over the cameras and on the sweep."""
    from hilda_cache import commands

    if not (out or html or rerun):
        raise UsageError("nothing to write is named", "add --out FILE.png, --html FILE.html or --rerun FILE.rrd")
    if out and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out} does not end in .png, and a PNG is what it would hold", "write --out FILE.png")
    commands.show(store, out, html, rerun, view, frame, teacher, layers, point, at, root, dataset)


@app.command()
def prototypes(
    model: Annotated[
        str, typer.Argument(help="A CLIP or SigLIP: a transformers folder or hub id.", show_default=False)
    ],
    classes: Annotated[
        Path,
        typer.Option(help="Text file of classes, one a line: name, or name: word, other word.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Safetensors file to write.", show_default=False)],
    template: Annotated[
        list[str] | None, typer.Option(help='Sentence with {} for the class, e.g. "a photo of a {}.". Repeatable.')
    ] = None,
    space: Annotated[str, typer.Option(help="tokens: for stored patch tokens; text: the space itself.")] = "tokens",
) -> None:
    """Embed class names with a text tower, for hilda-train zeroshot."""
    from hilda_cache import commands

    commands.prototypes(model, classes, out, template or [], space)


@app.command()
def labels(
    root: Root,
    dataset: Dataset,
    out: Annotated[Path, typer.Option("--out", "-o", help="Parquet file to write.", show_default=False)],
    option: DatasetOption = None,
    lidar: Lidar = None,
    scenes: Scenes = None,
) -> None:
    """Write a drive's boxes to a file, for hilda-train detect and flow; of nuscenes, pandaset or argoverse2."""
    from hilda_cache import commands

    commands.labels(root, dataset, out, option or [], lidar, scenes)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.", show_default=False)],
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 4,
    frames: Annotated[int, typer.Option(min=1, help="Keyframes per scene, at 2 Hz.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    image_size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the images.")] = "396x704",
) -> None:
    """Make a synthetic drive: a procedural street world, six cameras, a 32-beam LiDAR, as a real nuScenes tree."""
    from hilda_cache import commands

    commands.synth(out, scenes, frames, seed, image_size)


@app.command()
def export(
    store: Store,
    to: Annotated[
        str,
        typer.Option(
            help="webdataset (tar files) or datasets (Parquet, for Hugging Face datasets).",
            show_default=False,
            autocompletion=words(completion.EXPORT_TARGETS),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must not exist.", show_default=False)],
    teachers: Annotated[
        str | None, typer.Option(help="Only these teachers: NAME[,NAME...].", autocompletion=teacher_list_of_store)
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Only these layers: NAME[,NAME...].", autocompletion=layer_list_of_store)
    ] = None,
) -> None:
    """Write the features of all point-camera pairs in the files of another loader."""
    from hilda_cache import commands

    commands.export(store, to, out, teachers, layers)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Print the environment, to paste in an issue."""
    from hilda_schema.doctor import print_doctor

    print_doctor(as_json=as_json)


reshape.register(app)
share.register(app)


def main() -> None:
    """Entry point of the console script."""
    run(app)
