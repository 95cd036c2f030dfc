"""`ssh://[user@]host[:port]`, read strictly: what is in it ends up in a command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from emo_export.errors import EmoExportError

FORM = "ssh://[user@]host[:port]"
# No part may begin with a hyphen, or ssh would take it for an option.
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\\-]*")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
IPV6 = re.compile(r"\[([0-9A-Fa-f:]+(?:\.[0-9.]+)?(?:%[A-Za-z0-9_.-]+)?)\]")


@dataclass(frozen=True)
class Address:
    """Where to connect; what is None is for the user's own ssh configuration to say."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user is not None else ""
        port = f":{self.port}" if self.port is not None else ""
        return f"ssh://{user}{host}{port}"

    def arguments(self) -> list[str]:
        """For ssh's command line; the host stands behind `--`."""
        user = ["-l", self.user] if self.user is not None else []
        port = ["-p", str(self.port)] if self.port is not None else []
        return [*user, *port, "--", self.host]


def parse_address(url: str) -> Address:
    """Raises EmoExportError that names the part which is not of the form."""
    scheme, mark, rest = url.partition("://")
    if scheme != "ssh" or not mark:
        raise EmoExportError(f"--device {url}: expected {FORM}")
    user, at, place = rest.rpartition("@")
    if at and ":" in user:
        raise EmoExportError(
            f"--device: has a password in it; write {FORM} and let ssh ask for it, or use a key"
        )
    if at and not USER.fullmatch(user):
        raise EmoExportError(f"--device {url}: user {user!r} is not one that ssh takes")
    host, port = _host_and_port(url, place)
    return Address(host, user if at else None, port)


def _host_and_port(url: str, place: str) -> tuple[str, int | None]:
    bracketed = IPV6.match(place)
    if bracketed:
        host, rest = bracketed[1], place[bracketed.end() :]
    else:
        host, colon, number = place.partition(":")
        rest = colon + number
        if not HOST.fullmatch(host):
            raise EmoExportError(f"--device {url}: host {host!r} is not a name; expected {FORM}")
    if not rest:
        return host, None
    number = rest.removeprefix(":")
    if not rest.startswith(":") or not re.fullmatch(r"[0-9]{1,5}", number):
        hint = "; write an IPv6 address in [brackets]" if ":" in number else ""
        raise EmoExportError(f"--device {url}: port {number!r} is not a number{hint}")
    if not 1 <= int(number) <= 65535:
        raise EmoExportError(f"--device {url}: port {number} is not within 1 to 65535")
    return host, int(number)
