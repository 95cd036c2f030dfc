"""A prompt's KV cache in a file, so that the next start need not read the prompt again.

The file is an .npz: `about`, what it is of, as JSON; `ids`, the tokens of its positions; and what
the engine calls its state. It is of use with the same model, engine and settings alone, and a
digest tells whether it is whole. It holds what was said: it is its user's alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.base.disk import whole
from emo_export.base.npz_file import read_npz
from emo_export.errors import EmoExportError
from emo_export.interfaces import Rewinding
from emo_export.runtimes.families import family_at
from emo_export.runtimes.remembering import Remembering

WHAT = "a prompt cache of emo-export"
LAYOUT = 1
CLOSE = 1e-3
"""Of the largest logit: another number of threads adds up in another order."""
_ABOUT, _IDS, _LOGITS, _STATE = "about", "ids", "logits", "state/"
State = Mapping[str, npt.NDArray[Any]]


def key_of(path: Path, runtime: Rewinding) -> dict[str, Any]:
    """What a cache must be of: the files of the model as they are now, engine and settings."""
    told = runtime.describe()
    stats = [(file.name, file.stat()) for file in sorted(family_at(path).files(path))]
    return {
        "layout": LAYOUT,
        "files": [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats],
        "engine": told["version"],
        "cache": told["KV cache"],
    }


def save(file: Path, path: Path, memory: Remembering, length: int) -> None:
    """Write the cache of the first `length` positions of the model at a path.

    What comes after is forgotten. Raises EmoExportError when the file can't be written.
    """
    ids = np.array(memory.ids[:length], np.int64)
    memory.rewind(length - 1)
    logits = memory.forward(ids[-1:], last=True)[-1]
    arrays: dict[str, Any] = {_IDS: ids, _LOGITS: logits}
    arrays |= {_STATE + name: array for name, array in memory.inner.state().items()}
    about = {"key": key_of(path, memory.inner), "digest": _digest(arrays)}
    arrays[_ABOUT] = np.array(json.dumps(about))
    with whole(file) as opened:
        if hasattr(os, "fchmod"):  # not on Windows
            os.fchmod(opened.fileno(), 0o600)
        np.savez(opened, **arrays)


def load(file: Path, path: Path, memory: Remembering) -> str:
    """Fill the cache of a model from a file; what keeps it from being used, empty: nothing does.

    What it gives is tried: the last position is computed anew and compared. Raises EmoExportError
    for a file that is no whole prompt cache, which is not to be replaced.
    """
    found = read_npz(file, WHAT)
    try:
        about = json.loads(str(found.pop(_ABOUT)))
        if about["digest"] != _digest(found):
            raise EmoExportError(f"{file}: is damaged; remove it to have it made anew")
        ids, logits = found.pop(_IDS), found.pop(_LOGITS)
        key = about["key"]
        if ids.dtype != np.int64 or ids.ndim != 1 or len(ids) < 2:
            raise ValueError("it has no tokens")
        if not isinstance(key, dict) or logits.dtype != np.float32 or not np.isfinite(logits).all():
            raise ValueError("it has no key or no logits")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EmoExportError(f"{file}: is not {WHAT} ({error!r})") from error
    wanted = key_of(path, memory.inner)
    if key != wanted:
        changed = [name for name, value in wanted.items() if key.get(name) != value]
        return f"its {', '.join(changed)} differ from what there is now"
    if len(ids) > memory.context_length:
        return f"it has {len(ids)} positions, the context {memory.context_length}"
    state = {name.removeprefix(_STATE): array for name, array in found.items()}
    if ids.min() < 0 or ids.max() >= memory.vocab_size:
        raise EmoExportError(f"{file}: has tokens that the model has not; remove it")
    try:
        memory.inner.put_back(state, len(ids))
        memory.ids[:] = ids.tolist()
        memory.rewind(len(ids) - 1)
        again = memory.forward(ids[-1:], last=True)[-1]
    except EmoExportError as error:
        raise EmoExportError(f"{file}: is damaged; remove it ({error})") from error
    if again.shape != logits.shape or not np.allclose(
        again, logits, rtol=0, atol=CLOSE * float(np.abs(logits).max())
    ):
        memory.reset()
        return "this model does not say what it said then"
    return ""


def _digest(arrays: State) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        total.update(array.data)
    return total.hexdigest()
