"""What `hilda-train retrieve` does once its options are understood."""

from __future__ import annotations

from pathlib import Path

from hilda_schema.durable import write_atomically
from hilda_schema.errors import UsageError
from hilda_schema.reader import open_cache
from hilda_schema.terminal import say
from hilda_train.evaluate.backbones import config_of, load_subject
from hilda_train.evaluate.retrieval import retrieve
from hilda_train.evaluate.sweeps import require_sensors, sweep_scan_options


def draw(what: str, store: str, frame: int, point: int, out: Path, like: str | None, frames: int, seed: int) -> None:
    """Draw where a backbone finds what looks like a point.

    Raises:
        HildaError: whatever is wrong with the request, the cache or the weights.
    """
    if out.suffix != ".png":
        raise UsageError(f"--out {out} does not end in .png")
    try:
        from hilda_train.report.retrieval import draw_retrieval
    except ModuleNotFoundError as error:
        raise UsageError(f"pictures need {error.name}", "pip install 'hilda-lidar[train]'") from error
    config = config_of(what, like)
    cache, options = open_cache(store), sweep_scan_options(config, {}, None)
    require_sensors(options, [cache])
    student = load_subject(what, config, seed).student.eval()
    picture = draw_retrieval(list(retrieve(student, options, cache, frame, point, frames)))
    try:
        write_atomically(out, picture)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", "give a file in a folder that exists") from error
    say(f"wrote {out}")
