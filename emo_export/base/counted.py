"""Which of several things is being done."""

from __future__ import annotations

from collections.abc import Iterable


def counted(name: str, names: Iterable[str]) -> str:
    """A name with its place among several, as `gguf:q8_0 (2 of 3)`; alone where it is the only one.

    Raises ValueError for a name that is not among them.
    """
    every = list(names)
    return name if len(every) == 1 else f"{name} ({every.index(name) + 1} of {len(every)})"
