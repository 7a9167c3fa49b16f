"""Hypothesis strategies: any recipe, and any part that a writer must accept for it.

Hypothesis is needed by whoever draws; importing this module does not need it.

Legend: F frames, N points, V cameras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hilda_schema.content import FrameContent, Pairs, PartContent
from hilda_schema.keys import Key
from hilda_schema.manifest import EncodingInfo, LayerInfo, Recipe
from hilda_schema.testing.tiny import CAMERAS, IMAGE_SIZES_PX, absent_as_nan, part_of, tiny_recipe

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

NAMES = ("a", "B-2", "x.y", "layer_1", "9", "vit_small.patch-14")


def recipes() -> SearchStrategy[Recipe]:
    """Hypothesis strategy: any recipe with cameras of `IMAGE_SIZES_PX`: none or all, teachers, layers, encodings."""
    from hypothesis import strategies as st

    @st.composite
    def draw_recipe(draw: DrawFn) -> Recipe:
        base = tiny_recipe(store_points=draw(st.booleans()), part_frames=draw(st.integers(1, 4)))
        cameras = tuple(draw(st.lists(st.sampled_from(CAMERAS), unique=True)))
        names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=2)) if cameras else []
        teachers = tuple(
            base.teachers[0].model_copy(
                update={"name": name, "layers": draw(_layers()), "global_width": draw(st.integers(0, 3))}
            )
            for name in names
        )
        encoding = EncodingInfo(
            kind=draw(st.sampled_from(["grid", "point"])), dtype=draw(st.sampled_from(["float16", "int8"]))
        )
        dataset = base.dataset.model_copy(update={"cameras": cameras})
        return base.model_copy(update={"dataset": dataset, "teachers": teachers, "encoding": encoding})

    return draw_recipe()


def _layers() -> SearchStrategy[tuple[LayerInfo, ...]]:
    from hypothesis import strategies as st

    extent = st.integers(1, 4)
    layer = st.builds(LayerInfo, name=st.sampled_from(NAMES), channels=extent, height=extent, width=extent)
    return st.lists(layer, max_size=2, unique_by=lambda layer: layer.name).map(tuple)


def part_contents(recipe: Recipe, max_frames: int = 3, max_points: int = 12) -> SearchStrategy[PartContent]:
    """Hypothesis strategy: any part that a writer must accept for this recipe.

    Args:
        recipe: its cameras need entries in `IMAGE_SIZES_PX`.
        max_frames: bound on F.
        max_points: bound on N.
    """
    from hypothesis import strategies as st

    @st.composite
    def draw_part(draw: DrawFn) -> PartContent:
        columns = draw(st.sets(st.sampled_from(["time_offset_ns", "ring", "label"])))
        count = draw(st.integers(1, max_frames))
        return part_of(recipe, "any", tuple(_draw_frame(draw, recipe, k, columns, max_points) for k in range(count)))

    return draw_part()


def _draw_frame(draw: DrawFn, recipe: Recipe, k: int, columns: set[str], max_points: int) -> FrameContent:
    from hypothesis import strategies as st
    from hypothesis.extra.numpy import arrays

    def values(shape: tuple[int, ...], most: float = 2**15) -> NDArray[np.float32]:
        drawn: NDArray[np.float32] = draw(arrays(np.float32, shape, elements=st.floats(-most, most, width=32)))
        return drawn

    N, cameras = draw(st.integers(0, max_points)), recipe.dataset.cameras
    absent = draw(st.sets(st.sampled_from(cameras))) if cameras else set()
    present = np.array([name not in absent for name in cameras], np.bool_)
    seen = [(v, n) for v in np.flatnonzero(present) for n in range(N) if draw(st.booleans())]
    camera = np.array([v for v, _ in seen], np.uint8)
    sizes_px = np.array([IMAGE_SIZES_PX[name] for name in cameras]).reshape(-1, 2)[camera]
    unit = draw(arrays(np.float64, (len(seen), 2), elements=st.floats(0, 1, exclude_max=True)))
    optional: dict[str, Any] = {
        "time_offset_ns": np.arange(N, dtype=np.int32) - 5,
        "ring": np.arange(N, dtype=np.uint8),
        "label": np.arange(N, dtype=np.uint16) * 1000,
    }
    return FrameContent(
        key=Key("toy", "any", f"{k:06d}"),
        stamp_ns=draw(st.integers(0, 2**40)) + (k << 41),
        world_SE3_lidar=_rigid(values((4,), 8), values((3,))),
        world_SE3_ego=np.eye(4),
        xyz_m=values((N, 3)),
        intensity=values((N,)),
        ground=draw(arrays(np.bool_, N)),
        pairs=Pairs(
            point=np.array([n for _, n in seen], np.uint32),
            camera=camera,
            uv_px=np.minimum(unit * sizes_px - 0.5, np.nextafter(sizes_px - 0.5, 0)),
            depth_m=draw(arrays(np.float32, len(seen), elements=st.floats(1, 300, width=32))),
            visible=draw(arrays(np.bool_, len(seen))),
        ),
        tokens={
            (teacher.name, layer.name): absent_as_nan(
                values((len(cameras), layer.height, layer.width, layer.channels)), present
            )
            for teacher in recipe.teachers
            for layer in teacher.layers
        },
        global_tokens={
            teacher.name: absent_as_nan(values((len(cameras), teacher.global_width)), present)
            for teacher in recipe.teachers
            if teacher.global_width
        },
        position=k,
        absent=dict.fromkeys(sorted(absent), "drawn to be absent"),
        **{name: optional[name] for name in columns},
    )


def _rigid(quaternion: NDArray[np.float32], translation_m: NDArray[np.float32]) -> NDArray[np.float64]:
    """(4, 4) a pose; a quaternion (4,) of any length, the identity where it has none."""
    length = np.linalg.norm(quaternion.astype(np.float64))
    w, x, y, z = quaternion / length if length > 1e-3 else (1.0, 0.0, 0.0, 0.0)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = translation_m
    return pose
