"""What each command does once its options are understood."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from hilda_schema.errors import TrainError, UsageError
from hilda_schema.terminal import say
from hilda_train.config import FitConfig, apply_set
from hilda_train.data.loading import EpochOrder, make_loader, with_tokens
from hilda_train.distributed import joined
from hilda_train.fit import Stop, Trainer, build_trainer, compute_terms, resume, run_loop
from hilda_train.prepare import Prepared, prepare
from hilda_train.recipes import load_recipe
from hilda_train.run import CONFIG, check_same_run, start_run


def pick_device(name: str) -> torch.device:
    """Turn a name into a device; "auto" is the GPU of this process where there is one.

    Raises:
        UsageError: CUDA is asked for and not there.
    """
    cuda = torch.cuda.is_available()
    if name == "cuda" and not cuda:
        raise UsageError("--device cuda: torch sees no GPU", "use --device cpu, or install a CUDA build of torch")
    if name == "cpu" or not cuda:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def configure(recipe: str, assignments: list[str], caches: list[str]) -> tuple[FitConfig, tuple[str, ...]]:
    """The recipe with what the command line changes, and the caches to train from."""
    config = apply_set(load_recipe(recipe), assignments)
    return config, tuple(caches) or config.data.caches


def fit(
    recipe: str, caches: list[str], out: Path, assignments: list[str], *, go_on: bool, dry_run: bool, device: str
) -> int:
    """Train; the exit code."""
    config, urls = configure(recipe, assignments, caches)
    place = pick_device(device)
    with joined(place) as world, Stop().listening() as stop:
        prepared = prepare(config, urls, place)
        trainer = build_trainer(prepared, world, place)
        if world.leads:
            _say_what(prepared, trainer)
        if dry_run:
            return _dry_run(trainer)
        _open_run(trainer, out, go_on=go_on)
        run_loop(trainer, out, stop)
        if not world.leads:
            return 0
        if trainer.step < trainer.steps:
            say(f"stopped at step {trainer.step} of {trainer.steps}; go on with the same command and --resume")
            return 128 + (stop.signal or 0)
        say(f"{out}: {trainer.steps} steps done; look at it with hilda-train report {out}")
        return 0


def _open_run(trainer: Trainer, out: Path, *, go_on: bool) -> None:
    """Start a run's folder or go on in it."""
    prepared = trainer.prepared
    if (out / CONFIG).exists() and go_on:
        check_same_run(out, prepared.config, prepared.caches)
        if resume(trainer, out) and trainer.world.leads:
            say(f"going on from step {trainer.step} of {trainer.steps}")
    elif trainer.world.leads:
        start_run(out, prepared.config, prepared.caches)


def _say_what(prepared: Prepared, trainer: Trainer) -> None:
    student = sum(parameter.numel() for parameter in trainer.learner.student.parameters())
    heads = sum(parameter.numel() for parameter in trainer.learner.parameters()) - student
    whole = sum(clip.whole for clip in prepared.clips)
    for reason in prepared.reasons:
        say(f"  {reason}")
    say(
        f"{len(prepared.clips)} clips ({whole} with both neighbours) of {len(prepared.caches)} caches, "
        f"student {student / 1e6:.2f} M parameters, heads {heads / 1e6:.2f} M; "
        f"{trainer.steps} steps on {trainer.device}"
    )


def _dry_run(trainer: Trainer) -> int:
    """One batch, forward and backward, without an optimiser step."""
    prepared = trainer.prepared
    config = prepared.config
    order = EpochOrder(
        len(prepared.clips), config.data.batch_size, config.train.accumulate, config.train.seed, trainer.world
    )
    loader = make_loader(prepared.dataset, order, 0, trainer.device)
    batch, tokens = next(with_tokens(iter(loader), prepared.caches, prepared.tokens))
    terms = compute_terms(trainer, batch, tokens)
    torch.stack([term.loss for term in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    points = batch.points
    voxels = f", {len(points.voxels.coords)} voxels" if points.voxels is not None else ""
    say(f"one batch: {points.batch_size} sweeps, {len(points.xyz_m)} points{voxels}, {len(batch.pair_point)} pairs")
    for target, width in zip(config.targets, prepared.widths, strict=True):
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
