"""The cache of prepacked copies: weights as ONNX Runtime's kernels want them, mapped from disk.

Without a copy every packed weight lies in anonymous memory, which a device cannot drop under
pressure. A copy belongs to one model, CPU and ONNX Runtime; it appears under its name only when it
is whole, and another for the same folder is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from emo_export.base.disk import cache_folder, flush, make_private, writing
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.onnx_header import read_onnx
from emo_export.runtimes.ort.engine import MODEL, check_engine
from emo_export.runtimes.ort.prepacked_key import PrepackedKey, prepacked_key
from emo_export.runtimes.ort.prepacking import GROUP_BYTES, write_prepacked

RECORD = "prepacked.json"
UNFINISHED = ".emo-export-prepacking-"
PACKED_OPS = ("com.microsoft.QMoE", "If")
"""Graphs whose experts ONNX Runtime packs; those of the others it maps as they are."""

ROOM = 2.25
"""Bytes of a copy beside those of the weights, at most: it holds them as they were and packed.
While it is made, one group of them lies on the disk twice."""


def default_cache() -> Path:
    """Where copies are kept. Raises EmoExportError where this user has no home folder."""
    return cache_folder("prepacked", "name a folder with --cache-dir")


def prepacked_copy(
    folder: Path, cache: Path, say: Callable[[str], None], group_bytes: int = GROUP_BYTES
) -> Path:
    """The prepacked copy of an ONNX folder, for `OnnxModel(folder, prepacked=…)`.

    It is made first where the cache has none that fits, after `say` has told its size. Raises
    EmoExportError for a folder that the engine cannot open, a graph that gains nothing, and a disk
    that is short.
    """
    check_engine(folder)
    _check_gain(folder)
    key = prepacked_key(folder)
    place = cache / f"{folder.resolve().name}-{key.digest}"
    if not _wrong(place):
        return place
    with writing(cache):
        make_private(cache)
    with _locked(cache, say):
        _remove_unfinished(cache)
        _remove_stale(cache, key, place, say)
        wrong = _wrong(place)  # another process may have made it meanwhile
        if wrong:
            if os.path.lexists(place):
                say(f"{place}: {wrong}; making it again")
                _remove(place)
            _build(folder, place, key, say, group_bytes)
    return place


def _check_gain(folder: Path) -> None:
    ops = read_onnx(folder / MODEL).ops
    if not any(name in ops for name in PACKED_OPS):
        raise EmoExportError(
            f"{folder}: a prepacked copy is of little use here: ONNX Runtime maps the experts of "
            "this graph from the file as they are; run without --cache-prepacked"
        )


def _wrong(place: Path) -> str:
    """What is wrong with a copy, or an empty string."""
    if not (place / RECORD).is_file():
        return "has no record of what it is"
    try:
        files = read_json(place / RECORD).get("files")
    except EmoExportError as error:
        return str(error)
    if not isinstance(files, dict) or MODEL not in files:
        return f"its {RECORD} does not list its files"
    for name, recorded in files.items():
        path = place / name
        if not path.is_file():
            return f"{name} is missing"
        found = _state(path)
        if found != recorded:
            return f"{name} has {found} as bytes and time of change in ns, expected {recorded}"
    return ""


def _state(path: Path) -> list[int]:
    """Bytes, and when the data changed in ns: tells a copy that was written to."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


@contextmanager
def _locked(cache: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One process changes the cache at a time; the system lets go of a killed one's lock."""
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that changes {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(place: Path) -> None:
    """Remove what stands under a name of ours; where a link points to stays."""
    try:
        if place.is_symlink() or not place.is_dir():
            place.unlink()
        else:
            shutil.rmtree(place)
    except OSError as error:
        raise EmoExportError(f"{place}: cannot be removed ({error.strerror})") from error


def _remove_unfinished(cache: Path) -> None:
    """What killed processes left; nobody else builds while we hold the lock."""
    for path in cache.glob(f"{UNFINISHED}*"):
        _remove(path)


def _remove_stale(cache: Path, key: PrepackedKey, place: Path, say: Callable[[str], None]) -> None:
    """Remove copies of the same folder that were made from or for something else."""
    wanted = json.loads(json.dumps(asdict(key)))  # with lists for tuples, as a record has them
    for record in cache.glob(f"*/{RECORD}"):
        old = record.parent
        try:
            made = read_json(record).get("key")
        except EmoExportError:
            continue  # not known to be ours
        if old == place or not isinstance(made, dict) or made.get("source") != key.source:
            continue
        changed = [name for name in wanted if made.get(name) != wanted[name]]
        say(f"removing {old}: {', '.join(changed)} changed since it was made")
        _remove(old)


def _build(
    folder: Path, place: Path, key: PrepackedKey, say: Callable[[str], None], group_bytes: int
) -> None:
    cache = place.parent
    needed = int(ROOM * (key.weight_bytes + min(group_bytes, key.weight_bytes)))
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise EmoExportError(
            f"{cache}: a prepacked copy of {folder} needs up to {needed / 1e6:.0f} MB, its disk "
            f"has {free / 1e6:.0f} MB free; name a folder on another disk with --cache-dir"
        )
    say(
        f"prepacking {key.weight_bytes / 1e6:.0f} MB of weights once for this CPU and ONNX Runtime,"
        f" about {ROOM * key.weight_bytes / 1e6:.0f} MB in {place}"
    )
    start = time.monotonic()
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=cache))
    try:
        write_prepacked(folder, unfinished, group_bytes)
        if prepacked_key(folder) != key:
            raise EmoExportError(f"{folder}: changed while it was prepacked; run again")
        files = {path.name: _state(path) for path in sorted(unfinished.iterdir())}
        record = json.dumps({"key": asdict(key), "files": files}, indent=2)
        with writing(unfinished / RECORD):
            (unfinished / RECORD).write_text(record + "\n", encoding="utf-8")
            flush(unfinished / RECORD)
            unfinished.rename(place)
            flush(cache)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    made = sum(size for size, _ in files.values())
    say(f"prepacked in {time.monotonic() - start:.1f} s: {made / 1e6:.0f} MB")
