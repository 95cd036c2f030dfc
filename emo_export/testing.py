"""Parity as an assertion, for the test suite of a project that ships an exported package.

Under pytest the fixture `emo_parity` (emo_export.pytest_plugin) is the same with a memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export import validate
from emo_export.errors import ParityError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.runtimes.package import chosen_targets

if TYPE_CHECKING:
    from emo_export.parity.result import Result


def assert_parity(
    package: str | os.PathLike[str],
    targets: Sequence[str] | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> list[Result]:
    """Validate an exported folder, or some of its targets, as `emo-export validate` does.

    `device` is a name that `--device` takes: pi4, ssh://pi@host, adb, here (a process of its own);
    None judges in this process. Returns the result of each target. Raises AssertionError, with a
    sentence for each limit, when a target is outside one, crashes there or is not made of the files
    that export wrote; NotEnoughTextError when nothing failed, but the held-out text is too short
    to tell whether a limit holds; MissingDependencyError when an engine is not installed;
    EmoExportError when the package can't be read or the device not reached. None is a pass.
    """
    __tracebackhide__ = True  # pytest then shows the line of the test that called
    return Parity()(package, targets, threads, device)


class Parity:
    """assert_parity with a memory: files that did not change are not judged a second time."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Result] = {}

    def __call__(
        self,
        package: str | os.PathLike[str],
        targets: Sequence[str] | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> list[Result]:
        """As assert_parity."""
        __tracebackhide__ = True
        if isinstance(targets, str):
            raise TypeError(f"targets is {targets!r}, expected a list: [{targets!r}]")
        path = Path(package)
        folder, found = chosen_targets(path, targets or ())
        keys = {
            spec: (path.resolve(), spec, threads, device, _state(folder, entry.path))
            for spec, entry in found.items()
        }
        fresh = [spec for spec, key in keys.items() if key not in self._known]
        if fresh:
            only = fresh if (path / MANIFEST).is_file() else ()
            judged = validate(path, only, device=device, threads=threads)
            self._known |= {keys[result.target]: result for result in judged}
        results = [self._known[key] for key in keys.values()]
        from emo_export.report.sentences import check

        try:
            check(results)
        except ParityError as error:
            raise AssertionError(str(error)) from None
        return results


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
