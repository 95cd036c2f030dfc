"""Who may ask: the API key, and against pages of other sites in a browser on the same machine.

A page may send requests to loopback, which no firewall sees. Its browser adds an Origin to them;
and where its own name was made to lead to this machine (DNS rebinding), that name is in Host.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from emo_export.service.refusal import Refusal

OPEN = "/health"  # needs no key


class Guard:
    """Lets through what comes with the key; without one, what was sent to this machine's name."""

    def __init__(self, app: ASGIApp, *, key: str | None, origins: Sequence[str]) -> None:
        self._app, self._origins = app, frozenset(origins)
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            try:
                self.check(HTTPConnection(scope).headers, scope["path"])
            except Refusal as refusal:
                answer = JSONResponse(refusal.body, refusal.status, refusal.headers)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def check(self, headers: Mapping[str, str], path: str) -> None:
        """Raise Refusal for a request that may not come in."""
        host = headers.get("host", "")
        if self._key is None and not is_loopback_name(host):
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                f"the Host is {host[:200]!r}: without an API key only localhost and loopback "
                "addresses are answered",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                f"the Origin is {origin[:200]!r}: pages are answered whose origin --cors names",
            )
        if self._key is not None and path != OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self._key)
            if scheme.lower() != "bearer" or not right:
                raise Refusal(
                    HTTPStatus.UNAUTHORIZED,
                    "the API key is missing or wrong: Authorization: Bearer KEY",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine in a way that no other site can."""
    if set("@/?#\\") & set(host):  # a URL's parts, of which a Host has two: name and port
        return False
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
