"""Frozen vision models, all behind one protocol (`base.py`).

`load_teacher` is the one door: what loads a model is imported when such a model is asked for, so that a user's own
network runs without transformers, and a command line starts without torch.
"""

from __future__ import annotations

from hilda_cache.teachers.base import Features, LayerShape, Preprocessing, Teacher, TeacherCard
from hilda_cache.teachers.spec import TeacherSpec, parse_source

__all__ = ["Features", "LayerShape", "Preprocessing", "Teacher", "TeacherCard", "TeacherSpec", "load_teacher"]


def load_teacher(spec: TeacherSpec, device: str = "cpu") -> Teacher:
    """Load a frozen vision model in float32.

    Args:
        spec: what to load and how to use it. Only a Hugging Face id lets this reach for the network, and only for what
            is not in the local cache yet.
        device: where it runs, as torch writes it.

    Raises:
        TeacherError: the model cannot be found, trusted or loaded whole, or does not have what `spec` asks of it.
    """
    source = parse_source(spec.source)
    if source.kind in {"module", "file"}:
        from hilda_cache.teachers.factory import load_factory_teacher

        return load_factory_teacher(spec, source, device)
    if source.kind == "timm":
        from hilda_cache.teachers.timm_models import load_timm_teacher

        return load_timm_teacher(spec, source, device)
    from hilda_cache.teachers.huggingface import load_huggingface_teacher

    return load_huggingface_teacher(spec, source, device)
