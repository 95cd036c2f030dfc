"""Prompt caches: used where they are of the model, told and refused where they are not."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.interfaces import Rewinding
from emo_export.runtimes.opening import open_runtime
from emo_export.runtimes.prompt_cache import load, save
from emo_export.runtimes.remembering import Remembering
from tests.kit.exporting import exported
from tests.kit.paths import NANO

IDS = np.arange(30) * 41 % 4096
TARGETS = ["gguf:q4_0", "onnx:int4", pytest.param("onnx:int4@if", marks=pytest.mark.slow)]


def opened(path: Path, kv_cache: str | None = None) -> Remembering:
    model: Rewinding = open_runtime(path, 1, kv_cache=kv_cache)
    return Remembering(model)


def saved(path: Path, file: Path, kv_cache: str | None = None) -> np.ndarray:
    """A cache of the first 20 ids; logits after all of them, computed without it."""
    memory = opened(path, kv_cache)
    logits = memory.forward(IDS, last=True)
    save(file, path, memory, 20)
    memory.close()
    return logits


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_goes_on_from_it(target: str, tmp_path: Path) -> None:
    path, file = exported(NANO, target), tmp_path / "cache"
    want = saved(path, file)
    assert file.stat().st_mode & 0o777 == 0o600
    memory = opened(path)
    assert load(file, path, memory) == ""
    assert memory.ids == IDS[:20].tolist()
    rest = memory.unread(IDS.tolist())
    assert rest.tolist() == IDS[20:].tolist()
    np.testing.assert_allclose(memory.forward(rest, last=True), want, rtol=0, atol=2e-3)
    memory.close()


@pytest.mark.parametrize(
    ("target", "kv_cache"),
    [("gguf:q4_0", "q8_0"), ("onnx:int4", "int8")],
)
@pytest.mark.slow
def test_types_of_the_cache_are_told_apart(target: str, kv_cache: str, tmp_path: Path) -> None:
    path, file = exported(NANO, target), tmp_path / "cache"
    saved(path, file, kv_cache)
    memory = opened(path, kv_cache)
    assert load(file, path, memory) == "" and len(memory.ids) == 20
    memory.close()
    memory = opened(path)
    assert "its cache differ" in load(file, path, memory) and memory.ids == []
    memory.close()


def test_other_files_of_a_model_are_noticed(tmp_path: Path) -> None:
    path, file = tmp_path / "m.gguf", tmp_path / "cache"
    shutil.copyfile(exported(NANO, "gguf:q4_0"), path)
    saved(path, file)
    before = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the time alone says nothing
    memory = opened(path)
    assert "its files differ" in load(file, path, memory) and memory.ids == []
    memory.close()


@pytest.mark.parametrize("target", TARGETS[:2])
def test_a_cache_that_says_something_else_is_not_used(target: str, tmp_path: Path) -> None:
    path, file = exported(NANO, target), tmp_path / "cache"
    memory = opened(path)
    memory.forward(IDS, last=True)
    memory.ids[3] = 77  # of another text than the keys and values
    memory.ids[19] = 78
    save(file, path, memory, 20)
    memory.close()
    with np.load(file) as stored:
        arrays: dict[str, Any] = dict(stored)
    memory = opened(path)
    assert load(file, path, memory) == ""  # what was computed last is of the ids that it tells
    arrays["logits"] = arrays["logits"][::-1].copy()
    _sealed(file, arrays)
    assert load(file, path, memory) == "this model does not say what it said then"
    assert memory.ids == []
    memory.close()


def _sealed(file: Path, arrays: dict[str, Any]) -> None:
    """With a digest that fits: what a stranger could make."""
    import json

    from emo_export.runtimes.prompt_cache import _digest

    about = json.loads(str(arrays.pop("about")))
    about["digest"] = _digest(arrays)
    np.savez(file.with_suffix(".npz"), about=np.array(json.dumps(about)), **arrays)
    file.with_suffix(".npz").replace(file)


@pytest.mark.parametrize("target", TARGETS[:2])
def test_what_is_no_whole_cache_is_refused(target: str, tmp_path: Path) -> None:
    path, file = exported(NANO, target), tmp_path / "cache"
    saved(path, file)
    whole = file.read_bytes()
    with np.load(file) as stored:
        arrays: dict[str, Any] = dict(stored)
    state = next(name for name in arrays if name.startswith("state/"))
    memory = opened(path)
    for content in (b"", b"hello", whole[:-100], whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(EmoExportError, match="is not a prompt cache"):
            load(file, path, memory)
    for changed in (
        {**arrays, "ids": arrays["ids"][:1]},
        {**arrays, "ids": arrays["ids"].astype(np.float32)},
        {**arrays, "ids": -arrays["ids"] - 1},
        {**arrays, "logits": arrays["logits"].astype("U9")},
        {**arrays, "logits": arrays["logits"] * np.nan},
        {**arrays, state: arrays[state][..., :-1]},
        {name: array for name, array in arrays.items() if name != state},
    ):
        _sealed(file, dict(changed))
        with pytest.raises(EmoExportError, match=f"^{re.escape(str(file))}: "):
            load(file, path, memory)
    np.savez(file.with_suffix(".npz"), **{**arrays, state: arrays[state] + 1})
    with pytest.raises(EmoExportError, match="is damaged"):
        load(file.with_suffix(".npz"), path, memory)
    memory.close()
