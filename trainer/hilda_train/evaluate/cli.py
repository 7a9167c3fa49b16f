"""The words of `hilda-train probe` and `hilda-train finetune`; everything heavy is imported inside a command's body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilda_schema.completion import folders, scenes_of_store, targets_of_store, words
from hilda_train import completion

_MORE = "Repeatable."

What = Annotated[
    str, typer.Argument(metavar="WEIGHTS", help="A run's folder, a file of weights, or random.", show_default=False)
]
Probed = Annotated[
    str,
    typer.Argument(
        metavar="WEIGHTS",
        help="A run's folder, a file of weights, random, or teacher: its features as stored.",
        show_default=False,
    ),
]
Caches = Annotated[
    list[str] | None,
    typer.Option("--cache", "-c", help=f"A cache with labels, folder or URL. {_MORE}", autocompletion=folders),
]
ClassFile = Annotated[
    str,
    typer.Option(
        help="nuscenes16, semantickitti19, pandaset, pandaset17, coarse8, synthetic, or a YAML file.",
        show_default=False,
        autocompletion=words(completion.classes),
    ),
]
ProtocolName = Annotated[
    str,
    typer.Option(help="scalr, slidr, superflow, quick, or a YAML file.", autocompletion=words(completion.protocols)),
]
Like = Annotated[
    str | None,
    typer.Option(
        help="For a file or random: a run or recipe that says which backbone.",
        autocompletion=words(completion.recipes),
    ),
]
TrainScenes = Annotated[
    list[str] | None, typer.Option(help=f"Pattern of scenes to train on. {_MORE}", autocompletion=scenes_of_store)
]
TestScenes = Annotated[
    list[str] | None, typer.Option(help=f"Pattern of scenes to test on. {_MORE}", autocompletion=scenes_of_store)
]
TrainFrames = Annotated[str | None, typer.Option(help="Frames of each scene to train on, e.g. 0:40.")]
TestFrames = Annotated[str | None, typer.Option(help="Frames of each scene to test on, e.g. 45:60.")]
Seed = Annotated[
    int, typer.Option(min=0, max=2**32 - 1, help="Of everything random; the same seed gives the same result.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", help=f"KEY=VALUE over the protocol, e.g. probe.epochs=5. {_MORE}")
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="JSON to write.")]
Predictions = Annotated[Path | None, typer.Option(help="NPZ to write the test points' classes to.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", autocompletion=words(completion.DEVICES))]
Workers = Annotated[int, typer.Option("--workers", "-w", min=0, help="Processes that prepare sweeps.")]


def probe(
    what: Probed,
    classes: ClassFile,
    cache: Caches = None,
    protocol: ProtocolName = "scalr",
    like: Annotated[
        str | None,
        typer.Option(
            help="For a file or random: a run or recipe that says which backbone; for teacher: whose scenes.",
            autocompletion=words(completion.recipes),
        ),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="TEACHER/LAYER, for teacher.", autocompletion=targets_of_store)
    ] = None,
    train_scenes: TrainScenes = None,
    test_scenes: TestScenes = None,
    train_frames: TrainFrames = None,
    test_frames: TestFrames = None,
    seed: Seed = 0,
    set_: Set = None,
    out: Out = None,
    predictions: Predictions = None,
    as_json: Json = False,
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Linear probe: how much a frozen backbone's features, or a teacher's, say about classes."""
    from hilda_train.evaluate.commands import Asked, evaluate

    evaluate(
        Asked(
            "probe",
            what,
            caches=tuple(cache or []),
            classes=classes,
            protocol=protocol,
            like=like,
            train_scenes=tuple(train_scenes or []),
            test_scenes=tuple(test_scenes or []),
            train_frames=train_frames,
            test_frames=test_frames,
            seed=seed,
            assignments=tuple(set_ or []),
            device=device,
            workers=workers,
            out=out,
            predictions=predictions,
            as_json=as_json,
            layer=layer,
        )
    )


def finetune(
    what: What,
    classes: ClassFile,
    cache: Caches = None,
    protocol: ProtocolName = "scalr",
    share: Annotated[float, typer.Option(help="Per cent of the training frames: 1, 5, 10, 25, 100, ...")] = 1.0,
    split: Annotated[str, typer.Option(help="How a share is taken: every k-th of the scenes, or frames.")] = "scenes",
    like: Like = None,
    train_scenes: TrainScenes = None,
    test_scenes: TestScenes = None,
    train_frames: TrainFrames = None,
    test_frames: TestFrames = None,
    seed: Seed = 0,
    set_: Set = None,
    out: Out = None,
    predictions: Predictions = None,
    as_json: Json = False,
    device: Device = "auto",
    workers: Workers = 0,
) -> None:
    """Fine-tune for segmentation: how few labels a backbone needs."""
    from hilda_train.evaluate.commands import Asked, evaluate

    evaluate(
        Asked(
            "finetune",
            what,
            caches=tuple(cache or []),
            classes=classes,
            protocol=protocol,
            like=like,
            train_scenes=tuple(train_scenes or []),
            test_scenes=tuple(test_scenes or []),
            train_frames=train_frames,
            test_frames=test_frames,
            seed=seed,
            assignments=tuple(set_ or []),
            device=device,
            workers=workers,
            out=out,
            predictions=predictions,
            as_json=as_json,
            share_percent=share,
            split=split,
        )
    )
