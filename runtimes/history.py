"""What was said in a chat, as the token ids of the next prompt, within the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from emo_export.errors import EmoExportError
from emo_export.interfaces import Tokenizer


class History(Protocol):
    """A chat so far."""

    def add(self, text: str) -> None:
        """The user says a text."""

    def withdraw(self) -> None:
        """Take back what the user said last, which could not be asked."""

    def answered(self, ids: Sequence[int], text: str) -> None:
        """The model has said these ids, which are this text."""

    def prompt(self) -> list[int]:
        """The ids (T,) that the next answer follows."""

    def shorten(self, most: int) -> None:
        """Forget what is oldest, so that the prompt has at most so many ids, if that can be.

        What the system says and the newest text of the user stay.
        """

    def reset(self) -> None:
        """Begin anew, after what the system says."""


class PlainHistory:
    """One text, which user and model write in turns: what a base model understands.

    Each text of the user begins a line of its own, but for the first. Where it is too long, half of
    what there is room for stays, so that not every turn reads all of it again.
    """

    def __init__(self, tokenizer: Tokenizer, system: str) -> None:
        self._tokenizer, self._system = tokenizer, tokenizer.encode(system) if system else []
        self._ids: list[int] = []
        self._newest = 0  # where the newest text begins

    def add(self, text: str) -> None:
        """See History; an empty text lets the model go on."""
        self._newest = len(self._ids)
        if text:
            begun = self._ids or self._system
            self._ids += self._tokenizer.encode(f"\n{text}" if begun else text)

    def withdraw(self) -> None:
        """See History."""
        del self._ids[self._newest :]

    def answered(self, ids: Sequence[int], text: str) -> None:
        """See History."""
        self._ids += ids

    def prompt(self) -> list[int]:
        """See History."""
        return self._system + self._ids

    def shorten(self, most: int) -> None:
        """See History."""
        room = most - len(self._system)
        if len(self._ids) > room:
            kept = max(room // 2, len(self._ids) - self._newest, 1)
            self._newest = max(0, self._newest - (len(self._ids) - kept))
            del self._ids[:-kept]

    def reset(self) -> None:
        """See History."""
        self._ids.clear()
        self._newest = 0


Render = Callable[[Sequence[tuple[str, str]]], str]
"""(role, text) of each message -> the prompt, as the model's chat template writes it."""


class TemplateHistory:
    """Messages, written by the chat template that the model was trained with."""

    def __init__(self, tokenizer: Tokenizer, render: Render, system: str) -> None:
        self._tokenizer, self._render = tokenizer, render
        self._system = [("system", system)] if system else []
        self._messages: list[tuple[str, str]] = []

    def add(self, text: str) -> None:
        """See History."""
        self._messages.append(("user", text))

    def withdraw(self) -> None:
        """See History."""
        del self._messages[-1:]

    def answered(self, ids: Sequence[int], text: str) -> None:
        """See History."""
        self._messages.append(("assistant", text))

    def prompt(self) -> list[int]:
        """See History."""
        return self._tokenizer.encode(self._render(self._system + self._messages))

    def shorten(self, most: int) -> None:
        """See History."""
        while len(self._messages) > 2 and len(self.prompt()) > most:
            del self._messages[:2]

    def reset(self) -> None:
        """See History."""
        self._messages.clear()


def fitted(history: History, context_length: int, answer: int) -> tuple[list[int], int]:
    """The next prompt (T,), and how many tokens were forgotten to leave room for an answer.

    For `answer` tokens, or a quarter of the context where that is less. Raises EmoExportError where
    the newest text alone is too long; the chat has begun anew then.
    """
    most = context_length - min(answer, max(1, context_length // 4))
    prompt = history.prompt()
    if len(prompt) <= most:
        return prompt, 0
    before = len(prompt)
    history.shorten(most)
    prompt = history.prompt()
    if len(prompt) >= context_length:
        history.reset()
        raise EmoExportError(
            f"the text has {len(prompt)} tokens, the context {context_length}, of which one at "
            "least is for the answer: shorten it; the chat begins anew"
        )
    return prompt, before - len(prompt)
