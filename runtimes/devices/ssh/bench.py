"""The speed of a package's targets on a device, measured by `on_device_bench` over there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.device import Finished, crash, last_words


class Measuring(Protocol):
    """A device that can measure speed."""

    name: str

    def bench(self, arguments: Sequence[str]) -> Finished:
        """Run on_device_bench there with these arguments."""


def remote_speed(
    device: Measuring, spec: str, path: str, settings: Mapping[str, int]
) -> dict[str, Any]:
    """What `on_device_bench` says of a target: load_seconds, *_tokens_per_second, memory, ….

    `path`: of its file or folder there. `settings` are options: prefill, decode and depth (tokens),
    rounds, threads. Raises EmoExportError when the run fails there or its engine crashes.
    """
    options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return _answer(f"{device.name}: {spec}", device.bench([path, *options]))


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
