"""Extracting on Slurm's nodes: jobs that a client submits one by one, or a batch script for a job that runs everything.

Jobs go through dask-jobqueue (extra `[slurm]`), and its configuration says which partition, account and time limit. The
script needs Slurm's `srun` and Dask's own commands, no extra of this package. Scheduler, workers and client speak
TLS, with a certificate that the job makes for itself and removes.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilda_cache.cluster import PARTS_AT_ONCE, THREAD_VARIABLES, WORKER_SETTINGS
from hilda_schema.errors import UsageError

if TYPE_CHECKING:
    import typer

DEFAULT_TASKS = 16
JOB_MEMORY = "6GiB"  # the models, and two parts of 256 MB
SET_BY_THE_SCRIPT = {"print_sbatch", "workers", "scheduler"}

_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=hilda-extract
#SBATCH --ntasks={tasks}              # worker processes, on one node or on many
#SBATCH --cpus-per-task=1        # a worker computes with one thread
#SBATCH --mem-per-cpu=6G         # the models, and two parts of 256 MB
#SBATCH --time=24:00:00          # a job that ends before it is done: submit it again, it goes on
##SBATCH --gpus-per-task=1       # a worker uses the GPU that it sees
##SBATCH --partition=...
##SBATCH --account=...

# Drive, teachers and cache must have the same paths on every node, and so must the environment that is active here.
# hilda-cache extract --print-sbatch wrote this script.
set -euo pipefail
umask 077
folder=$(mktemp -d "$PWD/.hilda-extract-XXXXXX")   # every node sees it
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT

openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=hilda-extract \\
  -keyout "$folder/key.pem" -out "$folder/cert.pem" 2>/dev/null
export DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True DASK_DISTRIBUTED__COMM__TLS__CA_FILE="$folder/cert.pem"
for role in SCHEDULER WORKER CLIENT; do
  export "DASK_DISTRIBUTED__COMM__TLS__${{role}}__CERT=$folder/cert.pem"
  export "DASK_DISTRIBUTED__COMM__TLS__${{role}}__KEY=$folder/key.pem"
done
{settings}

dask scheduler --protocol tls --port 0 --no-dashboard --scheduler-file "$folder/scheduler.json" &
scheduler=$!
until [ -s "$folder/scheduler.json" ]; do
  kill -0 "$scheduler" || exit 1
  sleep 1
done
address=$(sed -n 's/.*"address": *"\\([^"]*\\)".*/\\1/p' "$folder/scheduler.json")

srun dask worker --protocol tls --scheduler-file "$folder/scheduler.json" --nworkers 1 --nthreads {threads} \\
  --no-dashboard --death-timeout 60 &

{command} --scheduler "$address"
"""


def sbatch_script(words: Sequence[str], workers: int | None) -> str:
    """The script.

    Args:
        words: the command, from `hilda-cache` on, without `--scheduler` and `--workers`.
        workers: how many processes; None for a number to be edited.
    """
    settings = "\n".join(_exports())
    return _SCRIPT.format(
        tasks=workers or DEFAULT_TASKS, threads=PARTS_AT_ONCE, command=shlex.join(words), settings=settings
    )


def _exports() -> list[str]:
    """Lines of shell: what a worker needs in its environment, wherever it is started."""
    dask = {f"DASK_{name.replace('.', '__').replace('-', '_').upper()}": v for name, v in WORKER_SETTINGS.items()}
    return [f"export {name}={value}" for name, value in (dict.fromkeys(THREAD_VARIABLES, 1) | dask).items()]


@contextmanager
def slurm_client(jobs: int | None) -> Iterator[Any]:
    """A Dask client whose workers are Slurm jobs, one in each; a job that ends before the work is replaced.

    Partition, account, time limit and memory are those of dask-jobqueue's configuration (`jobqueue.slurm`).

    Raises:
        UsageError: dask-jobqueue or Slurm is not here, or it is not said how many jobs.
    """
    import dask
    from distributed import Client

    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise UsageError("--scheduler slurm needs dask-jobqueue", "pip install 'hilda-lidar[slurm]'") from None
    if shutil.which("sbatch") is None:
        raise UsageError("--scheduler slurm: there is no sbatch here", "run it on a login node of the cluster")
    if not jobs:
        raise UsageError("--scheduler slurm: how many jobs is not said", "add --workers N")
    place = Path.cwd()  # every node must see it
    with tempfile.TemporaryDirectory(prefix=".hilda-extract-", dir=place) as shared, dask.config.set(WORKER_SETTINGS):
        cluster = SLURMCluster(
            cores=PARTS_AT_ONCE,
            processes=1,
            job_cpu=dask.config.get("jobqueue.slurm.job-cpu") or 1,
            memory=dask.config.get("jobqueue.slurm.memory") or JOB_MEMORY,
            security=_certificates(Path(shared)),
            job_script_prologue=[*dask.config.get("jobqueue.slurm.job-script-prologue"), *_exports()],
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            silence_logs="critical",
        )
        with cluster:
            cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
            with Client(cluster) as client:
                yield client


def _certificates(folder: Path) -> Any:
    """One certificate for scheduler, workers and client, as files."""
    from distributed.security import Security

    made = Security.temporary().get_tls_config_for_role("worker")
    for name in ("ca_file", "cert", "key"):
        (folder / name).write_text(made[name])
    roles = {
        f"tls_{role}_{name}": str(folder / name)
        for role in ("scheduler", "worker", "client")
        for name in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=str(folder / "ca_file"), **roles)


def words_of(context: typer.Context) -> list[str]:
    """A command as it was typed, but for what the script itself decides: arguments first, then options."""
    return ["hilda-cache", str(context.info_name), *_arguments(context), *_options(context)]


def _typed(context: typer.Context, kind: str) -> Iterator[tuple[Any, object]]:
    for parameter in context.command.params:
        name, source = str(parameter.name), context.get_parameter_source(str(parameter.name))
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and parameter.param_type_name == kind and name not in SET_BY_THE_SCRIPT:
            yield parameter, context.params[name]


def _arguments(context: typer.Context) -> Iterator[str]:
    return (str(value) for _, value in _typed(context, "argument"))


def _options(context: typer.Context) -> Iterator[str]:
    for option, value in _typed(context, "option"):
        if value is True:
            yield option.opts[0]
        else:
            for each in value if isinstance(value, list | tuple) else [value]:
                yield from (option.opts[0], str(each))
