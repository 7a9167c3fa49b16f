"""Where an extraction's time went, and what bounded it.

Each worker's model is the scarce thing: all else is done beside it (lanes.py). So the time of all workers is cut by
what their models did: they saw images, were started, waited for frames or for the store, or had no part at all. What
they did for the longest time bounds the run; where they waited for a lane, so does whatever kept that lane busy, and
where that used little of the processor, the disk behind it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hilda_schema.terminal import counted, human_seconds

LANES = {
    "load": ("hash", "read", "decode", "project"),
    "teach": ("teach", "start", "wait_load", "wait_store"),
    "store": ("encode", "write"),
}
"""Stages of a part's journey by the lane that they are in."""

Bound = Literal["teachers", "start", "reading", "preparing", "encoding", "writing", "parts"]
BOUND: dict[Bound, str] = {
    "teachers": "computing the features",
    "start": "loading the models",
    "reading": "reading the drive",
    "preparing": "decoding and projecting",
    "encoding": "encoding the features",
    "writing": "writing the store",
    "parts": "too few parts for the workers",
}

_MODEL = {
    "teach": "features {}", "start": "models loaded {}", "wait_load": "waiting for frames {}",
    "wait_store": "waiting for the store {}", "idle": "without a part {}",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """What a run's time was spent on.

    Args:
        start_s: until every worker had its models; not in the other times.
        wall_s: from the first part begun to the last one done.
        workers: processes that made parts.
        seconds: stage -> wall time, of all workers together; beside each other, hence more than `wall_s` in sum.
        cpu_seconds: stage -> processor time.
    """

    start_s: float
    wall_s: float
    workers: int
    seconds: Mapping[str, float]
    cpu_seconds: Mapping[str, float]

    @property
    def model_seconds(self) -> dict[str, float]:
        """What the workers' models did; sums to workers x wall time, "idle" is what is left."""
        spent = {stage: self.seconds.get(stage, 0.0) for stage in LANES["teach"]}
        return spent | {"idle": max(0.0, self.workers * self.wall_s - sum(spent.values()))}

    @property
    def bound_by(self) -> Bound:
        """What the run would be faster without."""
        spent = self.model_seconds
        match max(spent, key=spent.__getitem__):
            case "wait_load":
                return "reading" if self._on_disk("load") else "preparing"
            case "wait_store":
                return "writing" if self._on_disk("store") else "encoding"
            case "idle":
                return "parts"
            case "start":
                return "start"
        return "teachers"

    def _on_disk(self, lane: str) -> bool:
        """Whether a lane used the processor for less than half of its time."""
        wall, cpu = (sum(times.get(stage, 0.0) for stage in LANES[lane]) for times in (self.seconds, self.cpu_seconds))
        return cpu < wall / 2

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "start_s": self.start_s,
            "wall_s": self.wall_s,
            "workers": self.workers,
            "bound_by": self.bound_by,
            "model_s": self.model_seconds,
            "stages_s": dict(self.seconds),
            "stages_cpu_s": dict(self.cpu_seconds),
        }

    def lines(self) -> list[str]:
        """In words: the models' time, then that of all stages."""
        whole = max(self.workers * self.wall_s, 1e-9)
        model = ", ".join(_MODEL[name].format(f"{s / whole:.0%}") for name, s in self.model_seconds.items())
        stages = [stage for lane in LANES.values() for stage in lane if not stage.startswith("wait_")]
        told = ", ".join(
            f"{stage} {human_seconds(self.seconds[stage])} ({self.cpu_seconds.get(stage, 0.0):.0f})"
            for stage in stages
            if stage in self.seconds
        )
        start, made = human_seconds(self.start_s), human_seconds(self.wall_s)
        return [
            f"{start} to start, {made} with {counted(self.workers, 'worker')}: {model}",
            f"bound by {BOUND[self.bound_by]}",
            f"side by side, in seconds of all workers (of the processor): {told}",
        ]
