"""Files on a phone: what is there already, and sending what is not, whole or not at all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.adb.adb import Adb

SLACK = 32 << 20  # bytes that stay free on the phone
MARK = "== "
PART = ".part"
PURPOSE = "store the files (Android 8 and newer have sha256sum)"


class Seen(NamedTuple):
    """A folder there: SHA-256 by name of the files asked for, the other files, free bytes."""

    digests: Mapping[str, str]
    others: tuple[str, ...]
    free: int


class Sent(NamedTuple):
    """A file to send: where it is here, where it goes, its SHA-256."""

    local: Path
    remote: str
    sha256: str


def look(adb: Adb, folder: str, names: Sequence[str]) -> Seen:
    """What a folder there has, which is made when there is none.

    Raises EmoExportError when it can't be made or read.
    """
    parents = sorted({f"{folder}/{name}".rpartition("/")[0] for name in names} | {folder})
    wanted = shlex.join(f"./{name}" for name in names)
    script = (
        f"umask 022; mkdir -p {shlex.join(parents)} && cd {folder} && "
        f"echo '{MARK}files' && find . -type f && echo '{MARK}free' && df -k . && "
        f"echo '{MARK}digests' && {{ sha256sum {wanted} 2>/dev/null; true; }}"
    )
    said = adb.checked_shell(script, f"make and read the folder {folder}")
    parts = [part.splitlines()[1:] for part in f"\n{said}".split(f"\n{MARK}")[1:]]
    listed, space, sums = parts
    rows = [row.split(maxsplit=1) for row in sums]
    digests = {row[1].removeprefix("./"): row[0] for row in rows if len(row) == 2}
    found = (name.removeprefix("./") for name in listed)
    others = tuple(sorted(name for name in found if name not in names))
    return Seen(digests, others, _free(adb, space))


def _free(adb: Adb, space: Sequence[str]) -> int:
    """The fourth number of what df says: 1024-byte blocks available."""
    try:
        return int(space[-1].split()[3]) * 1024
    except (IndexError, ValueError):
        raise EmoExportError(
            f"the phone {adb.phone.serial}: df -k said {' '.join(space)!r}, which tells no free "
            "space"
        ) from None


def check_room(adb: Adb, needed: int, free: int, folder: str) -> None:
    """Raises EmoExportError when fewer bytes than are needed are free on the phone."""
    if free < needed + SLACK:
        raise EmoExportError(
            f"the phone {adb.phone.serial}: {needed / 1e6:.1f} MB have to go to {folder} and "
            f"{SLACK / 1e6:.1f} MB stay free there, it has {free / 1e6:.1f} MB; free some space, "
            "or validate fewer targets"
        )


def send(adb: Adb, files: Sequence[Sent]) -> None:
    """Copy files there; each gets its name only when its SHA-256 there is right.

    Raises EmoExportError when one can't be stored, or arrived damaged.
    """
    for file in files:
        adb.push(file.local, file.remote + PART)
    checks = []
    for file in files:
        part, name = shlex.quote(file.remote + PART), shlex.quote(file.remote)
        checks.append(
            f's=$(sha256sum {part}) && if [ "${{s%% *}}" = {file.sha256} ]; '
            f"then mv -f {part} {name}; else rm -f {part}; echo {name}; fi"
        )
    damaged = adb.checked_shell(" && ".join(checks) or "true", PURPOSE).splitlines()
    if damaged:
        raise EmoExportError(
            f"the phone {adb.phone.serial}: {', '.join(damaged)} arrived damaged, or the files are "
            "being written here; run this again"
        )


def sent(local: Path, remote: str) -> Sent:
    """A file to send, with its digest."""
    return Sent(local, remote, digest(local))
