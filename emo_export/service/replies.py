"""Answers in the shapes of OpenAI's API: whole, or as the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from emo_export.runtimes.serving import Chosen, Finish, Likely, Piece


class Shape(Protocol):
    """How one kind of answer is written; one object for each answer."""

    def chunk(self, piece: Piece) -> Mapping[str, Any]:
        """A piece, as a chunk of a stream."""

    def first(self) -> Mapping[str, Any] | None:
        """The chunk before all pieces, if there is one."""

    def last(self, finish: Finish) -> Mapping[str, Any]:
        """The chunk that says why the answer is over."""

    def usage(self, finish: Finish) -> Mapping[str, Any]:
        """The chunk that counts tokens."""

    def whole(self, pieces: Sequence[Piece], finish: Finish) -> Mapping[str, Any]:
        """All of it at once."""


class Completion:
    """Of /v1/completions. `logprobs`: whether log-probabilities were asked for."""

    def __init__(self, model: str, logprobs: bool) -> None:
        self._logprobs, self._offset = logprobs, 0
        self._head = _head("cmpl", "text_completion", model)

    def first(self) -> None:
        """None."""
        return None

    def chunk(self, piece: Piece) -> Mapping[str, Any]:
        """See Shape."""
        return self._with(piece.text, piece.chosen, None)

    def last(self, finish: Finish) -> Mapping[str, Any]:
        """See Shape."""
        return self._with("", (), reason(finish))

    def usage(self, finish: Finish) -> Mapping[str, Any]:
        """See Shape."""
        return self._head | {"choices": [], "usage": usage(finish)}

    def whole(self, pieces: Sequence[Piece], finish: Finish) -> Mapping[str, Any]:
        """See Shape."""
        chosen = [one for piece in pieces for one in piece.chosen]
        text = "".join(piece.text for piece in pieces)
        return self._with(text, chosen, reason(finish)) | {"usage": usage(finish)}

    def _with(self, text: str, chosen: Sequence[Chosen], why: str | None) -> dict[str, Any]:
        told = self._told(chosen) if self._logprobs and chosen else None
        choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": why}
        return self._head | {"choices": [choice]}

    def _told(self, chosen: Sequence[Chosen]) -> Mapping[str, Any]:
        """`text_offset` counts the characters of the tokens so far, as they read one by one."""
        tokens = [_text(one.token) for one in chosen]
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [one.token.log_probability for one in chosen],
            "top_logprobs": [
                {_text(other): other.log_probability for other in one.alternatives}
                for one in chosen
            ],
            "text_offset": offsets,
        }


class Chat:
    """Of /v1/chat/completions. `logprobs`: whether log-probabilities were asked for."""

    def __init__(self, model: str, logprobs: bool) -> None:
        self._logprobs = logprobs
        self._head = _head("chatcmpl", "chat.completion", model)
        self._chunk = self._head | {"object": "chat.completion.chunk"}

    def first(self) -> Mapping[str, Any]:
        """Whose message it is."""
        return self._with({"role": "assistant", "content": ""}, (), None)

    def chunk(self, piece: Piece) -> Mapping[str, Any]:
        """See Shape."""
        return self._with({"content": piece.text}, piece.chosen, None)

    def last(self, finish: Finish) -> Mapping[str, Any]:
        """See Shape."""
        return self._with({}, (), reason(finish))

    def usage(self, finish: Finish) -> Mapping[str, Any]:
        """See Shape."""
        return self._chunk | {"choices": [], "usage": usage(finish)}

    def whole(self, pieces: Sequence[Piece], finish: Finish) -> Mapping[str, Any]:
        """See Shape."""
        chosen = [one for piece in pieces for one in piece.chosen]
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        choice = {
            "index": 0,
            "message": message | {"refusal": None},
            "logprobs": self._told(chosen),
            "finish_reason": reason(finish),
        }
        return self._head | {"choices": [choice], "usage": usage(finish)}

    def _with(
        self, delta: Mapping[str, Any], chosen: Sequence[Chosen], why: str | None
    ) -> Mapping[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": why}
        return self._chunk | {"choices": [choice | {"logprobs": self._told(chosen)}]}

    def _told(self, chosen: Sequence[Chosen]) -> Mapping[str, Any] | None:
        if not self._logprobs or not chosen:
            return None
        return {
            "content": [
                _entry(one.token) | {"top_logprobs": [_entry(other) for other in one.alternatives]}
                for one in chosen
            ]
        }


def reason(finish: Finish) -> str:
    """OpenAI's word for why an answer is over."""
    return "stop" if finish.stopped else "length"


def usage(finish: Finish) -> Mapping[str, int]:
    """The tokens of an answer, counted."""
    return {
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.tokens,
        "total_tokens": finish.prompt_tokens + finish.tokens,
    }


def _head(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _entry(likely: Likely) -> dict[str, Any]:
    return {
        "token": _text(likely),
        "logprob": likely.log_probability,
        "bytes": list(likely.piece),
    }


def _text(likely: Likely) -> str:
    return likely.piece.decode("utf-8", errors="replace")
