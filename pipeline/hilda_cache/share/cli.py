"""The words of `hilda-cache push` and `hilda-cache pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JOBS = 8

Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Parts at a time; each holds some 32 MB at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what it moves and costs; move nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(push)
    app.command()(pull)
    app.command()(sign)


def push(
    store: Annotated[Path, typer.Argument(help="The cache's folder.", show_default=False)],
    url: Annotated[
        str, typer.Argument(help="Where it goes: s3://, gs://, hf://, ... or a folder.", show_default=False)
    ],
    jobs: Jobs = JOBS,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let the URL's store lose parts that are not in this one.")
    ] = False,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Also read what is there already, and send again what is damaged.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy a cache to a URL: only what is missing, read back and checked. Run it again after an interruption."""
    from hilda_cache.share import commands

    code = commands.push(store, url, jobs, replace=replace, recheck=recheck, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(code)


def pull(
    url: Annotated[
        str, typer.Argument(help="The cache: a URL or a folder; URL@sha256:... pins it.", show_default=False)
    ],
    store: Annotated[Path, typer.Argument(help="Folder to hold it.", show_default=False)],
    scenes: Annotated[str | None, typer.Option(help="Only these scenes: NAME[,NAME...].")] = None,
    teachers: Annotated[str | None, typer.Option(help="Only these teachers: NAME[,NAME...].")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="Only these layers: [NAME=]LAYER[,LAYER...].")] = None,
    jobs: Jobs = JOBS,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Copy a cache, or a part of it, to a folder: only what is missing, every byte checked. Run it again to go on."""
    from hilda_cache.share import commands

    raise typer.Exit(commands.pull(url, store, scenes, teachers, layers, jobs, dry_run=dry_run, as_json=as_json))


def sign(
    store: Annotated[str, typer.Argument(help="The cache: a folder or a URL.", show_default=False)],
    key: Annotated[
        Path, typer.Option("--key", "-k", help="A key of ssh-keygen, or its .pub if an agent holds it.")
    ] = Path("~/.ssh/id_ed25519"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where it goes; default: STORE/root.sig.")] = None,
) -> None:
    """Sign a cache's content hash with an SSH key, for hilda-cache verify --signers."""
    from hilda_cache.share import commands

    commands.sign(store, key, out)
