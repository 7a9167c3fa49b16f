"""How long does a training step wait for its data, for each size of student, on a local disk?

    python benchmarks/data_wait.py CACHE [--steps 12] [--workers 1] [-s NAME=VALUE ...]

Runs `hilda-train fit multi_layer` with each student on the cache, batches of one frame and a linear head (with the
recipe's own head a step is slower, and waits less), one thread for the step, and prints what the run's log says:
seconds of a step, and the share of them in which the next batch, its token grids read, was not there. The steps until
the first log line, in which the workers start, are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STUDENTS = {
    "MinkUNet14-half": ("student.depth=14", "student.width=0.5"),
    "MinkUNet18": ("student.depth=18",),
    "MinkUNet34": ("student.depth=34",),
}


def main() -> None:
    """Train each student for some steps, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("-s", "--set", action="append", default=[], help="as of hilda-train fit")
    arguments = parser.parse_args()
    print(f"{'':16} {'s a step':>9} {'waiting':>8}")
    for name, student in STUDENTS.items():
        own = ("data.batch_size=1", f"data.workers={arguments.workers}", "objectives.point.head.layers=1")
        budget = (f"train.max_steps={arguments.steps}", "train.epochs=null", f"train.log_every={arguments.steps // 2}")
        line = last_line(arguments.cache, (*student, *own, *budget, "train.precision=float32", *arguments.set))
        print(f"{name:16} {line['seconds']:9.2f} {line['wait_share']:8.1%}")


def last_line(cache: Path, sets: tuple[str, ...]) -> dict[str, float]:
    """The last line of a run's log."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "multi_layer", "-c", str(cache), "-o", f"{folder}/run"]
        words += [word for each in sets for word in ("-s", each)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "hilda_train", "--quiet", *words], check=True, env=environment)
        return json.loads((Path(folder) / "run" / "log.jsonl").read_text().splitlines()[-1])


if __name__ == "__main__":
    main()
