"""What tests of the training loop share: a toy cache, a recipe that trains in seconds, and `hilda-train` processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

RECIPE = """
extends: hilda
student:
  {arch: waffleiron, depth: 2, width: 8, levels: [1, 2], neighbours: 4, thin_m: null, cell_m: 4.0,
   range_m: [[-32, -32, -4], [32, 32, 4]], drop_path: 0.3}
objectives:
  point: {head: {layers: 2, hidden: 16}}
  global_context: {weight: 1.0, head: {layers: 2, hidden: 16}}
  occupancy: {range_m: 16.0, cell_m: 2.0, history_channels: 8, base: 8, multipliers: [1, 2], blocks: 1, steps: 100}
data: {batch_size: 2, workers: 0, gap_s: 0.1, intensity: {toy: {mean: 0.5, std: 0.3}}}
schedule: {kind: cosine, warmup: 1}
train: {max_steps: 6, precision: float32, checkpoint_every: 3, log_every: 1}
"""


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory):
    """A cache of two scenes of five frames, 0.1 s apart; among them a frame without points. Do not change it."""
    from hilda_schema.testing import tiny_cache

    return tiny_cache(tmp_path_factory.mktemp("fit") / "cache", points=200)


@pytest.fixture(scope="session")
def toy_recipe(tmp_path_factory):
    """HilDA's three objectives on a student of a few thousand weights, five steps an epoch."""
    path = tmp_path_factory.mktemp("fit") / "toy.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def torch_as_before():
    """Undo what a run changes in torch for the whole process."""
    import torch

    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture
def fit(toy_cache, toy_recipe, torch_as_before):
    """`hilda-train fit` in this process: fit(out, "key=value", ..., go_on=False) -> exit code."""
    from hilda_train import commands

    def run(out, *assignments, go_on=False, dry_run=False, cache=toy_cache, more=(), recipe=toy_recipe):
        caches = [str(each) for each in (cache, *more)]
        return commands.fit(
            str(recipe), caches, Path(out), list(assignments), go_on=go_on, dry_run=dry_run, device="cpu"
        )

    return run


@dataclass
class Process:
    """A running `hilda-train`."""

    pid: int
    output: Path
    zygote: Zygote
    code: int | None = field(default=None)

    def wait(self):
        """Its exit code; negative for the signal that ended it."""
        if self.code is None:
            self.code = self.zygote.ask(wait=self.pid)["code"]
        return self.code

    def send(self, number, group=False):
        """Send a signal to it, or to it and its workers."""
        (os.killpg if group else os.kill)(self.pid, number)

    def until(self, condition):
        """Wait until a condition holds; it must hold before the process ends."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.said
            assert Path(f"/proc/{self.pid}/stat").read_text().split(")")[1].split()[0] != "Z", self.said
            time.sleep(0.005)

    def until_step(self, run, step):
        """Wait until a run's log has a step."""
        self.until(lambda: any(line["step"] >= step for line in log_of(run)))

    @property
    def said(self):
        """All that it printed."""
        return self.output.read_text()


class Zygote:
    """Starts `hilda-train` processes, see zygote.py."""

    def __init__(self, folder):
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert json.loads(self._process.stdout.readline())["ready"]
        self._started = []

    def ask(self, **order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *argv, **env):
        self._count += 1
        output = self._folder / f"output-{self._count}"
        pid = self.ask(argv=[str(each) for each in argv], env=env, output=str(output))["pid"]
        process = Process(pid, output, self)
        self._started.append(process)
        return process

    def close(self):
        for process in self._started:
            if process.code is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send(signal.SIGKILL, group=True)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Start real `hilda-train` processes: zygote.start("fit", ..., WORLD_SIZE="2") -> Process."""
    zygote = Zygote(tmp_path_factory.mktemp("processes"))
    yield zygote
    zygote.close()


@pytest.fixture
def start_fit(zygote, toy_cache, toy_recipe):
    """Start `hilda-train fit` as a process: start_fit(out, "key=value", ..., resume=False) -> Process."""

    def start(out, *assignments, resume=False, cache=toy_cache, more=(), **env):
        options = [*more, *(word for each in assignments for word in ("--set", each)), *["--resume"] * resume]
        return zygote.start("fit", toy_recipe, "--cache", cache, "--out", out, "--device", "cpu", *options, **env)

    return start


def log_of(run):
    """The lines of a run's log that are whole."""
    path = Path(run) / "log.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="session")
def curve():
    """curve(run): a run's log without what depends on the clock."""

    def read(run):
        return [{k: v for k, v in line.items() if k not in {"seconds", "wait_share"}} for line in log_of(run)]

    return read


@pytest.fixture(scope="session")
def weights():
    """weights(run): every tensor of a run's newest checkpoint, by file and name."""
    from safetensors.torch import load_file

    def read(run):
        newest = max((Path(run) / "checkpoints").glob("step-????????"))
        return {
            (file.stem, name): tensor
            for file in newest.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }

    return read


@pytest.fixture(scope="session")
def require_same_bits():
    """require_same_bits(a, b): two results of `weights` are equal to the bit."""
    import torch

    def check(a, b):
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []

    return check
