"""The command line as one file, and the engines' wheels beside it, for a machine without an index.

The file is a zip that Python runs (zipapp): our modules, and the pure Python that they import. What
is compiled for one kind of machine can't be imported from a zip, so it stays in wheels.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path

from emo_export.base.disk import write_whole
from emo_export.base.engine_packages import requirements_for
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.emulated.engines import SETTINGS
from emo_export.runtimes.devices.source_zip import FIRST_DATE

PACKAGE = "emo_export"
PURE = ("click", "rich")
"""Distributions that go in. Rich asks for Pygments and markdown-it, to show what we never do."""
MAIN = """\
import sys

if sys.version_info < (3, 11):
    sys.exit(f"error: Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}")
from emo_export.cli.program import program

program()
"""
SHEBANG = b"#!/usr/bin/env python3\n"
MACHINES = ("aarch64", "x86_64")
GLIBC = range(36, 16, -1)  # 2.36 is that of Raspberry Pi OS 12


def write_pyz(path: Path) -> int:
    """Write the file, and answer its bytes. The same sources give the same bytes.

    Raises EmoExportError where it can't be written.
    """
    parts = {"__main__.py": MAIN.encode()}
    for top in (PACKAGE, *PURE):
        parts |= {f"{top}/{name}": data for name, data in _files(resources.files(top), "")}
    for name in PURE:
        parts |= dict(_licences(name))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(parts):
            entry = zipfile.ZipInfo(name, FIRST_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, parts[name])
    content = SHEBANG + made.getvalue()
    write_whole(path, content)
    path.chmod(0o755)
    return len(content)


def fetch_wheels(folder: Path, kinds: Sequence[str], machine: str, python: str) -> list[Path]:
    """Fetch the wheels of engines, and all that these need, with pip; answers all in the folder.

    `kinds` are `gguf` and `onnx`; `machine` one of MACHINES; `python` a version such as "3.13".
    Raises EmoExportError for another version, and where pip finds no wheel, and
    MissingDependencyError without pip.
    """
    if not re.fullmatch(r"3\.(1[1-9]|[2-9]\d)", python):
        raise EmoExportError(f"--python {python}: expected 3.11 or newer, as in 3.13")
    wanted = requirements_for(kinds)
    tags = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC]
    tags += [f"--platform=manylinux2014_{machine}", f"--python-version={python}"]
    tags += [f"--abi=cp{python.replace('.', '')}", "--abi=abi3", "--abi=none"]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    options = ["--only-binary=:all:", "--implementation=cp", f"--dest={folder}"]
    done = subprocess.run(
        [*pip, *options, *tags, *wanted],
        capture_output=True,
        text=True,
        env=os.environ | SETTINGS,
        check=False,
    )
    if "No module named pip" in done.stderr:
        raise MissingDependencyError(
            f"wheels are fetched by pip, which {sys.executable} lacks: "
            f"{sys.executable} -m ensurepip --upgrade"
        )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise EmoExportError(
            f"pip could not fetch {', '.join(wanted)} for Python {python} on {machine}:\n{said}"
        )
    return sorted(folder.glob("*.whl"))


def _files(folder: Traversable, place: str) -> Iterator[tuple[str, bytes]]:
    """Names below a package, and bytes; nothing that was compiled."""
    for entry in folder.iterdir():
        name = f"{place}{entry.name}"
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _files(entry, f"{name}/")
        elif not name.endswith((".pyc", ".so", ".pyd")):
            yield name, entry.read_bytes()


def _licences(distribution: str) -> Iterator[tuple[str, bytes]]:
    """What a distribution says of itself, its licence among it."""
    found = metadata.distribution(distribution)
    for file in found.files or ():
        if ".dist-info/" in str(file) and file.name not in ("RECORD", "INSTALLER", "REQUESTED"):
            yield str(file), file.read_binary()
