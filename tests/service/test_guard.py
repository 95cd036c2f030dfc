"""Who is let in."""

from __future__ import annotations

import pytest

from emo_export.service.guard import Guard, is_loopback_name
from emo_export.service.refusal import Refusal
from tests.service.test_request import refusal


async def nothing(scope: object, receive: object, send: object) -> None:
    """An application that answers nothing."""


def test_names_of_this_machine() -> None:
    for host in ("localhost", "localhost:80", "127.0.0.1:8080", "127.9.9.9", "[::1]:80", "[::1]"):
        assert is_loopback_name(host)
    others = ("", "evil.com", "localhost.evil.com:80", "127.0.0.1.evil.com", "10.0.0.1", "[", "::1")
    others += ("evil.com@127.0.0.1", "localhost/evil.com", "localhost#evil.com", "localhost?a")
    for host in others:
        assert not is_loopback_name(host)


def test_pages_of_other_sites_stay_out() -> None:
    guard = Guard(nothing, key=None, origins=["http://localhost:3000"])
    guard.check({"host": "localhost"}, "/v1/models")
    guard.check({"host": "localhost", "origin": "http://localhost:3000"}, "/v1/models")
    for headers in (
        {"host": "localhost", "origin": "http://evil.com"},
        {"host": "localhost", "origin": "null"},
        {"host": "localhost", "origin": ""},
        {"host": "evil.com"},
        {},
    ):
        assert refusal(guard.check, headers, "/health").status == 403


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer wrong", "Basic right", "right", "Bearer é"]
)
def test_the_key_is_needed(given: str) -> None:
    guard = Guard(nothing, key="right", origins=[])
    guard.check({"host": "pi.local", "authorization": "Bearer right"}, "/v1/models")
    guard.check({}, "/health")
    found = refusal(guard.check, {"authorization": given}, "/v1/models")
    assert isinstance(found, Refusal) and found.status == 401
    assert found.body["error"]["code"] == "invalid_api_key"
