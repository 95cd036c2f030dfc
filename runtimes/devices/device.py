"""Validation on a device: what is asked of one, and what comes home."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.target_entry import TargetEntry
from emo_export.parity.result import Crash, Result
from emo_export.runtimes.devices.request import VERSION, Request
from emo_export.spec import Spec

LAST_WORDS = 3  # lines of a dead process's stderr that are shown
SHELL_SIGNAL = 128  # a shell says 128 + N of a program that signal N ended


class Finished(NamedTuple):
    """How a process ended: its exit code, negative for the signal that ended it."""

    code: int
    stdout: str
    stderr: str


class Device(Protocol):
    """A place where `far/on_device.py` can run: emulated here, or far away.

    `name` is what the user asked for; `kind` is here, emulated, ssh or adb; `profile` the name
    under which tolerances.json has limits for its kernels (empty: none of its own).
    """

    name: str
    kind: str
    profile: str

    def place(self, folder: Path, targets: Mapping[str, TargetEntry]) -> str:
        """Bring these targets of a package there; the path that it has there."""

    def run(self, arguments: Sequence[str]) -> Finished:
        """Run on_device there with these arguments."""

    def facts(self) -> Mapping[str, str]:
        """What is known of it from here: versions, digests, how it is run."""

    def memory(self) -> Mapping[str, Any] | None:
        """Bytes that the last run took, where they were looked at; None otherwise."""

    def command(self, arguments: Sequence[str]) -> str:
        """The command line that `run` runs, for a person who wants to repeat it."""

    def close(self) -> None:
        """Leave nothing behind there but what is kept for the next time."""


def judge_target(device: Device, place: str, target: Spec, request: Request) -> Result:
    """Run one target of the package at `place`, as `Device.place` answered.

    Raises EmoExportError with what the far side refused, MissingDependencyError where its engine is
    missing there. A crash is a result that did not pass.
    """
    spec = str(target)
    arguments = request._replace(profile=device.profile).arguments(place, target)
    finished = device.run(arguments)
    known = device.facts()
    engine = known.get(f"engine of {target.family}", "")
    answer = answer_of(device.name, finished, f"the run of {spec}", engine)
    if isinstance(answer, Crash):
        result = Result(target=spec, crash=answer)
    else:
        if answer.get("version") != VERSION:
            raise EmoExportError(f"{device.name}: the far side is of another version of emo-export")
        if answer.get("target") != spec or finished.code != 0:
            raise EmoExportError(
                f"{device.name}: asked for {spec}, answered for {answer.get('target')!r} "
                f"(exit {finished.code})"
            )
        result = Result.from_dict(answer["result"], f"the answer of {device.name}")
    return replace(
        result,
        device=device.name,
        kind=device.kind,
        machine={**known, **result.machine},
        memory=device.memory(),
        command=device.command(arguments),
    )


def answer_of(
    label: str, finished: Finished, what: str, engine: str = "", measuring: bool = False
) -> dict[str, Any] | Crash:
    """The JSON object on the last line of stdout, or the signal that ended the process.

    `engine` and `measuring` are those of Crash. Raises MissingDependencyError or EmoExportError
    with what a module of `far/` refused, and EmoExportError for a process that says nothing or
    something else.
    """
    try:
        answer = json.loads(finished.stdout.rstrip("\n").rpartition("\n")[2])
    except ValueError:
        number = -finished.code if finished.code < 0 else finished.code - SHELL_SIGNAL
        if number > 0:
            return Crash(number, engine, last_words(finished), measuring)
        raise EmoExportError(
            f"{label}: {what} ended with code {finished.code} and no answer: {last_words(finished)}"
        ) from None
    if not isinstance(answer, dict):
        raise EmoExportError(f"{label}: {what} answered {answer!r}, expected an object")
    if "error" in answer:
        kind = MissingDependencyError if answer["exit_code"] == 3 else EmoExportError
        raise kind(f"{label}: {answer['error']}")
    return answer


def last_words(finished: Finished) -> str:
    """The end of what a process said on stderr, on one line."""
    lines = finished.stderr.strip().splitlines()[-LAST_WORDS:]
    return "; ".join(line.strip() for line in lines) or "it said nothing"
