"""The teacher cache: what it is, how it is written, read and checked."""

__version__ = "0.1.0"
