"""The estimate of `--dry-run` against what is then really asked of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hilda_cache.share import commands
from hilda_cache.share.cost import USD_PER_GB_OUT, USD_PER_READ, USD_PER_WRITE, pull_cost, push_cost
from hilda_cache.share.pull import plan_pull, pull
from hilda_cache.share.push import complete_manifest, push
from hilda_schema.remote import PIECE_BYTES
from hilda_schema.storage import LocalStorage


def test_estimates_are_what_a_server_counts(store: Path, s3: Any, proxy: Any, tmp_path: Path) -> None:
    manifest = complete_manifest(LocalStorage(store))
    cost = commands._cost_of_push(LocalStorage(store), manifest, s3.network())
    proxy.reset()
    push(store, s3.network(), jobs=1)
    writes = sum(request.writes for request in proxy.log)
    assert cost.writes == writes
    assert abs(cost.reads - (len(proxy.log) - writes)) <= 0.1 * cost.reads
    assert cost.bytes == sum(path.stat().st_size for path in store.rglob("parts/*/**/*") if path.is_file())
    s3.use("network")
    plan = plan_pull(s3.url)
    cost = commands._cost_of_pull(plan, tmp_path / "here")
    proxy.log.clear()
    pull(plan, tmp_path / "here", jobs=1)
    assert abs(cost.reads - len(proxy.log)) <= 0.1 * cost.reads
    assert abs(cost.bytes_out - proxy.bytes_given()) <= 0.1 * cost.bytes_out


def test_what_a_large_store_costs() -> None:
    """867 GB of ViT-L grids for nuScenes: traffic to the internet is nearly all of it."""
    parts = [[200_000_000] + [1000] * 50] * 4000
    pulled, pushed = pull_cost("s3", parts, 0), push_cost("s3", parts, 0)
    assert pulled.bytes == 4000 * 200_050_000
    assert pulled.usd == pytest.approx(
        pulled.bytes / 1e9 * USD_PER_GB_OUT["s3"] + pulled.reads * USD_PER_READ["s3"], rel=1e-9
    )
    assert pulled.reads == 4000 * (50 + -(-200_000_000 // PIECE_BYTES)) + 5
    assert pushed.writes == 4000 * (50 + -(-200_000_000 // 2**24) + 2) + 5
    assert pushed.usd is not None
    assert pushed.usd - pushed.bytes / 1e9 * USD_PER_GB_OUT["s3"] - pushed.reads * USD_PER_READ["s3"] > 0
    assert pushed.writes * USD_PER_WRITE["s3"] < 2
    assert push_cost("hf", parts, 0).usd is None
    assert pull_cost("s3", [], 7).bytes == 0
