"""All targets of a package on one device, as the command line runs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_export.parity.result import Result
from emo_export.runtimes.devices.device import Device, judge_target
from emo_export.runtimes.devices.request import Request
from emo_export.spec import Spec


def judged_on(
    device: Device,
    folder: Path,
    targets: Mapping[str, Mapping[str, Any]],
    request: Request | None = None,
) -> list[Result]:
    place = device.place(folder, targets)
    asked = request or Request()
    return [judge_target(device, place, Spec.parse(name), asked) for name in targets]
