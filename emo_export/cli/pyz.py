"""The work of `device pyz`: what it writes, and what it says is to be done with it."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from emo_export.base.disk import check_writable, size_of, unfinished
from emo_export.base.engine_packages import ENGINE_OF, requirements_for
from emo_export.cli.output import put, say
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.pyz import fetch_wheels, write_pyz


def write_and_fetch(
    out: Path, engines: Sequence[str], machine: str, python: str, overwrite: bool
) -> None:
    """Write the file, and fetch the wheels into a folder of its name beside it."""
    if out.suffix != ".pyz":
        raise EmoExportError(f"{out}: expected a name that ends with .pyz")
    wheels = out.with_suffix(".wheels")
    for place in (out, wheels):
        if place.exists() and not overwrite and (place == out or engines):
            raise EmoExportError(f"{place}: is there already; --overwrite replaces it")
    check_writable(out)
    if engines:
        say(f"fetching wheels for Python {python} on {machine}: {', '.join(engines)}")
        kinds = [ENGINE_OF[engine] for engine in engines]
        count = _fetch(wheels, kinds, machine, python)
        put(f"{wheels}: {count} wheels, {size_of(wheels) / 1e6:.1f} MB")
    put(f"{out}: {write_pyz(out) / 1e6:.1f} MB")
    name = shlex.quote(out.name)
    if engines:
        names = " ".join(requirement.partition(">")[0] for requirement in requirements_for(kinds))
        folder = shlex.quote(wheels.name)
        put(
            f"copy both there, and once: python3 -m venv emo && emo/bin/pip install --no-index "
            f"--find-links {folder} {names}"
        )
        put(f'then: emo/bin/python {name} run PACKAGE "def main("')
    else:
        put(f"there, with numpy and an engine: python3 {name} doctor")


def _fetch(wheels: Path, kinds: Sequence[str], machine: str, python: str) -> int:
    """All of them appear together, under another name before."""
    partial = unfinished(wheels)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        count = len(fetch_wheels(partial, kinds, machine, python))
        if wheels.exists():
            shutil.rmtree(wheels)
        partial.rename(wheels)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count
