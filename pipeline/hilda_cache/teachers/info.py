"""A teacher as the manifest tells of it."""

from __future__ import annotations

from typing import Literal, cast

from hilda_cache.images import RESIZE
from hilda_cache.teachers.base import TeacherCard
from hilda_schema.manifest import LayerInfo, TeacherInfo


def teacher_info(card: TeacherCard, precision: Literal["float32", "bfloat16"], precision_reason: str) -> TeacherInfo:
    """Join a teacher's card with the precision it runs in and the way its images are made."""
    pre = card.preprocessing
    return TeacherInfo(
        name=card.name,
        source=card.source,
        revision=card.revision,
        architecture=card.architecture,
        weights_sha256=card.weights_sha256,
        licence=card.licence,
        norm=cast("Literal['pre', 'post']", card.norm),
        image_height_px=pre.height_px,
        image_width_px=pre.width_px,
        mean=pre.mean,
        std=pre.std,
        resize=RESIZE,
        precision=precision,
        precision_reason=precision_reason,
        layers=tuple(
            LayerInfo(name=layer.name, channels=layer.channels, height=layer.height, width=layer.width)
            for layer in card.layers
        ),
        global_width=card.global_width,
    )
