"""What a client did wrong, as OpenAI's API tells it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any


class Refusal(Exception):
    """A request that is answered with an error; `param` is the field that is wrong."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, _sendable(message), code
        self.param = None if param is None else _sendable(param)
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error object of OpenAI's API (its reference, "Error codes")."""
        ours = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = "server_error" if ours else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def _sendable(text: str) -> str:
    """JSON may have half of a surrogate pair, which is quoted, and which UTF-8 has not."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def bad(param: str, message: str) -> Refusal:
    """400 for a field."""
    return Refusal(HTTPStatus.BAD_REQUEST, f"{param}: {message}", param)
