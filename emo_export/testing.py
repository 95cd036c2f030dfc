"""Parity as an assertion, for the test suite of a project that ships an exported package.

Under pytest the fixture `emo_parity` (emo_export.pytest_plugin) is the same with a memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.artifact import chosen_targets
from emo_export.errors import ParityError
from emo_export.manifest import NAME as MANIFEST

if TYPE_CHECKING:
    from emo_export.outcome import Outcome
    from emo_export.validate import TargetReport


def assert_parity(
    package: str | os.PathLike[str],
    targets: Sequence[str] | None = None,
    threads: int | None = None,
) -> list[TargetReport]:
    """Validate an exported folder, or some of its targets, as `emo-export validate` does.

    Returns the report of each target. Raises AssertionError, with a sentence for each limit, when a
    target is outside one or not made of the files that export wrote; MissingDependencyError when an
    engine is not installed; EmoExportError when the package can't be read. None of them is a pass.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test that called
    return Parity()(package, targets, threads)


class Parity:
    """assert_parity with a memory: files that did not change are not judged a second time."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Outcome] = {}

    def __call__(
        self,
        package: str | os.PathLike[str],
        targets: Sequence[str] | None = None,
        threads: int | None = None,
    ) -> list[TargetReport]:
        """As assert_parity."""
        __tracebackhide__ = True
        if isinstance(targets, str):
            raise TypeError(f"targets is {targets!r}, expected a list: [{targets!r}]")
        path = Path(package)
        folder, found = chosen_targets(path, targets or ())
        keys = {
            spec: (path.resolve(), spec, threads, _state(folder, str(entry["path"])))
            for spec, entry in found.items()
        }
        fresh = [spec for spec, key in keys.items() if key not in self._known]
        if fresh:
            outcome = _judged(path, fresh, threads)
            self._known |= {keys[spec]: outcome.part(spec) for spec in fresh}
        return _passed([self._known[key] for key in keys.values()])


def _judged(path: Path, specs: Sequence[str], threads: int | None) -> Outcome:
    from emo_export.cli_validate import judge_here

    only = specs if (path / MANIFEST).is_file() else ()
    return judge_here(path, only, None, threads, "cpu", on_stage=lambda text: None)


def _passed(parts: Sequence[Outcome]) -> list[TargetReport]:
    """The reports, when all is well; whatever is wrong with any of them is told at once."""
    __tracebackhide__ = True
    from emo_export.outcome import joined

    whole = joined(parts)
    try:
        whole.check()
    except ParityError as error:
        raise AssertionError(str(error)) from None
    return list(whole.reports.values())


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
