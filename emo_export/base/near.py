"""What was meant where a name is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(text: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like a text; None where none does."""
    near = difflib.get_close_matches(text.lower(), list(known), 1)
    return near[0] if near else None


def did_you_mean(text: str, known: Iterable[str]) -> str:
    """The end of a sentence, `; did you mean NAME?`, or nothing."""
    near = nearest(text, known)
    return "" if near is None else f"; did you mean {near}?"
