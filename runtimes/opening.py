"""Which engine opens a path, and with how many threads. Light: what a device uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.base.install import need
from emo_export.base.llama_library import own_library
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.package import size_of
from emo_export.interfaces import Runtime, Tokenizer
from emo_export.spec import GGUF

if TYPE_CHECKING:
    from emo_export.files.gguf_header import GgufFile

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
) -> Runtime:
    """The engine for a .gguf file or an ONNX folder; a small model gets one thread.

    `parity`, `context`, `prepacked` and `spin` are those of LlamaCpp and OnnxModel; the last two
    have no meaning for a .gguf file.
    """
    if threads is None and size_of(path) < SMALL_MODEL:
        threads = 1
    if path.is_dir():
        from emo_export.runtimes.ort.model import OnnxModel

        return OnnxModel(path, threads=threads, context=context, prepacked=prepacked, spin=spin)
    from emo_export.files.gguf_header import read_gguf
    from emo_export.runtimes.llama.model import LlamaCpp

    _check_experts(path, read_gguf(path))  # a crafted header hangs or kills other readers
    return LlamaCpp(path, threads=threads, context=context, parity=parity)


def missing_engine(family: str) -> str:
    """What the engine of a family lacks here, or an empty string."""
    try:
        if family == GGUF:
            if own_library() is None:
                need(["xllamacpp"], "llama", "llama.cpp")
        else:
            need(["onnxruntime", "tokenizers"], "ort", "ONNX Runtime")
    except MissingDependencyError as error:
        return str(error)
    return ""


def tokenizer_of(path: Path, runtime: Runtime) -> Tokenizer:
    """The tokenizer that belongs to an opened model."""
    from emo_export.runtimes.llama.model import LlamaCpp

    if isinstance(runtime, LlamaCpp):
        return runtime.tokenizer()
    from emo_export.runtimes.ort.tokenizer import HfTokenizer

    return HfTokenizer(path)


def _check_experts(path: Path, file: GgufFile) -> None:
    """Refuse counts of experts at which llama.cpp ends the process instead of answering."""
    arch = str(file.keys.get("general.architecture"))
    count, used = (file.keys.get(f"{arch}.{key}") for key in ("expert_count", "expert_used_count"))
    if isinstance(count, int) and count > 0 and not (isinstance(used, int) and 0 < used <= count):
        raise EmoExportError(
            f"{path}: {arch}.expert_used_count is {used!r} of {count} experts, which llama.cpp "
            "can't open; convert the checkpoint again"
        )
