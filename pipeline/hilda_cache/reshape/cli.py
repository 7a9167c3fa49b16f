"""The commands of `hilda-cache` that change what a store holds. Words only, as in `hilda_cache.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hilda_cache.completion import ENCODINGS
from hilda_schema.completion import (
    camera_list_of_store,
    folders,
    layer_list_of_store,
    scene_list_of_store,
    teacher_list_of_store,
    words,
)

Store = Annotated[str, typer.Argument(help="The cache: a folder or a URL.", show_default=False, autocompletion=folders)]
Folder = Annotated[str, typer.Argument(help="The cache's folder.", show_default=False, autocompletion=folders)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the new cache.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (merge, subset, reencode, prune, forget, catalog, card, migrate):
        app.command()(command)


def merge(
    stores: Annotated[
        list[str],
        typer.Argument(help="Caches of one recipe: folders or URLs.", show_default=False, autocompletion=folders),
    ],
    out: Out,
) -> None:
    """Unite caches of one recipe; what two of them hold must be the same, and is kept once."""
    from hilda_cache.reshape import commands

    commands.merge(stores, out)


def subset(
    store: Store,
    out: Out,
    scenes: Annotated[
        str | None, typer.Option(help="Keep these scenes: NAME[,NAME...].", autocompletion=scene_list_of_store)
    ] = None,
    frames: Annotated[str, typer.Option(help="Keep frames A:B of those that the cache has of each scene.")] = ":",
    cameras: Annotated[
        str | None, typer.Option(help="Keep these cameras: NAME[,NAME...].", autocompletion=camera_list_of_store)
    ] = None,
    teachers: Annotated[
        str | None, typer.Option(help="Keep these teachers: NAME[,NAME...].", autocompletion=teacher_list_of_store)
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep these layers: [TEACHER=]NAME[,NAME...]. Repeatable.", autocompletion=layer_list_of_store
        ),
    ] = None,
) -> None:
    """Cut a cache: some scenes, frames, cameras, teachers or layers; what stays keeps its bits."""
    from hilda_cache.reshape import commands

    commands.subset(store, out, scenes, frames, cameras, teachers, layers or [])


def reencode(
    store: Store,
    out: Out,
    to: Annotated[
        str | None,
        typer.Option(help="grid, grid-int8, point or point-int8; default: as it is.", autocompletion=words(ENCODINGS)),
    ] = None,
    dims: Annotated[
        list[str] | None,
        typer.Option(help="Keep so many channels of every layer: [TEACHER=]N, along principal axes. Repeatable."),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="Encode as this cache, with its axes: what is to be merged.", autocompletion=folders),
    ] = None,
) -> None:
    """Store the same features in another encoding or in fewer channels, and measure what that loses."""
    from hilda_cache.reshape import commands

    commands.reencode(store, out, to, dims or [], like)


def prune(store: Folder, dry_run: DryRun = False) -> None:
    """Remove leftovers and parts that the manifest does not list; report strange files, and leave them."""
    from hilda_cache.reshape import commands

    commands.prune(store, dry_run=dry_run)


def forget(
    store: Folder,
    reason: Annotated[str, typer.Option(help="Why; kept in the manifest and on the card.", show_default=False)],
    scenes: Annotated[
        str | None, typer.Option(help="Remove these scenes: NAME[,NAME...].", autocompletion=scene_list_of_store)
    ] = None,
    frames: Annotated[str | None, typer.Option(help="Remove these frames: KEY[,KEY...], drive/scene/frame.")] = None,
) -> None:
    """Remove frames for good, because somebody asked: no byte of them stays in this cache."""
    from hilda_cache.reshape import commands

    commands.forget(store, reason, scenes, frames)


def catalog(
    uri: Annotated[str, typer.Argument(help="A folder or URL with caches below it.", show_default=False)],
    as_json: Json = False,
) -> None:
    """List the caches under a folder or URL; those that cannot be read too, with the reason."""
    from hilda_cache.reshape import commands

    commands.catalog(uri, as_json=as_json)


def card(
    store: Store,
    write: Annotated[bool, typer.Option("--write", help="Write it to the cache's README.md.")] = False,
) -> None:
    """Print a cache's card for people, as dataset hubs show it."""
    from hilda_cache.reshape import commands

    commands.card(store, write=write)


def migrate(store: Folder, dry_run: DryRun = False) -> None:
    """Take a cache of an earlier schema to today's."""
    from hilda_cache.reshape import commands

    commands.migrate(store, dry_run=dry_run)
