"""A runtime that computes of a text only what the one before did not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from emo_export.interfaces import F32, Ids, Rewinding


class Interrupted(Exception):
    """The text is to end here."""


class Remembering:
    """A runtime whose KV cache stays between texts, and which knows what is in it."""

    def __init__(self, inner: Rewinding, interrupted: Callable[[], bool] = lambda: False) -> None:
        """`interrupted` is asked before each step: True raises Interrupted."""
        self.inner, self._interrupted = inner, interrupted
        self.name, self.vocab_size = inner.name, inner.vocab_size
        self.context_length = inner.context_length
        self.ids: list[int] = []
        """Of the positions in the cache."""

    def unread(self, ids: Sequence[int]) -> Ids:
        """Keep what of the cache these ids (T,) begin with; the rest of them, which is to be read.

        One at least, since logits are those of the last that is read.
        """
        same = 0
        while same < min(len(ids) - 1, len(self.ids)) and ids[same] == self.ids[same]:
            same += 1
        if same < len(self.ids):
            self.rewind(same)
        return np.array(ids[same:], np.int64)

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        """As Runtime.forward. Raises Interrupted."""
        if self._interrupted():
            raise Interrupted
        logits = self.inner.forward(ids, last=last)
        self.ids += ids.tolist()
        return logits

    def rewind(self, length: int) -> None:
        """As Rewinding.rewind."""
        if length == 0:
            self.reset()
            return
        self.inner.rewind(length)
        del self.ids[length:]

    def reset(self) -> None:
        """As Runtime.reset."""
        self.inner.reset()
        self.ids.clear()

    def close(self) -> None:
        """As Runtime.close."""
        self.inner.close()

    def describe(self) -> Mapping[str, str]:
        """As Runtime.describe."""
        return self.inner.describe()
