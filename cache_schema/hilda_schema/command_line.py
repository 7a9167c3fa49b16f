"""What both programs have in common on the command line: the options before a command, and how an app is made."""

from __future__ import annotations

from typing import Annotated

import typer

from hilda_schema import __version__
from hilda_schema.terminal import show


def make_app(name: str, about: str) -> typer.Typer:
    """A program without commands yet.

    Args:
        name: as it is installed.
        about: one sentence for its help.
    """
    app = typer.Typer(
        name=name,
        help=about,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(before_commands)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hilda-lidar {__version__}")
        raise typer.Exit


def before_commands(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", envvar="HILDA_QUIET", help="Show results and problems only: no news, no progress."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", envvar="HILDA_VERBOSE", help="Show where in the code an error arose.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before a command."""
    show(news=not quiet, tracebacks=verbose)
