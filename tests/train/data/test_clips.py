"""Clips: the right neighbours in time, never across a scene's border."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilda_schema.errors import TrainError
from hilda_train.data.clips import Clip, clips_of, median_spacing_s, require_whole_clips


def table(rows: list[tuple[str, float]]) -> pa.Table:
    return pa.table({"scene": [scene for scene, _ in rows], "stamp_ns": [int(s * 1e9) for _, s in rows]})


def test_keyframes_at_2_hz() -> None:
    frames = table([("a", 0.0), ("a", 0.5), ("a", 1.05), ("b", 1.5), ("b", 2.0)])
    assert clips_of(frames, 3, gap_s=0.5) == [
        Clip(3, None, 0, 1),
        Clip(3, 0, 1, 2),
        Clip(3, 1, 2, None),
        Clip(3, None, 3, 4),
        Clip(3, 3, 4, None),
    ]


def test_the_gap_is_time_not_frames() -> None:
    frames = table([("a", k * 0.1) for k in range(12)])
    clips = clips_of(frames, 0, gap_s=0.5)
    assert clips[5] == Clip(0, 0, 5, 10)
    assert clips[4].previous == 0  # 0.4 s back is near enough to 0.5 s
    assert clips[3].previous is None  # 0.3 s back is not
    assert clips[11].next is None


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 200)), min_size=1, max_size=25, unique=True),
    st.integers(1, 30),
)
def test_equals_a_search_through_all_frames(rows: list[tuple[str, int]], gap: int) -> None:
    rows.sort()
    frames = table([(scene, tick / 10) for scene, tick in rows])
    for clip in clips_of(frames, 0, gap / 10):
        scene, tick = rows[clip.current]
        for found, wanted in ((clip.previous, tick - gap), (clip.next, tick + gap)):
            near = {k for k, (s, t) in enumerate(rows) if s == scene and abs(t - wanted) <= 0.3 * gap - 1e-6}
            edge = {k for k, (s, t) in enumerate(rows) if s == scene and abs(t - wanted) <= 0.3 * gap + 1e-6}
            if found is None:
                assert not near
            else:
                assert found in edge
                assert abs(rows[found][1] - wanted) == min(abs(rows[k][1] - wanted) for k in edge)


def test_an_occupancy_run_without_neighbours_is_refused() -> None:
    frames = table([("a", k * 0.5) for k in range(4)])
    assert median_spacing_s(frames) == 0.5
    with pytest.raises(TrainError, match=r"the frames are 0.5 s apart.*data.gap_s=0.5"):
        require_whole_clips(clips_of(frames, 0, 0.1), 0.1, 0.5)
    require_whole_clips(clips_of(frames, 0, 0.5), 0.5, 0.5)
