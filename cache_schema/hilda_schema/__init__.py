"""The teacher cache: what it is, how it is written, read and checked.

    from hilda_schema import open_cache
    cache = open_cache("STORE")

Names are loaded when they are first used, so that a command line can print its help without NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hilda_schema.reader import Cache as Cache
    from hilda_schema.reader import Frame as Frame
    from hilda_schema.reader import open_cache as open_cache

__version__ = "0.1.0"
__all__ = ["Cache", "Frame", "__version__", "open_cache"]


def __getattr__(name: str) -> Any:
    if name in ("Cache", "Frame", "open_cache"):
        from hilda_schema import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
