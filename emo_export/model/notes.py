"""What is unusual in a checkpoint and yet certain: facts that a user should hear of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NoteKind(StrEnum):
    """What was found among the stored tensors."""

    WRAPPED = "wrapped"  # names under the prefix of a training wrapper
    BUFFERS = "buffers"  # stored, but computed from the config, with which they agree
    TIED_HEAD = "tied_head"  # a head stored although it is tied; it equals the embedding
    FLOAT64 = "float64"  # weights that are rounded to float32 when they are read


@dataclass(frozen=True)
class Note:
    """How many tensors it is about, and the first of them as it is stored.

    `prefix` is the wrapper's, where `kind` is WRAPPED.
    """

    kind: NoteKind
    count: int
    first: str
    prefix: str = ""
