"""The command `adb`: which phones it sees, shell commands there, files to there.

Its words and the states of a phone are those of Android's platform-tools 29 to 36.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from emo_export.base.tied import tied
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.device import Finished

INSTALL = (
    "sudo apt install adb (or unpack Android's platform-tools, "
    "developer.android.com/tools/releases/platform-tools, and put adb on the PATH)"
)
HEAD = "List of devices attached"
READY = "device"
# What each other state of `adb devices` means for the user; unknown ones are shown as they are.
ADVICE = {
    "unauthorized": "unlock the phone and allow USB debugging from this computer",
    "authorizing": "unlock the phone and allow USB debugging from this computer",
    "offline": "unplug the phone, plug it in again, or run adb reconnect",
    "connecting": "wait a moment and run this again",
    "recovery": "it has started its recovery system; start Android",
    "sideload": "it waits for an update; start Android",
    "bootloader": "it is in its bootloader; start Android",
    "no permissions": "this user may not open the USB device: sudo apt install "
    "android-sdk-platform-tools-common adds the udev rules; then plug it in again",
}
END = "emo-export-end"
SIGNALLED = range(129, 193)  # what a shell answers for a command that a signal ended
LAST_WORDS = 300  # characters of what adb said that an error shows


class Phone(NamedTuple):
    """One line of `adb devices -l`."""

    serial: str
    state: str
    model: str


def phones(listing: str) -> list[Phone]:
    """The phones in what `adb devices -l` printed."""
    _, _, rows = listing.partition(HEAD)
    found = []
    for row in filter(str.strip, rows.splitlines()):
        serial, _, rest = row.strip().partition(" ")
        rest = rest.strip()
        state = "no permissions" if rest.startswith("no permissions") else rest.partition(" ")[0]
        model = re.search(r"\bmodel:(\S+)", rest)
        found.append(Phone(serial, state, model[1] if model else ""))
    return found


def choose(found: Sequence[Phone], serial: str | None) -> Phone:
    """The phone that was asked for, or the only one.

    Raises EmoExportError when it isn't there, isn't ready, or isn't the only one.
    """
    listed = ", ".join(f"{p.serial} ({p.state}{' ' if p.model else ''}{p.model})" for p in found)
    if serial is None and len(found) > 1:
        raise EmoExportError(f"adb sees several phones: {listed}; say which: --device adb:SERIAL")
    matching = [p for p in found if serial in (None, p.serial)]
    if not matching:
        seen = f"it sees {listed}" if listed else "it sees none"
        wanted = "no phone" if serial is None else f"no phone {serial}"
        raise EmoExportError(
            f"adb has {wanted} ({seen}): switch on USB debugging in the phone's developer options "
            "and plug it in, or adb connect HOST:PORT; adb devices -l lists what it sees"
        )
    phone = matching[0]
    if phone.state != READY:
        advice = ADVICE.get(phone.state, "adb devices -l shows its state")
        raise EmoExportError(f"the phone {phone.serial} is {phone.state!r} for adb: {advice}")
    return phone


class Adb:
    """The phone with this serial number, or the only one, through the command adb.

    Raises MissingDependencyError without adb, EmoExportError when there is no such phone, or when
    its Android is older than 7 (whose adb neither tells exit codes nor keeps stderr apart).
    """

    def __init__(self, serial: str | None) -> None:
        program = shutil.which("adb")
        if program is None:
            raise MissingDependencyError(f"--device adb needs the command adb: {INSTALL}")
        self._program = program
        self.phone = choose(phones(self._checked("devices", "-l")), serial)
        self._to = ("-s", self.phone.serial)
        if "shell_v2" not in self._checked(*self._to, "features").split():
            raise EmoExportError(
                f"the phone {self.phone.serial} lacks adb's shell_v2, so its Android is older than "
                "7: its exit codes can't be seen; use a newer phone"
            )

    def version(self) -> str:
        """What `adb version` says, in one line."""
        return " ".join(self._checked("version").split("Installed as")[0].split())

    def shell(self, script: str) -> Finished:
        """Run a script in the phone's sh, with an empty stdin.

        A code from 129 to 192 is the signal that ended its last command, as a negative number.
        Raises EmoExportError when the connection ended before the script did.
        """
        # Only a line after the script's end proves that it has ended: when the phone goes away,
        # adb's exit code is one that the script could have had.
        end = f"{END}-{uuid.uuid4().hex}"
        line = f"( {script}\n)\nemo_code=$?; echo; echo {end} $emo_code"
        done = self._run(*self._to, "shell", "-n", "-T", line)
        out, found, code = done.stdout.rpartition(f"\n{end} ")
        if not found:
            raise EmoExportError(
                f"the connection to the phone {self.phone.serial} ended before its command did "
                f"(adb exited with {done.returncode}: {_words(done)}); look at cable and screen "
                "and run this again, what is there already is not sent again"
            )
        status = int(code)
        return Finished(128 - status if status in SIGNALLED else status, out, done.stderr)

    def checked_shell(self, script: str, purpose: str) -> str:
        """The same -> stdout. Raises EmoExportError with the purpose when it fails."""
        done = self.shell(script)
        if done.code != 0:
            said = (done.stderr or done.stdout).strip()[-LAST_WORDS:]
            raise EmoExportError(f"the phone {self.phone.serial} could not {purpose}: {said}")
        return done.stdout

    def push(self, local: Path, remote: str) -> None:
        """Copy a file there. Raises EmoExportError when that fails."""
        done = self._run(*self._to, "push", str(local.absolute()), remote)
        if done.returncode != 0:
            raise EmoExportError(
                f"adb could not copy {local} to {remote} on the phone {self.phone.serial}: "
                f"{_words(done)}"
            )

    def _checked(self, *arguments: str) -> str:
        done = self._run(*arguments)
        if done.returncode != 0:
            raise EmoExportError(f"adb {shlex.join(arguments)} failed: {_words(done)}")
        return done.stdout

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """In a session of its own, so that Ctrl-C reaches us alone; it is ended if we are."""
        return subprocess.run(
            [self._program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            preexec_fn=tied(),
            check=False,
        )


def _words(done: subprocess.CompletedProcess[str]) -> str:
    said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
    return said[-LAST_WORDS:] or "it said nothing"
