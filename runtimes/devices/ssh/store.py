"""Packages on the far side of an ssh connection, which answers requests about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from emo_export.runtimes.devices.ssh.link import SshLink
from emo_export.runtimes.devices.transfer import Seen

CHUNK = 8 << 20  # sent before the far side must say that it has written it


class SshStore:
    """A `Store` by requests that `far/side.py` answers."""

    def __init__(self, link: SshLink) -> None:
        self.name = link.name
        self._link = link

    def look(self, package: str, files: Mapping[str, str]) -> Seen:
        """What is there; waits while another emo-export writes to it."""
        found = self._link.ask({"do": "look", "package": package, "files": files})
        return Seen(found["folder"], found["missing"], found["free"])

    def forget(self, package: str, files: Mapping[str, str], known: Sequence[str]) -> None:
        """Remove all but these files, their parts and what is known."""
        self._link.ask({"do": "forget", "package": package, "files": files, "known": known})

    def send(self, package: str, name: str, sha256: str, local: Path, start: int) -> None:
        """In pieces that are on the disk there before the next is sent."""
        with local.open("rb") as handle:
            handle.seek(start)
            body = handle.read(CHUNK)
            while True:
                about = {"package": package, "name": name, "digest": sha256}
                request = {"do": "receive", **about, "offset": start, "count": len(body)}
                self._link.ask(request, body)  # of an empty file too
                start += len(body)
                body = handle.read(CHUNK)
                if not body:
                    return

    def finish(self, package: str, name: str, sha256: str) -> bool:
        """Check the part there and give it its name."""
        request = {"do": "finish", "package": package, "name": name, "digest": sha256}
        return bool(self._link.ask(request)["whole"])

    def ready(self, package: str) -> None:
        """Let others read it too."""
        self._link.ask({"do": "ready", "package": package})
