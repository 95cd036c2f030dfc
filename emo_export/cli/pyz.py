"""The work of `device pyz`: what it writes, and what it says is to be done with it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import click

from emo_export.base.disk import check_writable, size_of, unfinished
from emo_export.base.engine_packages import ENGINE_OF, module_of, requirements_for
from emo_export.cli.output import put, say
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.pyz import fetch_wheels, write_pyz


def write_and_fetch(
    out: Path,
    engines: Sequence[str],
    machine: str,
    python: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the file, and fetch the wheels into a folder of its name beside it."""
    wheels = out.with_suffix(".wheels") if engines else None
    _check(out, wheels, overwrite)
    kinds = [ENGINE_OF[engine] for engine in engines]
    if wheels is not None:
        say(f"fetching wheels for Python {python} on {machine}: {', '.join(engines)}")
        _fetch(wheels, kinds, machine, python)
    nbytes = write_pyz(out)
    names = [module_of(requirement) for requirement in requirements_for(kinds)]
    if as_json:
        told: dict[str, object] = {"path": str(out), "bytes": nbytes, "install": names}
        if wheels is not None:
            told |= {"wheels": str(wheels), "wheels_bytes": size_of(wheels)}
        click.echo(json.dumps(told, indent=2))
        return
    put(f"{out}: {nbytes / 1e6:.1f} MB")
    name = shlex.quote(out.name)
    if wheels is None:
        put(f"there, with numpy and an engine: python3 {name} doctor")
        return
    put(f"{wheels}: {len(list(wheels.iterdir()))} wheels, {size_of(wheels) / 1e6:.1f} MB")
    put(
        "copy both there, and once: python3 -m venv emo && emo/bin/pip install --no-index "
        f"--find-links {shlex.quote(wheels.name)} {' '.join(names)}"
    )
    put(f'then: emo/bin/python {name} run PACKAGE "def main("')


def _check(out: Path, wheels: Path | None, overwrite: bool) -> None:
    """Refuse, before anything is fetched, what can't be written or would replace other things."""
    if out.suffix != ".pyz":
        raise EmoExportError(f"{out}: expected a name that ends with .pyz")
    for place in (out, wheels):
        if place is not None and place.exists() and not overwrite:
            raise EmoExportError(f"{place}: is there already; --overwrite replaces it")
    if wheels is not None and wheels.exists() and not _holds_wheels_alone(wheels):
        raise EmoExportError(f"{wheels}: is no folder of wheels alone; give another name")
    check_writable(out)


def _holds_wheels_alone(folder: Path) -> bool:
    return folder.is_dir() and all(path.suffix == ".whl" for path in folder.iterdir())


def _fetch(wheels: Path, kinds: Sequence[str], machine: str, python: str) -> None:
    """All of them appear together, under another name before."""
    partial = unfinished(wheels)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        fetch_wheels(partial, kinds, machine, python)
        if wheels.exists():
            shutil.rmtree(wheels)
        partial.rename(wheels)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
