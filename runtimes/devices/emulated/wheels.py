"""Wheels for another kind of machine, put in a folder by pip or uv of this one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.emulated.fetch import Progress, run
from emo_export.runtimes.devices.emulated.pins import Wheel

# pip does not take 2_28 to cover older ones when it is asked for another platform's wheels.
PLATFORMS = (
    *(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)),
    "manylinux2014_aarch64",
)
UV_PLATFORM = "aarch64-manylinux_2_28"
# What a user's settings could do to these calls: a home install, a refusal outside of a venv.
SETTINGS = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
REMEDY = f"{sys.executable} -m ensurepip --upgrade"
UNPINNED = "asked for, so not pinned; checked by the index's own digest"


def refuse_without_installer() -> None:
    """Raise MissingDependencyError where there is neither pip nor uv."""
    _installer("3.13")


def install(wheels: Sequence[Wheel], python: str, site: Path, progress: Progress) -> None:
    """Put pinned wheels into `site`, for a Python version such as "3.13".

    Raises MissingDependencyError without pip and uv, EmoExportError when a wheel can't be had or
    is not the pinned one.
    """
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}" for wheel in wheels]
    shown = ", ".join(f"{wheel.name} {wheel.version}" for wheel in wheels)
    _install(lines, ["--require-hashes"], python, site, shown, progress)
    progress.on_bytes(sum(wheel.nbytes for wheel in wheels))


def install_unpinned(name: str, version: str, python: str, site: Path, progress: Progress) -> None:
    """Put another version of one package into `site`, as the package index has it."""
    _install([f"{name}=={version}"], [], python, site, f"{name} {version}", progress)


def _install(
    lines: Sequence[str],
    options: Sequence[str],
    python: str,
    site: Path,
    shown: str,
    progress: Progress,
) -> None:
    progress.on_stage(f"fetching arm64 wheels for Python {python}: {shown}")
    scratch = site.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
    common = ["--no-deps", "--only-binary", ":all:", "--target", str(site), *options]
    command = [*_installer(python), *common, "-r", str(scratch / "requirements.txt")]
    done = run(command, scratch, SETTINGS)
    if done.code:
        raise EmoExportError(
            f"the arm64 wheels of {shown} could not be installed (network? an index that lacks "
            f"them?):\n{done.tail(6)}"
        )


def _installer(python: str) -> list[str]:
    """`pip install` of this interpreter, else `uv pip install`, for the other platform."""
    if importlib.util.find_spec("pip") is not None:
        tags = [f"--platform={platform}" for platform in PLATFORMS]
        abis = [f"--abi=cp{python.replace('.', '')}", "--abi=abi3", "--abi=none"]
        target = [*tags, *abis, f"--python-version={python}", "--implementation=cp"]
        # pip 23.0, which Debian 12 has, asks it of this Python; the tags say which one it is for.
        target.append("--ignore-requires-python")
        return [sys.executable, "-m", "pip", "install", "-q", "--no-compile", *target]
    uv = shutil.which("uv")
    if uv is not None:
        return [
            uv,
            "pip",
            "install",
            "-q",
            f"--python-platform={UV_PLATFORM}",
            f"--python-version={python}",
            f"--python={sys.executable}",
        ]
    raise MissingDependencyError(
        f"the arm64 wheels of emulated devices are fetched by pip or uv, and there is neither: "
        f"{REMEDY}"
    )


def installed(site: Path) -> dict[str, str]:
    """Name -> version of what lies in `site`, by its own metadata."""
    found = metadata.distributions(path=[str(site)])
    return {str(one.name).lower().replace("_", "-"): one.version for one in found}
