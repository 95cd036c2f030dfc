"""The virtual environment on the far side: which Python has the engines, and making one that does.

Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.base.engine_packages import module_of, requirements_for
from emo_export.base.llama_library import own_library
from emo_export.errors import EmoExportError, MissingDependencyError

BOTH = ("gguf", "onnx")  # an environment for these does for one of them
NEEDED_MB = 400  # numpy, both engines and what pip unpacks meanwhile
Run = Callable[[Sequence[str]], dict[str, Any]]
"""A command (its environment without PYTHONPATH) -> code, stdout, stderr."""

LOOK = """
import importlib.util, json, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "of unknown version"
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps({name: version(name) for name in found}))
"""


def environment_for(cache: Path, kinds: Sequence[str]) -> Path:
    """The folder of the environment that has what these kinds of target need."""
    facts = "\n".join([sys.version, *requirements_for(kinds)])
    return cache / f"venv-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def find_python(python: str, cache: Path, kinds: Sequence[str], run: Run) -> dict[str, Any]:
    """A Python here with all engines: of an environment made before, or the one that runs this.

    Answers python and versions (package -> version), or, where none has all of them, what the
    last lacks.
    """
    places = [environment_for(cache, kinds), environment_for(cache, BOTH)]
    made = [str(place / "bin" / "python") for place in places if place.is_dir()]
    needed = [module_of(line) for line in requirements_for(kinds)]
    if own_library() is not None:
        needed = [name for name in needed if name != "xllamacpp"]
    lacking: list[str] = []
    for candidate in [*made, python]:
        versions = _versions(candidate, needed, run)
        lacking = [name for name in needed if name not in versions]
        if not lacking:
            return {"python": candidate, "versions": versions, "lacking": []}
    return {"python": python, "versions": {}, "lacking": lacking}


def _versions(python: str, needed: Sequence[str], run: Run) -> Mapping[str, str]:
    done = run([python, "-c", LOOK, *needed])
    if done["code"] != 0:
        raise EmoExportError(f"{python} there fails: {_last(done)}")
    found: dict[str, str] = json.loads(done["stdout"].strip().splitlines()[-1])
    return found


def set_up(python: str, cache: Path, kinds: Sequence[str], run: Run) -> dict[str, Any]:
    """Make the environment unless one is there; it gets its name when all is in it.

    Raises EmoExportError or MissingDependencyError with what to do about it.
    """
    place = environment_for(cache, kinds)
    if not place.is_dir() and not environment_for(cache, BOTH).is_dir():
        free = shutil.disk_usage(cache).free
        if free < NEEDED_MB * 1_000_000:
            raise EmoExportError(
                f"{place}: an environment needs about {NEEDED_MB} MB, its disk has "
                f"{free / 1e6:.0f} MB free; free some space there"
            )
        work = place.with_name(f".{place.name}-{os.getpid()}")
        try:
            _make(python, work, requirements_for(kinds), run)
            os.sync()  # thousands of files: a name must not outlive their bytes
            try:
                work.rename(place)
            except OSError:
                if not place.is_dir():  # else another one was faster
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return find_python(python, cache, kinds, run)


def _make(python: str, work: Path, requirements: Sequence[str], run: Run) -> None:
    done = run([python, "-m", "venv", str(work)])
    if done["code"] != 0:
        words = done["stdout"] + done["stderr"]
        if "ensurepip" in words or "No module named venv" in words:
            raise MissingDependencyError(
                f"{python} there can't make a virtual environment: its venv module is not whole; "
                "on Debian and Raspberry Pi OS: sudo apt install python3-venv"
            )
        raise EmoExportError(f"{python} -m venv there fails: {_last(done)}")
    pip = [str(work / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    # Wheels only: building one on a small device takes hours and a compiler.
    options = ["--only-binary", ":all:", "--no-cache-dir", "--retries", "2", "--timeout", "30"]
    done = run([*pip, "install", *options, *requirements])
    if done["code"] != 0:
        raise EmoExportError(_why_pip_failed(done, requirements))


def _why_pip_failed(done: Mapping[str, Any], requirements: Sequence[str]) -> str:
    words = done["stderr"] + done["stdout"]
    asked = ", ".join(requirements)
    if "Failed to establish a new connection" in words or "connection broken by" in words:
        return (
            "pip there reaches no package index; give the device a network (or set PIP_INDEX_URL "
            f"or https_proxy for its ssh sessions), or install {asked} there yourself"
        )
    if "No space left on device" in words or "Disk quota exceeded" in words:
        return f"no space is left there for {asked}; free some and start again"
    if "No matching distribution found" in words:
        return (
            f"pip there finds no wheel that fits its Python and system: {_last(done)}; "
            f"wanted: {asked}"
        )
    return f"pip there fails: {_last(done)}"


def _last(done: Mapping[str, Any]) -> str:
    """The last line that a command said, without pip's own hints."""
    lines = [line.strip() for line in (done["stdout"] + "\n" + done["stderr"]).splitlines()]
    said = [line for line in lines if line and not line.startswith("[notice]")]
    return said[-1] if said else f"exit {done['code']}, and it said nothing"
