"""A run's report: one HTML page that carries everything with it, and needs no network to be read.

    write_report(Path("run"), ["cache"], Path("run/report.html"))

The only part of stage two that needs matplotlib. Without caches it has the curves; with them also pictures of what the
student predicts, and of the future that it foresees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hilda_schema.durable import write_atomically
from hilda_schema.errors import TrainError, UsageError
from hilda_schema.page import page
from hilda_train.run import CONFIG, read_config, read_run
from hilda_train.runlog import NAME, read_log


def write_report(
    run: Path, caches: Sequence[str], out: Path, pictures: Sequence[Path] = (), results: Sequence[Path] = ()
) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run: the run's folder.
        caches: those that it was trained from, in the same order; none for a report without pictures of features.
        out: the HTML file.
        pictures: PNG files to put on top, such as those of `hilda-cache show`.
        results: JSON files of `hilda-train probe` or `finetune`, to be shown in one table.

    Returns:
        `out`.

    Raises:
        TrainError: no run, no log, other caches, or no checkpoint.
        UsageError: matplotlib is not installed, a picture or result cannot be read, or the file cannot be written.
    """
    if not (run / CONFIG).is_file():
        raise TrainError(f"{run} holds no run", "give the folder of `hilda-train fit --out`")
    try:
        import hilda_train.report.sections as sections
        from hilda_train.report.results import evaluated
    except ModuleNotFoundError as error:
        raise UsageError(f"reports need {error.name}", "pip install 'hilda-lidar[train]'") from error

    lines = read_log(run / NAME) if (run / NAME).is_file() else []
    if not lines:
        raise TrainError(f"{run} has no curve yet: its {NAME} is empty", "let the run reach train.log_every")
    config, described = read_config(run), read_run(run)
    attached, evaluations = sections.attached(pictures), evaluated(results)  # what is wrong with them is said first
    parts = [sections.overview(config, described, lines), *attached, sections.curves(lines), *evaluations]
    if caches:
        parts += sections.what_was_learned(run, caches)
    parts.append(sections.details(run, described))
    try:
        write_atomically(out, page(f"{run.name}: {config.about}", parts, sections.STYLE).encode())
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", "give a file in a folder that exists") from error
    return out
