"""Sending a package over a connection: only what is not there yet, from where it was broken off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.far.files import part_of
from emo_export.runtimes.devices.ssh.link import SshLink

CHUNK = 8 << 20  # sent before the far side must say that it has written it
SPARE = 16 << 20  # bytes that a disk must have free beside what is sent


def send_files(
    link: SshLink,
    folder: Path,
    package: str,
    names: Sequence[str],
    known: Sequence[str],
    say: Callable[[str], None],
) -> str:
    """Make `names` of `folder` the same in the far copy of `package`; answers its path there.

    Files of the far copy that are neither in `names` nor in `known` are removed. Raises
    EmoExportError when there is no room, or the connection is lost.
    """
    digests = {name: digest(folder / name) for name in names}
    found = link.ask({"do": "look", "package": package, "files": digests})
    missing: Mapping[str, int] = found["missing"]
    if missing:
        rest = sum((folder / name).stat().st_size - part for name, part in missing.items())
        if found["free"] < rest + SPARE:
            raise EmoExportError(
                f"{link.name}: needs {(rest + SPARE) / 1e6:.1f} MB for the copy, the disk of "
                f"{found['folder']} there has {found['free'] / 1e6:.1f} MB free; free some space, "
                "or choose one --target"
            )
        parts = [part_of(Path(name), digests[name]).as_posix() for name in missing]
        link.ask({"do": "forget", "package": package, "known": [*names, *known, *parts]})
        for name, part in missing.items():
            _send(link, folder, package, (name, digests[name]), part, say)
    link.ask({"do": "ready", "package": package})
    return str(found["folder"])


def _send(
    link: SshLink,
    folder: Path,
    package: str,
    file: tuple[str, str],
    part: int,
    say: Callable[[str], None],
) -> None:
    """One file (name, SHA-256), of which `part` bytes are there."""
    name, sha256 = file
    about = {"package": package, "name": name, "digest": sha256}
    for start in (part, 0):  # a part of other bytes is found out at the end: then all of it
        size = (folder / name).stat().st_size
        resumed = f", of which {start / 1e6:.1f} MB are there" if start else ""
        say(f"copying {name} to {link.name}: {size / 1e6:.1f} MB{resumed}")
        _send_from(link, folder / name, about, min(start, size))
        if link.ask({"do": "finish", **about})["whole"]:
            return
    raise EmoExportError(
        f"{folder / name}: the copy on {link.name} differs; did the file change meanwhile? start "
        "again"
    )


def _send_from(link: SshLink, path: Path, about: Mapping[str, str], start: int) -> None:
    with path.open("rb") as handle:
        handle.seek(start)
        body = handle.read(CHUNK)
        while True:
            request = {"do": "receive", **about, "offset": start, "count": len(body)}
            link.ask(request, body)  # of an empty file too
            start += len(body)
            body = handle.read(CHUNK)
            if not body:
                return
