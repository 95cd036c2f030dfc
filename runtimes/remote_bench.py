"""The speed of a package's targets on a device, measured by `on_device_bench` over there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emo_export.devices import Finished, crash, last_words
from emo_export.errors import EmoExportError, MissingDependencyError


class Measuring(Protocol):
    """A device that can measure speed."""

    name: str

    def place(self, folder: Path, targets: Mapping[str, Mapping[str, Any]]) -> str:
        """Bring these targets of a package there; the path that it has there."""

    def bench(self, arguments: Sequence[str]) -> Finished:
        """Run on_device_bench there with these arguments."""


def remote_speeds(
    device: Measuring,
    folder: Path,
    targets: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    """Target -> what `on_device_bench` says of it: load_seconds, *_tokens_per_second, memory, ….

    `settings` are its options: prefill, decode and depth (tokens), rounds, threads. Raises
    EmoExportError when a run fails there or its engine crashes.
    """
    place = device.place(folder, targets)
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    found = {}
    for spec, entry in targets.items():
        finished = device.bench([f"{place}/{entry['path']}", *options])
        found[spec] = _answer(f"{device.name}: {spec}", finished)
    return found


def _answer(label: str, finished: Finished) -> dict[str, Any]:
    if finished.code < 0:
        raise EmoExportError(f"{label}: {crash(finished)}")
    try:
        answer: dict[str, Any] = json.loads(finished.stdout.rstrip("\n").rpartition("\n")[2])
    except ValueError:
        raise EmoExportError(
            f"{label}: measuring ended with code {finished.code} and no answer: "
            f"{last_words(finished)}"
        ) from None
    if "error" in answer:
        kind = MissingDependencyError if answer["exit_code"] == 3 else EmoExportError
        raise kind(f"{label}: {answer['error']}")
    return answer
