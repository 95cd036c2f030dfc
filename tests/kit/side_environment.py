"""Other Python environments for packages that can't stand beside ours, set up in a cache.

optimum-onnx 0.1.0 needs transformers below 4.58, and that huggingface_hub below 1.0. Such an
environment holds only what differs: everything else (torch, onnx, onnxruntime, numpy) is the very
installation that runs the tests, through a .pth file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

OPTIMUM = ("optimum-onnx==0.1.0", "optimum==2.1.0", "transformers==4.57.6")
TRANSFORMERS_5 = ("transformers==5.23.0",)
READY = "READY"  # written last: a folder that has it is whole


class SetUpError(RuntimeError):
    """The environment can't be made here, or what ran in it failed."""


@functools.cache
def python_with(requirements: tuple[str, ...]) -> Path:
    """The interpreter of an environment with these requirements, made when first asked for."""
    outside = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    facts = "\n".join([sys.version, *outside, *requirements])
    name = f"{requirements[0]}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    place = Path(cache) / "emo-export-tests" / name
    if not (place / READY).is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        _set_up(place, outside, requirements)
    return place / "bin" / "python"


def run_in(requirements: tuple[str, ...], *arguments: object, timeout: float = 600) -> str:
    """Run a script in such an environment, without a network; answers its stdout."""
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python_with(requirements)), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=kept | ours, timeout=timeout, check=False
    )
    if done.returncode != 0:
        raise SetUpError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout


def _set_up(place: Path, outside: list[str], requirements: tuple[str, ...]) -> None:
    """Make the folder beside its place, then give it its name in one step."""
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as name:
        work = Path(name) / "venv"
        venv.create(work, with_pip=False)
        (packages,) = work.glob("lib/python*/site-packages")
        (packages / "outside.pth").write_text("".join(f"{path}\n" for path in outside), "utf-8")
        # pip too is the one outside.
        command = [str(work / "bin" / "python"), "-m", "pip", "install", "-q", "--no-compile"]
        command += requirements
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SetUpError(
                f"could not install {', '.join(requirements)} into {work}: this needs pip in the "
                f"environment of the tests, and a package index\n{done.stderr[-2000:]}"
            )
        (work / READY).touch()
        try:
            work.rename(place)
        except OSError:
            if not (place / READY).is_file():  # else another process was faster
                raise
