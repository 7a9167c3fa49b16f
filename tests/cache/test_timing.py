"""A run's time report: what it calls the bound of runs whose times are known."""

from __future__ import annotations

import pytest

from hilda_cache.timing import BOUND, Timing


def timing(cpu_share: float = 1.0, **seconds: float) -> Timing:
    return Timing(3.0, 10.0, 2, seconds, {stage: s * cpu_share for stage, s in seconds.items()})


@pytest.mark.parametrize(
    ("run", "bound"),
    [
        (timing(teach=18, wait_load=1, decode=19, write=5), "teachers"),
        (timing(teach=5, wait_load=14, hash=9, decode=9, cpu_share=0.1), "reading"),
        (timing(teach=5, wait_load=14, hash=2, decode=16, cpu_share=0.9), "preparing"),
        (timing(teach=5, wait_store=14, encode=1, write=18, cpu_share=0.1), "writing"),
        (timing(teach=5, wait_store=14, encode=17, write=2, cpu_share=0.9), "encoding"),
        (timing(teach=8, hash=2), "parts"),
        (timing(start=11, teach=8), "start"),
        (timing(), "parts"),
    ],
)
def test_the_bound_is_what_the_models_waited_for(run: Timing, bound: str) -> None:
    assert run.bound_by == run.to_json()["bound_by"] == bound
    assert f"bound by {BOUND[run.bound_by]}" in run.lines()


def test_what_the_models_did_sums_to_the_time_of_the_workers() -> None:
    spent = timing(teach=12, wait_load=3, wait_store=1, decode=9, write=4).model_seconds
    assert sum(spent.values()) == pytest.approx(20)
    assert spent["idle"] == pytest.approx(4)
    assert "decode" not in spent


def test_the_time_is_told_in_words() -> None:
    first, bound, beside = timing(0.5, teach=15, wait_load=4, decode=6).lines()
    assert first.startswith("3 s to start, 10 s with 2 workers: features 75%, models loaded 0%, waiting for frames 20%")
    assert bound == "bound by computing the features"
    assert beside.endswith("decode 6 s (3), teach 15 s (8)")
