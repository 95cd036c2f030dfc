"""Commands that write, tried with faults: what stands under the final name, and what is left."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.verifying import verify
from tests.kit.command import NOT_FAILED
from tests.kit.faulty import Ended, Fault, Preloaded

Content = Mapping[str, bytes]
INTERRUPTED = 130


def content_of(place: Path) -> Content:
    """Every file by its name; of an archive, which tells when it was made, its arrays.

    The manifest has digests and is held against the files instead.
    """
    found = {}
    for path in sorted(p for p in (place, *place.rglob("*")) if p.is_file()):
        name = path.relative_to(place).as_posix()
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                found |= {f"{name}/{key}": arrays[key].tobytes() for key in arrays.files}
        elif path.name != MANIFEST:
            found[name] = path.read_bytes()
    if (place / MANIFEST).exists() and (problems := verify(place)):
        raise AssertionError(f"{place}: {problems}")
    return found


@dataclass(frozen=True)
class Command:
    """A command that makes `name` in a folder. `words` get the place of that.

    `content` reads what it made, equal whenever it is made. `old` is there beforehand (None:
    nothing is). What is made `apart` may be there in part, each file of it whole.
    """

    title: str
    name: str
    words: Callable[[Path], Sequence[str]]
    content: Callable[[Path], Content] = content_of
    old: Path | None = None
    apart: bool = False


@dataclass
class Row:
    """Of a table: one fault, how often it was tried, and what was lost by it."""

    title: str
    tried: int = 0
    struck: int = 0
    went_on: int = 0
    lost: list[str] = field(default_factory=list)

    @property
    def survived(self) -> int:
        """All that was tried and not lost."""
        return self.tried - len(self.lost)


class Bench:
    """Tries commands in a folder of its own, and compares with what they make undisturbed."""

    def __init__(self, preloaded: Preloaded, root: Path) -> None:
        self._preloaded, self._root = preloaded, root
        self.tmp, self._out = root / "tmp", root / "out"
        self._known: dict[str, tuple[Content, Content, int, float]] = {}

    def fresh(self, command: Command) -> Path:
        """The folders as before the command; -> the place of what it makes."""
        for folder in (self.tmp, self._out):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        place = self._out / command.name
        if command.old is not None:
            shutil.copytree(command.old, place)
        return place

    def run(self, command: Command, fault: Fault | None = None) -> Ended:
        """Run it once, where it was left."""
        words = command.words(self._out / command.name)
        return self._preloaded.run([*map(str, words)], self._root, self.tmp, fault)

    def known(self, command: Command) -> tuple[Content, Content, int, float]:
        """Content before and after, calls and seconds of a run that nothing disturbs."""
        if command.title not in self._known:
            place = self.fresh(command)
            before = command.content(place) if place.exists() else {}
            self.run(command)  # files that are read come into the page cache
            place = self.fresh(command)
            begun = time.monotonic()
            done = self.run(command)
            seconds = time.monotonic() - begun
            assert done.code in NOT_FAILED, done.said
            self._known[command.title] = before, command.content(place), done.calls, seconds
        return self._known[command.title]

    def try_once(self, command: Command, fault: Fault, row: Row, codes: Sequence[int]) -> None:
        """Disturb it, look at what is there, run it again, compare, and look for what is left."""
        row.tried += 1
        before, want, _, _ = self.known(command)
        place = self.fresh(command)
        where = f"{command.title}, {fault}"
        done = self.run(command, fault)
        row.struck += done.code not in NOT_FAILED
        if done.code not in (*codes, *NOT_FAILED) or "Traceback" in done.said:
            row.lost.append(f"{where}: ended with {done.code}: {done.said[-500:]}")
            return
        try:
            there = command.content(place) if place.exists() else {}
            whole = command.apart and there.items() <= want.items()
            if not whole and there not in (before, want):
                row.lost.append(f"{where}: {place.name} is neither the old one nor the new one")
                return
            if there != want:
                again = self.run(command)
                row.went_on += "going on after" in again.said
                if again.code not in NOT_FAILED:
                    row.lost.append(f"{where}: again ended with {again.code}: {again.said[-500:]}")
                    return
            else:  # a kill may come when all is done: then whoever comes next tidies up
                self.run(command)
            if command.content(place) != want:
                row.lost.append(f"{where}: again made other bytes")
        except (AssertionError, OSError, ValueError, KeyError) as error:
            row.lost.append(f"{where}: {error!r}")
            return
        left = [p.name for p in (*self._out.iterdir(), *self.tmp.iterdir()) if p != place]
        if left:
            row.lost.append(f"{where}: left {left}")
