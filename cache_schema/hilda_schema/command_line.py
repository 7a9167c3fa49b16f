"""What both programs have in common on the command line: the options before a command, and how an app is made."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hilda_schema import __version__
from hilda_schema.errors import HildaError, UsageError
from hilda_schema.terminal import show

EXTRAS = {"hilda-cache": "extract", "hilda-train": "train"}
"""Program -> the extra that installs what its commands need."""


class _Group(TyperGroup):
    """Commands; what an installation lacks, or a full disk cut, is an error of ours."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("hilda"):
                raise
            remedy = f"pip install 'hilda-lidar[{EXTRAS.get(str(self.name), 'all')}]'"
            raise UsageError(f"this command needs {error.name}", remedy) from error
        except EOFError as error:  # of which Typer would say "Aborted." and no more
            remedy = "a full disk cuts what Python compiles: remove __pycache__ folders; --verbose says where it was"
            raise HildaError(f"something ends too soon: {error}", remedy) from error


def make_app(name: str, about: str) -> typer.Typer:
    """A program without commands yet.

    Args:
        name: as it is installed.
        about: one sentence for its help.
    """
    app = typer.Typer(
        name=name,
        cls=_Group,
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
