"""Parity as an assertion, for the test suite of a project that ships an exported package.

Under pytest the fixture `emo_parity` (emo_export.pytest_plugin) is the same with a memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.errors import ParityError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.package import chosen_targets

if TYPE_CHECKING:
    from emo_export.cli.device_runs import DeviceRuns
    from emo_export.parity.judge import TargetReport
    from emo_export.parity.outcome import Outcome


def assert_parity(
    package: str | os.PathLike[str],
    targets: Sequence[str] | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> list[TargetReport]:
    """Validate an exported folder, or some of its targets, as `emo-export validate` does.

    `device` is a name that `--device` takes: pi4, ssh://pi@host, adb, here (a process of its own);
    None judges in this process. Returns the report of each target. Raises AssertionError, with a
    sentence for each limit, when a target is outside one, crashes there or is not made of the files
    that export wrote; MissingDependencyError when an engine is not installed; EmoExportError when
    the package can't be read or the device not reached. None of them is a pass.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test that called
    return Parity()(package, targets, threads, device)


class Parity:
    """assert_parity with a memory: files that did not change are not judged a second time."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Outcome | DeviceRuns] = {}

    def __call__(
        self,
        package: str | os.PathLike[str],
        targets: Sequence[str] | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[TargetReport]:
        """As assert_parity."""
        __tracebackhide__ = True
        if isinstance(targets, str):
            raise TypeError(f"targets is {targets!r}, expected a list: [{targets!r}]")
        path = Path(package)
        folder, found = chosen_targets(path, targets or ())
        keys = {
            spec: (path.resolve(), spec, threads, device, _state(folder, str(entry["path"])))
            for spec, entry in found.items()
        }
        fresh = [spec for spec, key in keys.items() if key not in self._known]
        if fresh:
            judged = _judged(path, fresh, threads, device)
            self._known |= {keys[spec]: judged.part(spec) for spec in fresh}
        return _passed([self._known[key] for key in keys.values()])


def _judged(
    path: Path, specs: Sequence[str], threads: int | None, device: str | None
) -> Outcome | DeviceRuns:
    __tracebackhide__ = True
    from emo_export.cli.validate import judge_here, judge_there
    from emo_export.runtimes.devices.options import DeviceOptions

    only = specs if (path / MANIFEST).is_file() else ()
    if device is None:
        return judge_here(path, only, None, threads, "cpu", on_stage=lambda text: None)
    options = DeviceOptions((device,), threads=threads)
    options.check()
    try:
        return judge_there(path, only, options, on_stage=lambda text: None)
    except ParityError as error:  # files that export did not write
        raise AssertionError(str(error)) from None


def _passed(parts: Sequence[Outcome | DeviceRuns]) -> list[TargetReport]:
    """The reports, when all is well; whatever is wrong with any of them is told at once."""
    __tracebackhide__ = True
    from emo_export.cli.device_runs import DeviceRuns, joined_runs
    from emo_export.parity.outcome import Outcome, joined
    from emo_export.report.devices import sentences

    here = joined([part for part in parts if isinstance(part, Outcome)])
    there = joined_runs([part for part in parts if isinstance(part, DeviceRuns)])
    try:
        here.check()
        there.check()
    except ParityError as error:
        raise AssertionError("\n".join([str(error), *sentences(there.reports)])) from None
    judged = [report.report for report in there.reports]
    return [*here.reports.values(), *(report for report in judged if report is not None)]


def _state(folder: Path, target: str) -> tuple[object, ...]:
    """What changes when a file that the verdict hangs on is written or replaced."""
    model = folder / target
    inside = sorted(model.rglob("*")) if model.is_dir() else []
    state: list[object] = []
    for path in (folder / MANIFEST, folder / "golden.npz", model, *inside):
        if path.exists():
            now = path.stat()
            state.append((path, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))
    return tuple(state)
