"""ggml's own quantisers and dequantisers, called in the xllamacpp wheel on all cores.

Source: ggml.h (`ggml_quantize_chunk`, `ggml_quantize_init`, `ggml_quantize_requires_imatrix`),
ggml-quants.h (`dequantize_row_*`). ctypes lets go of the interpreter's lock while C works, so that
plain threads use every core.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_bool, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.base.install import install_command
from emo_export.base.llama_library import library_path
from emo_export.converters.row_tasks import spread
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32
from emo_export.model.importance import steadied

Bytes = npt.NDArray[np.uint8]

_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_quantize_init": (None, (c_int,)),
    "ggml_quantize_requires_imatrix": (c_bool, (c_int,)),
    "ggml_quantize_chunk": (
        c_size_t,
        (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p),
    ),
}


@functools.cache
def _library() -> ctypes.CDLL:
    path = library_path("writing GGUF")
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)
    except (OSError, AttributeError) as error:
        raise EmoExportError(
            f"{path} cannot quantise ({error}); install a version that can: "
            f"{install_command('llama')}"
        ) from error
    return library


@functools.cache
def _prepare(kind: int) -> None:
    """Build a type's tables once; ggml does it lazily, which would race between threads."""
    _library().ggml_quantize_init(kind)


@functools.cache
def requires_importance(kind: int) -> bool:
    """Whether ggml refuses (it aborts the process) to quantise to this type without importance."""
    return bool(_library().ggml_quantize_requires_imatrix(kind))


def quantize(rows: F32, kind: int, row_bytes: int, importance: F32 | None) -> Bytes:
    """Rows (N, C) float32, importance (C,) or None -> bytes (N, row_bytes) of ggml type `kind`.

    Raises EmoExportError for importance of another width or that is no number, or where the type
    needs one.
    """
    if importance is not None and importance.shape != rows.shape[1:]:
        raise EmoExportError(
            f"importance of {importance.shape} beside rows of {rows.shape[1]} columns"
        )
    if importance is None and requires_importance(kind):
        raise EmoExportError(f"ggml type {kind} needs an importance matrix")
    source = np.ascontiguousarray(rows, dtype=np.float32)
    weights = None if importance is None else steadied(np.asarray(importance, np.float32))
    packed = np.empty((source.shape[0], row_bytes), np.uint8)
    _prepare(kind)
    chunk = _library().ggml_quantize_chunk

    def work(start: int, stop: int) -> None:
        chunk(
            kind,
            source.ctypes.data,
            packed.ctypes.data,
            start * source.shape[1],
            stop - start,
            source.shape[1],
            None if weights is None else weights.ctypes.data,
        )

    spread(work, *source.shape)
    return packed


def dequantize(packed: Bytes, name: str, cols: int) -> F32:
    """Bytes (N, row bytes) of the ggml type called `name` in C -> rows (N, cols) float32."""
    function = getattr(_library(), f"dequantize_row_{name}")
    function.restype, function.argtypes = None, [c_void_p, c_void_p, c_int64]
    source = np.ascontiguousarray(packed)
    rows = np.empty((source.shape[0], cols), np.float32)

    def work(start: int, stop: int) -> None:
        count = (stop - start) * cols
        function(source[start:].ctypes.data, rows[start:].ctypes.data, count)

    spread(work, *rows.shape)
    return rows
