"""`hilda-train`: the command line of stage two. Words only; everything heavy is imported inside a command's body."""

from __future__ import annotations

import typer
from hilda_schema.terminal import run

app = typer.Typer(
    name="hilda-train",
    help="Train a LiDAR backbone from a teacher cache; no image is opened.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """Train a LiDAR backbone from a teacher cache; no image is opened."""


def main() -> None:
    """Entry point of the console script."""
    run(app)
