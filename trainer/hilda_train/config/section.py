"""What every section of the config is built from: a strict base class and the types of single values."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]

DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(%|epochs?)")


def _duration(value: Any) -> Any:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and DURATION.fullmatch(value):
        return value
    raise ValueError("is not a duration: write steps (3500), a share of the run (4%) or epochs (0.5 epochs)")


Duration = Annotated[int | str, BeforeValidator(_duration)]
"""Steps (3500), a share of the run ("4%") or epochs ("0.5 epochs"); steps once resolved."""

FREE: JsonDict = {"free": True}


class Section(BaseModel):
    """Base of every section: frozen, no unknown key, no silent conversion.

    A field marked FREE does not change what is computed: a run may be resumed with another value of it.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
