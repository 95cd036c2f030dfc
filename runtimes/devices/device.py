"""Validation on a device: what is asked of one, and what comes home."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.parity.judge import TargetReport
from emo_export.runtimes.devices.request import VERSION, Request

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

    def place(self, folder: Path, targets: Mapping[str, Mapping[str, Any]]) -> str:
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


@dataclass(frozen=True)
class DeviceReport:
    """One target on one device.

    `report` is None when the run ended before there was one (a crash); `failures` are sentences
    about the device beside the report's own (a crash, too little memory). `machine` is what the far
    side saw of itself and what is known of it from here, `memory` what was measured, in bytes,
    `command` the process that judged (folders in it may be gone), `repeat` the command line of
    emo-export that does it again. `speed`: what on_device_bench measured there, if it was asked.
    """

    device: str
    kind: str
    target: str
    report: TargetReport | None
    failures: tuple[str, ...]
    machine: Mapping[str, str]
    memory: Mapping[str, Any] | None
    command: str
    speed: Mapping[str, Any] | None = None
    repeat: str = ""

    @property
    def passed(self) -> bool:
        """There is a report, within every limit, and nothing failed beside it."""
        return self.report is not None and self.report.passed and not self.failures

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        shallow = {key: getattr(self, key) for key in self.__dataclass_fields__}
        report = None if self.report is None else self.report.as_dict()
        return {**shallow, "report": report, "passed": self.passed}


@dataclass(frozen=True)
class Crash:
    """A signal ended a process.

    `engine`: what ran in it, such as "onnxruntime 1.31.1", empty where that is not known; `said`:
    the end of its stderr.
    """

    signal: int
    engine: str
    said: str

    @classmethod
    def of(cls, finished: Finished, engine: str = "") -> Crash | None:
        """None for a process that ended by itself."""
        number = -finished.code if finished.code < 0 else finished.code - SHELL_SIGNAL
        return cls(number, engine, last_words(finished)) if number > 0 else None

    def __str__(self) -> str:
        """A sentence, with the advice that fits the signal."""
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        engine = self.engine or "the engine"
        advice: dict[int, str] = {
            signal.SIGILL: f"{engine} ran an instruction that this CPU does not have; it would "
            "crash there in the same way, so install another version of it",
            signal.SIGKILL: "the system killed it, as it does when memory runs out",
            signal.SIGSEGV: f"{engine} crashed; try another version of it",
            signal.SIGABRT: f"{engine} gave up: {self.said}",
        }
        return f"ended by {name}: {advice.get(self.signal, self.said)}"


def judge_target(device: Device, place: str, request: Request) -> DeviceReport:
    """Run one target of the package at `place`, as `Device.place` answered.

    Raises EmoExportError with what the far side refused, MissingDependencyError where its engine is
    missing there. A crash is a report that did not pass.
    """
    spec = request.spec
    arguments = request._replace(profile=device.profile).arguments(place)
    finished = device.run(arguments)
    answer = answer_of(device.name, finished, f"the run of {spec}")
    machine = {**device.facts(), **(answer or {}).get("machine", {})}
    report, failures = None, []
    if answer is None:
        engine = machine.get("engine of " + spec.partition(":")[0], "")
        failures.append(str(Crash.of(finished, engine)))
    else:
        if answer.get("version") != VERSION:
            raise EmoExportError(f"{device.name}: the far side is of another version of emo-export")
        if answer.get("target") != spec or finished.code != 0:
            raise EmoExportError(
                f"{device.name}: asked for {spec}, answered for {answer.get('target')!r} "
                f"(exit {finished.code})"
            )
        report = TargetReport.from_dict(answer["report"], f"the answer of {device.name}")
    command, memory = device.command(arguments), device.memory()
    return DeviceReport(
        device.name, device.kind, spec, report, tuple(failures), machine, memory, command
    )


def answer_of(label: str, finished: Finished, what: str) -> dict[str, Any] | None:
    """The JSON object on the last line of stdout; None when a signal ended the process.

    Raises MissingDependencyError or EmoExportError with what a module of `far/` refused, and
    EmoExportError for a process that says nothing or something else.
    """
    try:
        answer = json.loads(finished.stdout.rstrip("\n").rpartition("\n")[2])
    except ValueError:
        if Crash.of(finished):
            return None
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
