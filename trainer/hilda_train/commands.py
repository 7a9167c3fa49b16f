"""What each command does once its options are understood."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import torch

from hilda_schema.errors import TrainError, UsageError
from hilda_schema.storage import split_pin, without_secrets
from hilda_schema.terminal import counted, say, warn
from hilda_train.config import FitConfig, apply_set, digest
from hilda_train.data.loading import make_loader, with_tokens
from hilda_train.distributed import gather_objects, joined, require_same
from hilda_train.fit import Stop, Trainer, build_trainer, compute_terms, resume, run_loop
from hilda_train.prepare import Prepared, prepare
from hilda_train.recipes import load_recipe
from hilda_train.run import CONFIG, check_same_run, describe_caches, held, require_new, start_run

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """Turn a name into a device; "auto" is the GPU of this process where there is one.

    Raises:
        UsageError: another name, or CUDA is asked for and not there.
    """
    if name not in DEVICES:
        raise UsageError(f"--device {name} is not known", f"use {', '.join(DEVICES)}")
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise UsageError("--device cuda: torch sees no GPU", "use --device cpu, or install a CUDA build of torch")
    if name == "cpu" or not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def configure(recipe: str, assignments: list[str], caches: list[str]) -> tuple[FitConfig, tuple[str, ...]]:
    """The recipe with what the command line changes, and the caches to train from.

    Raises:
        UsageError: no such recipe, an assignment that does not fit it, or a cache's URL in it that holds a secret.
    """
    config = apply_set(load_recipe(recipe), assignments)
    for url in config.data.caches:
        if "://" in url and without_secrets(split_pin(url)[0]) != split_pin(url)[0].rstrip("/"):
            raise UsageError(
                f"data.caches: {without_secrets(url)} has a password or a signature, which a run would write down",
                "give it with --cache, or the credentials in the environment",
            )
    return config, tuple(caches) or config.data.caches


def fit(
    recipe: str, caches: list[str], out: Path, assignments: list[str], *, go_on: bool, dry_run: bool, device: str
) -> int:
    """Train; the exit code."""
    config, urls = configure(recipe, assignments, caches)
    place = pick_device(device)
    starts = not (go_on and (out / CONFIG).exists())
    if starts and not dry_run:
        require_new(out)  # before the minutes that a large cache takes to prepare
    with joined(place) as world, Stop().listening() as stop:
        prepared = prepare(config, urls, place)
        require_same((digest(prepared.config), describe_caches(prepared.caches)), "config or caches")
        trainer = build_trainer(prepared, world, place)
        if world.leads:
            _say_what(prepared, trainer)
        if dry_run:
            return _dry_run(trainer)
        if world.leads and starts:
            start_run(out, prepared.config, prepared.caches)
        with held(out) if world.leads else nullcontext():
            if go_on:
                _go_on(trainer, out)
            run_loop(trainer, out, stop)
        if trainer.step < trainer.steps:
            assert stop.signal is not None
            if world.leads:
                warn(f"stopped at step {trainer.step} of {trainer.steps}; go on with the same command and --resume")
            return 128 + stop.signal
        if world.leads:
            say(f"{out}: {trainer.steps} steps done; look at it with hilda-train report {out}")
        return 0


def _go_on(trainer: Trainer, out: Path) -> None:
    """Take the newest checkpoint up, where there is one."""
    gather_objects(None)  # the first process may only now have started the run
    check_same_run(out, trainer.prepared.config, trainer.prepared.caches)
    if resume(trainer, out) and trainer.world.leads:
        say(f"going on from step {trainer.step} of {trainer.steps}")
    require_same(trainer.step, "checkpoint's step")


def _say_what(prepared: Prepared, trainer: Trainer) -> None:
    student = sum(parameter.numel() for parameter in trainer.learner.student.parameters())
    heads = sum(parameter.numel() for parameter in trainer.learner.parameters()) - student
    whole = sum(clip.whole for clip in prepared.clips)
    for reason in prepared.reasons:
        say(f"  {reason}")
    say(
        f"{len(prepared.clips)} clips ({whole} with both neighbours) of {counted(len(prepared.caches), 'cache')}, "
        f"student {student / 1e6:.2f} M parameters, heads {heads / 1e6:.2f} M; "
        f"{trainer.steps} steps on {trainer.device}"
    )


def _dry_run(trainer: Trainer) -> int:
    """One batch, forward and backward, without an optimiser step."""
    prepared = trainer.prepared
    loader = make_loader(prepared.dataset, trainer.order, 0, trainer.device)
    batch, tokens = next(with_tokens(loader, prepared.caches, prepared.tokens))
    terms = compute_terms(trainer, batch, tokens)
    torch.stack([term.loss for term in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    points = batch.points
    voxels = f", {len(points.voxels.coords)} voxels" if points.voxels is not None else ""
    say(f"one batch: {points.batch_size} sweeps, {len(points.xyz_m)} points{voxels}, {len(batch.pair_point)} pairs")
    for target, width in zip(prepared.config.targets, prepared.widths, strict=True):
        say(f"  target {target} x {width} channels")
    for name, term in terms.items():
        say(f"  {name}: {float(term.loss.detach()):.4f}")
    if trainer.device.type == "cuda":
        say(f"  memory: {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU")
    else:
        import resource

        say(f"  memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most so far")
    return 0


def export(run: Path, out: Path, target: str) -> None:
    """Write the backbone for another framework."""
    from hilda_train.export import export_backbone, load_backbone

    require_run(run)
    export_backbone(load_backbone(run), target, out)
    say(f"wrote {out}")


def require_run(folder: Path) -> None:
    """Refuse a folder that holds no run.

    Raises:
        TrainError: saying so.
    """
    if not (folder / CONFIG).is_file():
        raise TrainError(f"{folder} holds no run", "give the folder of `hilda-train fit --out`")
