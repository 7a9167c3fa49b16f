"""Several parts at a time, on a bounded number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TypeVar

from hilda_schema.errors import CacheCorrupt

Task = TypeVar("Task")


@dataclass(slots=True)
class Moved:
    """What was copied, and what was there already."""

    parts: int = 0
    files: int = 0
    bytes: int = 0
    kept_parts: int = 0

    def add(self, other: Moved) -> None:
        """Count what one more part took."""
        self.parts += other.parts
        self.files += other.files
        self.bytes += other.bytes
        self.kept_parts += other.kept_parts


@dataclass(slots=True)
class Transfer:
    """A push or a pull while it runs, and what came of it."""

    moved: Moved = field(default_factory=Moved)
    damaged: list[CacheCorrupt] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)  # parts at the target that its manifest no longer lists

    def raise_damage(self) -> None:
        """Fail where a part could not be copied.

        Raises:
            CacheCorrupt: naming the first, and how many there are.
        """
        if self.damaged:
            first = self.damaged[0]
            more = f" (and {len(self.damaged) - 1} more parts)" if len(self.damaged) > 1 else ""
            raise CacheCorrupt(first.message + more, first.remedy)


def move_parts(
    transfer: Transfer,
    tasks: Sequence[Task],
    move: Callable[[Task], Moved],
    jobs: int,
    stop: Callable[[], None],
    on_part: Callable[[Transfer], None],
) -> None:
    """Move every part. One that is damaged does not keep the others; anything else that goes wrong stops them.

    Args:
        transfer: counts what is done.
        tasks: one a part.
        move: moves one part, on any thread.
        jobs: how many at a time.
        stop: makes those that run give up.
        on_part: called after every part, on this thread.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(move, task) for task in tasks]
        try:
            for future in as_completed(futures):
                try:
                    transfer.moved.add(future.result())
                except CacheCorrupt as error:
                    transfer.damaged.append(error)
                on_part(transfer)
        except BaseException:
            stop()
            for future in futures:
                future.cancel()
            raise
