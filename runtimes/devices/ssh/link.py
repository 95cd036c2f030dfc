"""One ssh connection with our far side at its end: requests go in, answers come back.

Everything goes through a single session of the user's own ssh, with the user's configuration and
keys, so that a password is asked for once. EMO_EXPORT_SSH is the command to use instead of `ssh`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from emo_export.base.tied import tied
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.ssh.address import Address
from emo_export.runtimes.devices.ssh.probe import MARK, FarPython, Probe, probe_command, read_probe

COMMAND = "EMO_EXPORT_SSH"
LAST_WORDS = 6  # lines of ssh's own that are shown
LEAVE_SECONDS = 15.0
PROBE_SECONDS = 120.0  # five Pythons may have to tell their versions
NOISE = 1 << 16  # bytes that login scripts may print

# What a user's configuration may say for interactive use, and we can't have. A dead link is noticed
# after a minute.
OPTIONS = (
    "-T",
    "-x",
    *("-o", "RemoteCommand=none"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "ControlMaster=no"),
    *("-o", "ControlPath=none"),
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=4"),
    *("-o", "ConnectTimeout=20"),
)

SENTENCES = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the one that is known: another "
     "machine answers, or it was installed anew; if it was, remove the old key with ssh-keygen -R"),
    ("Host key verification failed", "its host key is not known yet; connect once with ssh and "
     "compare it"),
    ("Could not resolve hostname", "there is no host of this name"),
    ("Connection refused", "nothing answers there on ssh's port; is sshd running, and the port "
     "right?"),
    ("Permission denied", "it does not let you in; try the same with ssh alone"),
    ("Too many authentication failures", "it does not let you in; name one key in ~/.ssh/config"),
    ("no answer within", "its login shell does not get to our command; is a login script waiting "
     "for something?"),
    ("timed out", "it does not answer; is it on, and in this network?"),
    ("No route to host", "there is no way to it; is it on, and in this network?"),
    ("Network is unreachable", "there is no way to it; is this machine in a network?"),
)  # fmt: skip
"""What ssh says (OpenSSH's own words) -> our sentence."""


class SshLink:
    """A connection: first to a shell that told `probe`, after `start` to our far side."""

    def __init__(self, address: Address) -> None:
        """Connect. Raises EmoExportError, with ssh's last words, when that fails."""
        self.name = str(address)
        self.command = _ssh_command()
        batch = [] if sys.stdin is not None and sys.stdin.isatty() else ["-o", "BatchMode=yes"]
        command = [*self.command, *OPTIONS, *batch, *address.arguments(), probe_command()]
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - close closes it
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                preexec_fn=tied(),
            )
        except OSError as error:
            self._said.close()
            raise EmoExportError(f"{shlex.join(self.command)}: {error.strerror}") from error
        self._connected = False
        self._noise = bytearray()
        # Where nobody can be asked for a password, an answer does not take long.
        timer = threading.Timer(PROBE_SECONDS if batch else threading.TIMEOUT_MAX, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            self.probe = self._read_probe()
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._said.write(f"no answer within {PROBE_SECONDS:.0f} seconds\n".encode())
        self._said.flush()
        self._process.kill()

    def _read_probe(self) -> Probe:
        """What our shell says, which begins where the last line of a login script ended."""
        lines: list[str] = []
        while not lines or lines[-1] != "end":
            noise, mark, said = self._line(NOISE).partition(MARK)
            if mark:
                lines.append(said)
            self._noise += noise.encode() + b"\n"
            if len(self._noise) > NOISE:
                self._process.kill()
                raise EmoExportError(
                    f"{self.name}: what its login scripts print does not end: {noise[:80]!r}"
                )
        self._connected = True
        return read_probe(lines)

    def start(self, python: FarPython, archive: bytes) -> None:
        """Send the zip of the light runtime and start our far side in it."""
        self._send(f"{python.path}\n{len(archive)}\n".encode() + archive)
        self._line()

    def ask(self, request: Mapping[str, Any], body: bytes | memoryview = b"") -> dict[str, Any]:
        """Send a request, with the bytes that belong to it, and wait for the answer.

        Raises EmoExportError or MissingDependencyError for what can't be done there, and
        EmoExportError when the connection is lost.
        """
        self._send(json.dumps(request).encode() + b"\n")
        if body:
            self._send(body)
        answer: dict[str, Any] = json.loads(self._line())
        if "error" in answer:
            kind = MissingDependencyError if answer["missing"] else EmoExportError
            raise kind(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let the far side tidy up and end; a second call does nothing."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is None or pipe.closed:
                continue
            with contextlib.suppress(BrokenPipeError):  # of a connection that was lost
                pipe.close()
            if pipe is self._process.stdin:
                self._wait()
        self._said.close()

    def _wait(self) -> int:
        """Wait for ssh to end, not for ever; its exit code."""
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        except BaseException:  # interrupted a second time
            self._process.kill()
            self._process.wait()
            raise
        return self._process.wait()

    def _send(self, data: bytes | memoryview) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise EmoExportError(f"{self.name}: the connection has been closed")
        try:
            stdin.write(data)
            stdin.flush()
        except BrokenPipeError:
            self._lost()

    def _line(self, limit: int = -1) -> str:
        """The next line, or `limit` bytes of it."""
        stdout = self._process.stdout
        line = stdout.readline(limit) if stdout is not None and not stdout.closed else b""
        if not line.endswith(b"\n") and len(line) != limit:
            self._noise += b"" if self._connected else line
            self._lost()
        return line.decode("utf-8", errors="replace").rstrip("\r\n")

    def _lost(self) -> NoReturn:
        """Raise with why the connection has ended, as ssh tells it."""
        code = self._wait()
        self._said.seek(0)
        # Before our part runs, what the shell there prints may tell why it does not.
        heard = bytes(self._noise) if not self._connected else b""
        said_all = heard + b"\n" + self._said.read()
        words = said_all.decode("utf-8", errors="replace").strip().splitlines()
        said = "\n".join(words[-LAST_WORDS:]) or "ssh said nothing"
        raise EmoExportError(f"{self.name}: {self._why_lost(code, chr(10).join(words))}\n{said}")

    def _why_lost(self, code: int, words: str) -> str:
        if not self._connected:
            known = (sentence for mark, sentence in SENTENCES if mark in words)
            return next(known, f"ssh could not open a session there (exit {code})")
        if "No space left on device" in words or "Disk quota exceeded" in words:
            return "no space is left in ~/.cache there; free some and start again"
        if "makedirs" in words or "mkdtemp" in words:  # a traceback of what starts our part
            return "its ~/.cache can't be written to; give it another in XDG_CACHE_HOME there"
        if code == 255 or code < 0:  # ssh's own; our far side never ends so
            return "the connection was lost; start again, and what has arrived is not sent again"
        return f"our part there has ended (exit {code})"


def _ssh_command() -> list[str]:
    command = shlex.split(os.environ.get(COMMAND, "")) or ["ssh"]
    if shutil.which(command[0]) is None:
        raise MissingDependencyError(
            f"{command[0]}: there is no such program here, which --device ssh://… needs; "
            "on Debian and Ubuntu: sudo apt install openssh-client"
        )
    return command
