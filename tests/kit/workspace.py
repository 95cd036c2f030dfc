"""A folder that all test processes of a session share; what they all need is made there once."""

from __future__ import annotations

import atexit
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

SHARED = "EMO_EXPORT_TESTS_WORKSPACE"


@functools.cache
def workspace() -> Path:
    """The folder that pytest's first process made, or one that goes away with this process."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    folder = Path(tempfile.mkdtemp(prefix="emo-export-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """A file or folder of the workspace, made by whichever process asks for it first."""
    place = workspace() / name.replace(":", "_").replace(" ", "_")
    with place.with_name(f".{place.name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        if not lock.read():  # what failed half-way is not whole
            make(place)
            lock.write("made")
    return place


def computed_once(name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays by name, computed by whichever process asks first."""

    def make(place: Path) -> None:
        with place.open("wb") as file:
            np.savez(file, **compute())

    with np.load(made_once(name, make)) as stored:
        return {key: stored[key] for key in stored.files}
