"""What a chat makes the next prompt of, and what it forgets where the context is full."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.history import PlainHistory, TemplateHistory, fitted


class Letters:
    """A Tokenizer with a token for each character."""

    stop_ids = frozenset[int]()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def piece(self, token: int) -> bytes:
        return chr(token).encode()


def text_of(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def written(messages: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<{role}>{text}" for role, text in messages) + "<assistant>"


def test_a_plain_chat_is_one_text() -> None:
    history = PlainHistory(Letters(), "")
    history.add("Once")
    assert text_of(history.prompt()) == "Once"
    history.answered(Letters().encode(" upon"), " upon")
    history.add("")
    assert text_of(history.prompt()) == "Once upon"
    history.answered(Letters().encode(" a"), " a")
    history.add("Then")
    assert text_of(history.prompt()) == "Once upon a\nThen"
    history.reset()
    history.add("New")
    assert text_of(history.prompt()) == "New"


def test_what_is_oldest_of_it_is_forgotten() -> None:
    history = PlainHistory(Letters(), "S:")
    history.add("0123456789")
    history.answered(Letters().encode("abcdefghij"), "abcdefghij")
    history.add("new")
    prompt, forgotten = fitted(history, 24, 4)
    assert text_of(prompt) == "S:fghij\nnew" and forgotten == 16
    assert fitted(history, 24, 4) == (prompt, 0)
    history.add("x" * 30)
    with pytest.raises(EmoExportError, match=r"has 33 tokens, the context 24.*begins anew"):
        fitted(history, 24, 4)
    assert text_of(history.prompt()) == "S:"


def test_a_template_writes_messages() -> None:
    history = TemplateHistory(Letters(), written, "be brief")
    history.add("hi")
    assert text_of(history.prompt()) == "<system>be brief<user>hi<assistant>"
    history.answered([], "hello")
    history.add("and?")
    want = "<system>be brief<user>hi<assistant>hello<user>and?<assistant>"
    assert text_of(history.prompt()) == want
    prompt, forgotten = fitted(history, 60, 8)
    assert text_of(prompt) == "<system>be brief<user>and?<assistant>" and forgotten == 24


def test_what_a_template_refuses_is_not_said() -> None:
    def alternating(messages: Sequence[tuple[str, str]]) -> str:
        if any(text == "no" for _, text in messages):
            raise EmoExportError("the model's chat template refuses them")
        return written(messages)

    for history in (TemplateHistory(Letters(), alternating, "S"), PlainHistory(Letters(), "S")):
        history.add("a")
        history.answered(Letters().encode("b"), "b")
        before = history.prompt()
        history.add("no")
        history.withdraw()
        assert history.prompt() == before
