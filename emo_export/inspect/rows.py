"""Rows of a GGUF's tensor as float32, without reading the rest.

F32, F16, BF16 and Q8_0 need numpy alone, so that a light install can look at routers and at the
attention of most files; other types need gguf-py. Source: ggml-common.h (block_q8_0).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emo_export.base.install import install_command
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.gguf_header import GgufTensor

MAX_BYTES = 1 << 25  # of one read: what is looked at are single heads and routers
F32 = npt.NDArray[np.float32]


def read_rows(path: Path, tensor: GgufTensor, start: int, count: int) -> F32:
    """Rows `start` to `start + count` of a tensor whose leading axes are flattened: (count, cols).

    `tensor` comes from read_gguf, which has checked that its bytes lie in the file.
    Raises EmoExportError when they can't be read, MissingDependencyError when only gguf-py could.
    """
    rows, cols = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    width = tensor.nbytes // rows
    if not 0 <= start <= start + count <= rows or count * max(width, cols * 4) > MAX_BYTES:
        raise EmoExportError(f"{path}: {tensor.name} has no {count} rows that could be looked at")
    try:
        with path.open("rb") as handle:
            handle.seek(tensor.offset + start * width)
            raw = handle.read(count * width)
    except OSError as error:
        raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error
    if len(raw) != count * width:
        raise EmoExportError(f"{path}: {tensor.name} is truncated")
    return _decode(raw, tensor, count)


def _decode(raw: bytes, tensor: GgufTensor, count: int) -> F32:
    shape = (count, tensor.shape[-1])
    if tensor.type in ("F32", "F16"):
        kind = "<f4" if tensor.type == "F32" else "<f2"
        return np.frombuffer(raw, kind).astype(np.float32).reshape(shape)
    if tensor.type == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if tensor.type == "Q8_0":
        blocks = np.frombuffer(raw, [("d", "<f2"), ("q", "i1", 32)])
        values: F32 = blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
        return values.reshape(shape)
    return _decode_by_gguf(raw, tensor, shape)


def _decode_by_gguf(raw: bytes, tensor: GgufTensor, shape: tuple[int, int]) -> F32:
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(f"{tensor.type} needs {install_command('convert')}") from (
            error
        )
    try:
        kind = gguf.GGMLQuantizationType[tensor.type]
        data = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
        values: F32 = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(shape)
    except (KeyError, NotImplementedError, ValueError) as error:
        raise EmoExportError(f"{tensor.name}: gguf-py does not decode {tensor.type}") from error
    return values
