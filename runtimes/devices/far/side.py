"""The far end of `--device ssh://…`: answers requests until the connection ends, then tidies up.

It runs from the zip of the light runtime, in a folder of its own below the cache there
(`~/.cache/emo-export/runs/…`), which it removes at the end. Requests and answers are JSON lines on
stdin and stdout. Standard library only: it must start before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.far.files import PIECE, Package
from emo_export.runtimes.devices.far.machine import features, machine_facts
from emo_export.runtimes.devices.far.run import ConnectionEnded, run_child
from emo_export.runtimes.devices.far.setup import find_python, set_up

STALLED_SECONDS = 60.0  # in the middle of a file
IDLE_SECONDS = 3600.0  # between requests: the other side is gone, and nobody told us
YOUNG_SECONDS = 300.0  # a run's folder without a lock may be one that is just starting
HALF_SECONDS = 86400.0  # no environment takes a day to make
LOCK = "lock"


class Incoming:
    """What comes over the connection: request lines, and the bytes that belong to some."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def line(self) -> bytes:
        """The next line without its end. Raises ConnectionEnded when none will come."""
        while b"\n" not in self._buffer:
            self._buffer += self._more(PIECE, IDLE_SECONDS)
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return bytes(line)

    def pieces(self, count: int, size: int) -> Iterator[bytes]:
        """Exactly `count` bytes, in pieces of up to `size`. Raises ConnectionEnded."""
        while count:
            piece = bytes(self._buffer[: min(count, size)])
            del self._buffer[: len(piece)]
            piece = piece or self._more(min(count, size), STALLED_SECONDS)
            count -= len(piece)
            yield piece

    def is_over(self) -> bool:
        """Whether the other side has closed; nothing else may come while it waits for an answer."""
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def _more(self, size: int, patience: float) -> bytes:
        if not select.select([self._descriptor], [], [], patience)[0]:
            raise ConnectionEnded
        found = os.read(self._descriptor, size)
        if not found:
            raise ConnectionEnded
        return found


class FarSide:
    """What the requests do. `folder` is this run's own, `python` what started it."""

    def __init__(self, folder: Path, python: str, incoming: Incoming) -> None:
        self._folder, self._python, self._incoming = folder, python, incoming
        self._cache = folder.parent.parent
        self._package: Package | None = None
        self.lock: BinaryIO = (folder / LOCK).open("wb")
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def next_answer(self) -> dict[str, Any]:
        """Wait for a request and do it. Raises ConnectionEnded when none will come."""
        request = json.loads(self._incoming.line())
        try:
            return self._answer(request)
        except EmoExportError as error:
            return {"error": str(error), "missing": isinstance(error, MissingDependencyError)}
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            return {"error": f"{place}{error.strerror}", "missing": False}

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        what = request["do"]
        if what == "facts":
            return self._facts()
        if what == "engines":
            make = set_up if request["setup"] else find_python
            return make(self._python, self._cache, request["kinds"], partial(self._run, bare=True))
        if what == "run":
            command = [request["python"], *request["arguments"]]
            return self._run(command, bare=False)
        if what == "clean":
            return self._clean()
        return self._about_package(what, request)

    def _about_package(self, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._package is None or self._package.folder.name != request["package"]:
            self._package = Package(self._cache / "packages" / request["package"])
        package = self._package
        if what == "look":
            package.lock(alone=False)
            missing = package.missing(request["files"])
            if missing:
                package.lock(alone=True)
                missing = package.missing(request["files"])
            free = shutil.disk_usage(package.folder).free
            return {"missing": missing, "free": free, "folder": str(package.folder)}
        if what == "forget":
            package.forget_others(request["files"], request["known"])
            return {}
        if what == "ready":
            package.lock(alone=False)
            return {}
        name, digest = request["name"], request["digest"]
        if what == "receive":
            package.receive(name, digest, request["offset"], request["count"], self._incoming)
            return {}
        if what == "finish":
            return {"whole": package.finish(name, digest)}
        raise EmoExportError(f"{what!r} is no request")

    def _run(self, command: Sequence[str], *, bare: bool) -> dict[str, Any]:
        """Run a command with the light runtime on its path, or `bare`."""
        kept = {key: value for key, value in os.environ.items() if _is_kept(key)}
        # ONNX Runtime keeps notes of its own in the cache folder.
        here = str(self._folder)
        ours = {"TMPDIR": here, "XDG_CACHE_HOME": here, "PYTHONDONTWRITEBYTECODE": "1"}
        ours["PYTHONUTF8"] = "1"  # names of files are sent as UTF-8, whatever the locale here
        path = {} if bare else {"PYTHONPATH": str(self._folder / "runtime.zip")}
        environment = kept | ours | path
        return run_child(command, environment, self._folder, self._incoming.is_over)

    def _facts(self) -> dict[str, Any]:
        return {
            "machine": machine_facts(),
            "features": features(),
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        }

    def _clean(self) -> dict[str, Any]:
        """Remove what emo-export keeps here. Raises EmoExportError while another run goes on."""
        if busy := next(filter(self._is_held, self._folder.parent.iterdir()), None):
            raise EmoExportError(
                f"another emo-export is at work there ({busy}); wait for it to end (one whose "
                "connection was lost gives up within an hour)"
            )
        places = [self._cache / "packages", *self._cache.glob("venv-*")]
        places += self._cache.glob(".venv-*")
        there = [place for place in places if place.is_dir()]
        nbytes = sum(_size(place) for place in there)
        for place in there:
            shutil.rmtree(place)
        return {"bytes": nbytes, "removed": [str(place) for place in there]}

    def _is_held(self, run: Path) -> bool:
        """Whether this folder is of another run that goes on."""
        if run == self._folder:
            return False
        try:
            with (run / LOCK).open("rb") as handle:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # it has none yet, or is gone
            return False
        return False

    def sweep(self) -> None:
        """Remove what was left when a process was killed: folders of runs, half environments."""
        for half in self._cache.glob(".venv-*"):
            with contextlib.suppress(FileNotFoundError):  # it has just been given its name
                if time.time() - half.stat().st_mtime > HALF_SECONDS:
                    shutil.rmtree(half, ignore_errors=True)
        for left in self._folder.parent.iterdir():
            try:
                if left == self._folder or time.time() - left.stat().st_mtime < YOUNG_SECONDS:
                    continue
                with (left / LOCK).open("ab") as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
            except OSError:  # in use, or another one was faster
                continue

    def leave(self) -> None:
        """Remove this run's own folder, and those above it that are empty then."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in (self._folder.parent, self._cache):
            try:
                folder.rmdir()
            except OSError:  # not empty
                return


def _is_kept(key: str) -> bool:
    """Settings of the user's for Python may have it wait, or load other modules."""
    return key == "PYTHONHOME" or not key.startswith("PYTHON")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def main(folder: str, python: str) -> None:
    """Answer requests until the connection ends; the first answer, an empty one, is unasked."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    far = FarSide(Path(folder), python, Incoming(0))
    try:
        far.sweep()
        found: dict[str, Any] = {}
        while True:
            answers.write(json.dumps(found) + "\n")
            answers.flush()
            found = far.next_answer()
    except (ConnectionEnded, BrokenPipeError):
        return
    finally:
        far.leave()


def _end(number: int, frame: object) -> None:
    raise ConnectionEnded
