"""`hilda-train`: the command line of stage two. Words only; everything heavy is imported inside a command's body."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from hilda_schema.command_line import make_app
from hilda_schema.completion import folders, words
from hilda_schema.terminal import run
from hilda_train import completion
from hilda_train.evaluate.analysis_cli import knn, robustness, structure, zeroshot
from hilda_train.evaluate.cli import Device, Json, finetune, probe
from hilda_train.evaluate.heads_cli import detect, flow, occupancy, retrieve

app = make_app("hilda-train", "Train a LiDAR backbone from a teacher cache; no image is opened.")

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False, autocompletion=folders)]


@app.command()
def fit(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe's name (hilda, scalr, ...) or a YAML file.",
            autocompletion=words(completion.recipes),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.", show_default=False)],
    cache: Annotated[
        list[str] | None,
        typer.Option("--cache", "-c", help="A teacher cache, folder or URL. Repeatable.", autocompletion=folders),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="KEY=VALUE over the recipe, e.g. train.max_steps=4. Repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run stopped; starts it if it has not.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build everything, try one batch, print shapes and memory; write nothing.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Pre-train a LiDAR backbone. Under torchrun, all processes train one run together."""
    from hilda_train import commands

    code = commands.fit(recipe, cache or [], out, set_ or [], go_on=resume, dry_run=dry_run, device=device)
    raise typer.Exit(code)


@app.command()
def report(
    run_folder: Run,
    cache: Annotated[
        list[str] | None,
        typer.Option("--cache", "-c", help="The run's caches, to draw pictures from.", autocompletion=folders),
    ] = None,
    picture: Annotated[
        list[Path] | None, typer.Option("--picture", "-p", help="A PNG to put on top, e.g. of hilda-cache show.")
    ] = None,
    result: Annotated[
        list[Path] | None, typer.Option(help="A JSON of probe or finetune, for the table. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML to write; default: RUN/report.html.")] = None,
) -> None:
    """Write a report: curves, evaluations, features on image positions and bird's-eye view, occupancy forecasts."""
    from hilda_train.report import write_report

    written = write_report(run_folder, cache or [], out or run_folder / "report.html", picture or [], result or [])
    typer.echo(f"wrote {written}", err=True)


@app.command()
def export(
    run_folder: Run,
    to: Annotated[
        str,
        typer.Option(
            help="safetensors, minkowski, torchsparse, pointcept, mmdet3d, mmdet3d-spconv, openpcdet or scalr.",
            show_default=False,
            autocompletion=words(completion.EXPORT_TARGETS),
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
) -> None:
    """Write the pre-trained backbone with another framework's key names and kernel layout."""
    from hilda_train import commands

    commands.export(run_folder, out, to)


app.command()(probe)
app.command()(finetune)
app.command()(knn)
app.command()(zeroshot)
app.command()(structure)
app.command()(robustness)
app.command()(detect)
app.command()(flow)
app.command()(occupancy)
app.command()(retrieve)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with the package."""
    from hilda_train.recipes import load_recipe, recipe_names

    about = {name: load_recipe(name).about for name in recipe_names()}
    typer.echo(json.dumps(about, indent=2) if as_json else "\n".join(f"{name:22} {of}" for name, of in about.items()))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Print the environment, to paste in an issue."""
    from hilda_schema.doctor import print_doctor

    print_doctor(as_json=as_json)


def main() -> None:
    """Entry point of the console script."""
    # Threads that wait for others sleep soon. By default they spin for long, and where something else runs on the
    # machine, every product waits for a thread that waits for a core: twice the time. libgomp's; read with torch.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    run(app)
