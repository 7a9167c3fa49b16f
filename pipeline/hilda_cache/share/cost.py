"""What moving a store takes, before it is done: requests, bytes, and about what a provider charges for them.

Prices are list prices of the standard class in the cheapest regions, in US dollars, as published in 2025. They are
here to show the order of magnitude; traffic inside one region costs nothing at these providers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hilda_cache.share.files import SMALL_BYTES
from hilda_schema.remote import PIECE_BYTES, PUT_OPTIONS

USD_PER_WRITE = {"s3": 0.005 / 1000, "gs": 0.005 / 1000}
"""A PUT, or one piece of a large file (AWS S3 us-east-1; Google Cloud class A, us-east1)."""

USD_PER_READ = {"s3": 0.0004 / 1000, "gs": 0.0004 / 1000}
"""A GET (S3; Google Cloud class B)."""

USD_PER_GB_OUT = {"s3": 0.09, "gs": 0.12}
"""Bytes that leave for the internet, the first 10 TB of a month; bytes that come in are free."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a push or a pull would move."""

    parts: int
    parts_there: int  # of the whole store, there already
    files: int
    bytes: int
    writes: int  # requests that write
    reads: int  # requests that read, those that check what was written included
    bytes_out: int  # that leave the object store
    usd: float | None  # None: nothing is known of what this place charges

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def push_cost(scheme: str, parts: list[list[int]], parts_there: int) -> Cost:
    """Of sending parts and reading them back.

    Args:
        scheme: of the URL.
        parts: the sizes of each part's files, seals included.
        parts_there: how many are not sent.
    """
    sizes = [size for part in parts for size in part]
    piece = PUT_OPTIONS.get(scheme, {}).get("chunksize", PIECE_BYTES)
    writes = sum(1 if size < 2 * piece else -(-size // piece) + 2 for size in sizes) + ROOT_FILES
    # Before anything is written, what is there is asked for: of every part the seal, of those sent all small files.
    reads = parts_there + sum(2 for size in sizes if size <= SMALL_BYTES) + _reads(sizes, over=1) + 3 * ROOT_FILES
    return _cost(scheme, parts, parts_there, writes, reads, sum(sizes))


def pull_cost(scheme: str, parts: list[list[int]], parts_there: int) -> Cost:
    """Of fetching parts; arguments as in `push_cost`."""
    sizes = [size for part in parts for size in part]
    small = sum(1 for size in sizes if size <= SMALL_BYTES)
    return _cost(scheme, parts, parts_there, 0, small + _reads(sizes, over=0) + ROOT_FILES, sum(sizes))


ROOT_FILES = 5


def _reads(sizes: Iterable[int], over: int) -> int:
    """Requests for files that are read in pieces, and `over` for the byte behind each, which must not be there."""
    return sum(-(-size // PIECE_BYTES) + over for size in sizes if size > SMALL_BYTES)


def _cost(scheme: str, parts: list[list[int]], there: int, writes: int, reads: int, out: int) -> Cost:
    usd = None
    if scheme in USD_PER_READ:
        usd = writes * USD_PER_WRITE[scheme] + reads * USD_PER_READ[scheme] + out / 1e9 * USD_PER_GB_OUT[scheme]
    return Cost(len(parts), there, sum(map(len, parts)), sum(map(sum, parts)), writes, reads, out, usd)
