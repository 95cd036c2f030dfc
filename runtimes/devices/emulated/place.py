"""The cache folder of the emulated devices: where it is, who may write to it, what goes away.

Parts are made in a folder beside their place and renamed whole. All writers hold one lock, so that
anything half-made that a lock holder finds was left by a process that was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from emo_export.base.disk import cache_folder, make_private, writing
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.emulated.emulation import Version

SETTING = "EMO_EXPORT_DEVICES"
MARK = ".emo-export-devices"  # the lock; a folder that has it is ours
UNFIT = ('"', ":", "\n", "=")  # in apt.conf, in PYTHONPATH, before what env(1) starts
UNFINISHED = ".unfinished-"
VERSIONS = "VERSIONS.json"  # in every part: what it holds


def place() -> Path:
    """The cache folder, which need not exist.

    Raises EmoExportError where this user has no home folder, or the path can't be used.
    """
    given = os.environ.get(SETTING)
    folder = Path(given) if given else cache_folder("devices", f"set {SETTING} to a folder")
    folder = folder.absolute()
    unfit = next((mark for mark in UNFIT if mark in str(folder)), None)
    if unfit:
        raise EmoExportError(
            f"{folder}: a {unfit} in a path is more than apt, env or Python's search "
            f"path can take; set {SETTING} to another folder"
        )
    return folder


@contextmanager
def locked(folder: Path, on_stage: Callable[[str], None]) -> Iterator[None]:
    """Hold the only right to write here; what killed processes left is removed.

    Raises EmoExportError when the folder is someone else's or can't be written to.
    """
    _claim(folder)
    while True:
        with (folder / MARK).open("a") as mark:
            _wait_for(mark.fileno(), folder, on_stage)
            # `clean` may have removed the folder while we waited; its lock guards nothing.
            if _same_file(mark.fileno(), folder / MARK):
                for left in folder.glob(f"{UNFINISHED}*"):
                    # An apt that outlived its killed parent may still be writing.
                    shutil.rmtree(left, ignore_errors=True)
                yield
                return
        _claim(folder)


def _claim(folder: Path) -> None:
    with writing(folder):
        make_private(folder)
        if not (folder / MARK).exists():
            refuse_foreign(folder)
        (folder / MARK).touch()


def refuse_foreign(folder: Path) -> None:
    """Raise EmoExportError for a folder with files in it that `device setup` did not make."""
    if folder.exists() and not (folder / MARK).exists():
        found = next(iter(sorted(folder.iterdir())), None) if folder.is_dir() else folder
        if found is not None:
            raise EmoExportError(
                f"{folder} holds {found.name} and was not made by `emo-export device setup`; set "
                f"{SETTING} to another folder"
            )


def _wait_for(mark: int, folder: Path, on_stage: Callable[[str], None]) -> None:
    import fcntl  # not on Windows, where `doctor` only asks whether something is set up

    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_stage(f"another process is at work in {folder}; waiting for it")
        fcntl.flock(mark, fcntl.LOCK_EX)


def _same_file(mark: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(mark), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def making(folder: Path, name: str) -> Iterator[Path]:
    """A new folder to fill; it gets its name when all went well and leaves nothing otherwise.

    The lock must be held. Temporary files go to `scratch(part)`.
    """
    with unfinished(folder) as work:
        part = work / name
        part.mkdir()
        yield part
        os.sync()  # thousands of files: a name must not outlive their bytes
        if (folder / name).exists():  # damaged: a whole part is not made again
            shutil.rmtree(folder / name)
        part.rename(folder / name)


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A folder for what is not there to stay. The lock must be held."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as work:
        yield Path(work)


def scratch(part: Path) -> Path:
    """A folder for temporary files while a part is made, removed with it."""
    folder = part.parent / "scratch"
    folder.mkdir(exist_ok=True)
    return folder


def write_versions(part: Path, versions: Mapping[str, Version]) -> None:
    """Record what a part holds; this is written last and makes it whole."""
    content = {name: asdict(version) for name, version in versions.items()}
    (part / VERSIONS).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def versions_of(part: Path) -> dict[str, Version] | None:
    """What a part holds, or None where there is none that is whole."""
    if not (part / VERSIONS).is_file():
        return None
    return {name: Version(**said) for name, said in read_json(part / VERSIONS).items()}


def bytes_of(folder: Path) -> int:
    """The disk space of all files below, in bytes; a file with several names counts once."""
    found: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118 - many files
            except FileNotFoundError:  # another process is at work
                continue
            found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def remove_all(folder: Path, on_stage: Callable[[str], None]) -> int:
    """Remove the cache folder -> the bytes that it took; 0 where there is none.

    Raises EmoExportError for a folder that `device setup` did not make.
    """
    if not folder.exists():
        return 0
    refuse_foreign(folder)
    with locked(folder, on_stage):
        nbytes = bytes_of(folder)
        for entry in folder.iterdir():
            if entry.name == MARK:  # the lock goes last
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        shutil.rmtree(folder)
    return nbytes
