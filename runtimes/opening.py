"""Which engine opens a path, and with how many threads. Light: what a device uses."""

from __future__ import annotations

from pathlib import Path

from emo_export.base.disk import size_of
from emo_export.errors import MissingDependencyError
from emo_export.interfaces import Rewinding, Runtime, Tokenizer
from emo_export.runtimes.families import LIGHT, family_at

SMALL_MODEL = 96 << 20
"""Below this many bytes one thread is as fast as several, and does not suffer when the machine is
busy: llama.cpp's threads wait for each other in a spin after every operator."""


def open_runtime(
    path: Path,
    threads: int | None,
    *,
    parity: bool = False,
    context: int | None = None,
    prepacked: Path | None = None,
    spin: bool = True,
    kv_cache: str | None = None,
) -> Rewinding:
    """The engine for a .gguf file or an ONNX folder; a small model gets one thread.

    `parity`, `context`, `prepacked`, `spin` and `kv_cache` are those of LlamaCpp and OnnxModel;
    `prepacked` and `spin` have no meaning for a .gguf file. Raises EmoExportError for a `kv_cache`
    that the engine can't have.
    """
    return family_at(path).open(
        path,
        fitting_threads(path, threads),
        parity=parity,
        context=context,
        prepacked=prepacked,
        spin=spin,
        kv_cache=kv_cache,
    )


def fitting_threads(path: Path, threads: int | None) -> int | None:
    """The threads asked for, else 1 for a small model and None (the engine's own) for others."""
    if threads is None and sum(map(size_of, family_at(path).files(path))) < SMALL_MODEL:
        return 1
    return threads


def missing_engine(family: str) -> str:
    """What the engine of a family lacks here, or an empty string."""
    try:
        LIGHT[family].need_engine()
    except MissingDependencyError as error:
        return str(error)
    return ""


def tokenizer_of(path: Path, runtime: Runtime) -> Tokenizer:
    """The tokenizer that belongs to an opened model."""
    return family_at(path).tokenizer(path, runtime)
