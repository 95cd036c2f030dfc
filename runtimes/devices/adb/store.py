"""Packages on a phone, by its shell and adb's push, which begins a file anew each time."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.adb.adb import Adb
from emo_export.runtimes.devices.transfer import Seen

CACHE = "/data/local/tmp/emo-export"
MARK = "== digests"
PART = ".part"
PURPOSE = "store the files (Android 8 and newer have sha256sum)"


class AdbStore:
    """A `Store` in a folder that the shell's user may write to."""

    def __init__(self, adb: Adb) -> None:
        self.name = f"adb:{adb.phone.serial}"
        self._adb = adb

    def look(self, package: str, files: Mapping[str, str]) -> Seen:
        """What is there, by SHA-256; the folder is made when there is none."""
        folder = _place(package)
        parents = sorted({f"{folder}/{name}".rpartition("/")[0] for name in files} | {folder})
        script = (
            f"umask 022; mkdir -p {shlex.join(parents)} && cd {folder} && df -k . && "
            f"echo '{MARK}' && {{ sha256sum {_listed(files)} 2>/dev/null; true; }}"
        )
        said = self._adb.checked_shell(script, f"make and read the folder {folder}")
        space, _, sums = said.partition(f"{MARK}\n")
        rows = (row.split(maxsplit=1) for row in sums.splitlines())
        found = {row[1].removeprefix("./"): row[0] for row in rows if len(row) == 2}
        lacking = {name: 0 for name, sha256 in files.items() if found.get(name) != sha256}
        return Seen(folder, lacking, self._free(space))

    def _free(self, space: str) -> int:
        """The fourth number of df's last line: 1024-byte blocks available."""
        try:
            return int(space.splitlines()[-1].split()[3]) * 1024
        except (IndexError, ValueError):
            raise EmoExportError(
                f"{self.name}: df -k said {space!r}, which tells no free space"
            ) from None

    def forget(self, package: str, files: Mapping[str, str], known: Sequence[str]) -> None:
        """Remove all but these files and what is known, parts too."""
        cd = f"cd {_place(package)}"
        listed = self._adb.checked_shell(f"{cd} && find . -type f", "list the files")
        there = {name.removeprefix("./") for name in listed.splitlines()}
        if others := sorted(there - {*files, *known}):
            self._adb.checked_shell(f"{cd} && rm -f {_listed(others)}", "remove old files")

    def send(self, package: str, name: str, sha256: str, local: Path, start: int) -> None:
        """All of a file, as its part."""
        self._adb.push(local, f"{_place(package)}/{name}{PART}")

    def finish(self, package: str, name: str, sha256: str) -> bool:
        """Check the part there and give it its name."""
        return self._settle(f"{_place(package)}/{name}", sha256)

    def ready(self, package: str) -> None:
        """Nothing is locked on a phone."""

    def put(self, local: Path, remote: str) -> None:
        """Copy a file that is in no package. Raises EmoExportError when it arrives damaged."""
        self._adb.push(local, remote + PART)
        if not self._settle(remote, digest(local)):
            raise EmoExportError(f"{self.name}: {remote} arrived damaged; run this again")

    def _settle(self, remote: str, sha256: str) -> bool:
        part, name = shlex.quote(remote + PART), shlex.quote(remote)
        script = (
            f's=$(sha256sum {part}) && if [ "${{s%% *}}" = {sha256} ]; '
            f"then mv -f {part} {name}; else rm -f {part}; echo damaged; fi"
        )
        return not self._adb.checked_shell(script, PURPOSE).strip()


def _place(package: str) -> str:
    return f"{CACHE}/package-{package}"


def _listed(names: Sequence[str] | Mapping[str, str]) -> str:
    return shlex.join(f"./{name}" for name in names)
