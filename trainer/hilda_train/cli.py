"""`hilda-train`: the command line of stage two. Words only; everything heavy is imported inside a command's body."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilda_schema.terminal import run
from hilda_train.evaluate.analysis_cli import knn, robustness, structure, zeroshot
from hilda_train.evaluate.cli import finetune, probe

app = typer.Typer(
    name="hilda-train",
    help="Train a LiDAR backbone from a teacher cache; no image is opened.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)]


@app.command()
def fit(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe's name (hilda, scalr, ...) or a YAML file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.", show_default=False)],
    cache: Annotated[
        list[str] | None, typer.Option("--cache", "-c", help="A teacher cache, folder or URL. Repeatable.")
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
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Pre-train a LiDAR backbone. Under torchrun, all processes train one run together."""
    from hilda_train import commands

    code = commands.fit(recipe, cache or [], out, set_ or [], go_on=resume, dry_run=dry_run, device=device)
    raise typer.Exit(code)


@app.command()
def report(
    run_folder: Run,
    cache: Annotated[
        list[str] | None, typer.Option("--cache", "-c", help="The run's caches, to draw pictures from.")
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


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from hilda_train.recipes import load_recipe, recipe_names

    for name in recipe_names():
        typer.echo(f"{name:22} {load_recipe(name).about}")


def main() -> None:
    """Entry point of the console script."""
    run(app)
