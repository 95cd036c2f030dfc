"""One safetensors file: its header, and tensors that are read when they are asked for.

The layout (8-byte little-endian header length, JSON header, data) is read with plain file reads
instead of a memory map: a 54 GB checkpoint never counts as memory of the process.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emo_export.base.json_file import parse_object
from emo_export.base.plain_file import open_plain
from emo_export.errors import BadValueError, EmoExportError
from emo_export.interfaces import F32
from emo_export.model.finite import check_finite

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
MAX_HEADER = 16 << 20  # bytes; the released model's has 1 MB, and what is parsed takes ten times it
MAX_RANK = 8


@dataclass(frozen=True)
class LazyTensor:
    """A shape, an element type and a place in a file; nothing is read until asked.

    `on_read` hears of bytes that are read: the tensor, the first one's place in it, the bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    on_read: Callable[[LazyTensor, int, memoryview], None] | None = field(
        default=None, compare=False, repr=False
    )

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes on disk of one row."""
        return self.shape[-1] * ITEM_BYTES[self.dtype]

    def part(self, index: int, start: int, stop: int) -> LazyTensor:
        """Rows start..stop of matrix `index` of a stack (N, R, C), as a matrix of its own."""
        count, rows, cols = self.shape
        if not (0 <= index < count and 0 <= start < stop <= rows):
            raise ValueError(f"{self.name}: no rows {start}..{stop} of matrix {index}")
        offset = self.offset + (index * rows + start) * self.row_bytes
        name = f"{self.name}[{index}, {start}:{stop}]"
        shape = (stop - start, cols)
        return LazyTensor(name, shape, self.dtype, self.file, offset, self.on_read)

    def rows(self, start: int, stop: int) -> F32:
        """Rows start..stop as float32, (stop - start, C); a vector counts as one row.

        Raises EmoExportError when the file ends early or a value is NaN or infinite.
        """
        total = self.shape[0] if len(self.shape) > 1 else 1
        if not 0 <= start <= stop <= total:
            raise EmoExportError(f"{self.name}: rows {start}..{stop} of {total} were asked for")
        cols = self.shape[-1]
        item = ITEM_BYTES[self.dtype]
        count = (stop - start) * cols
        kind: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
        try:
            with self.file.open("rb") as handle:
                handle.seek(self.offset + start * cols * item)
                # Not np.fromfile: it turns a Ctrl-C that falls into it into a TypeError.
                raw = np.empty(count, dtype=kind[self.dtype])
                read = handle.readinto(raw.data.cast("B")) if count else 0
        except OSError as error:
            raise EmoExportError(
                f"{self.file}: tensor {self.name} cannot be read ({error.strerror})"
            ) from error
        if read != raw.nbytes:
            raise EmoExportError(f"{self.file}: ends inside tensor {self.name}; fetch it again")
        if self.on_read is not None:
            self.on_read(self, start * cols * item, raw.data.cast("B"))
        values = _to_float32(raw, self.dtype).reshape(stop - start, cols)
        beyond = ", or beyond float32" if self.dtype == "F64" else ""
        try:
            check_finite(values, f"is not a finite number{beyond}")
        except BadValueError as error:
            raise EmoExportError(
                f"{self.file}: tensor {self.name}: {error.below(start)}; "
                "the checkpoint is damaged or its training diverged"
            ) from error
        return values


def _to_float32(raw: Any, dtype: str) -> F32:
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        raw = wide.view(np.float32)
    with np.errstate(over="ignore"):  # what float64 alone can hold becomes infinite
        values: F32 = raw.astype(np.float32, copy=False)
    return values


def rounded(rows: F32, dtype: str) -> F32:
    """The nearest values that a tensor of `dtype` holds, ties to even; infinite beyond them."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return rows.astype(np.float16).astype(np.float32)
    if dtype != "BF16":
        return rows
    bits = np.ascontiguousarray(rows).view(np.uint32)
    nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    out: F32 = nearest.astype(np.uint32, copy=False).view(np.float32)
    return out


def read_header(file: Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, from its header alone.

    Raises EmoExportError for a header that is truncated, malformed, or does not fit the file.
    """
    try:
        with open_plain(file) as handle:
            size = os.fstat(handle.fileno()).st_size
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
                raise EmoExportError(
                    f"{file}: is not a whole safetensors file (header of {length} bytes "
                    f"in a file of {size}); fetch it again"
                )
            raw = handle.read(length)
    except OSError as error:
        raise EmoExportError(f"{file}: cannot be read ({error.strerror})") from error
    header = parse_object(raw, f"{file}: its safetensors header")
    header.pop("__metadata__", None)
    base = 8 + length
    tensors = {name: _entry(file, name, entry, base, size) for name, entry in header.items()}
    _check_cover(file, tensors.values(), base, size)
    return tensors


def _check_cover(file: Path, tensors: Iterable[LazyTensor], base: int, size: int) -> None:
    """The format's rule: tensors lie one after the other, with no overlap, hole or rest."""
    end, after = base, "the header"
    for tensor in sorted(tensors, key=lambda t: t.offset):
        if tensor.offset != end:
            raise EmoExportError(
                f"{file}: tensor {tensor.name} begins at byte {tensor.offset}, "
                f"not at {end} where {after} ends; the header is damaged"
            )
        end, after = end + tensor.nbytes, f"tensor {tensor.name}"
    if end != size:
        raise EmoExportError(f"{file}: has {size - end} bytes after {after}; fetch it again")


def _entry(file: Path, name: str, entry: Any, base: int, size: int) -> LazyTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise EmoExportError(f"{file}: header entry of tensor {name} is malformed") from error
    if not all(type(n) is int and abs(n) < 1 << 63 for n in (*shape, begin, end)):
        raise EmoExportError(f"{file}: header entry of tensor {name} holds other than integers")
    if len(shape) > MAX_RANK:
        raise EmoExportError(f"{file}: tensor {name} has {len(shape)} dimensions")
    if dtype not in ITEM_BYTES:
        raise EmoExportError(
            f"{file}: tensor {name} is stored as {dtype}; only {', '.join(ITEM_BYTES)} are read"
        )
    tensor = LazyTensor(name, shape, dtype, file, base + begin)
    if min(shape, default=0) < 1 or not begin >= 0 or end - begin != tensor.nbytes:
        raise EmoExportError(
            f"{file}: tensor {name} of shape {list(shape)} and {dtype} "
            f"does not fit its {end - begin} bytes"
        )
    if base + end > size:
        raise EmoExportError(
            f"{file}: is truncated: tensor {name} should end at byte {base + end} "
            f"but the file has {size}; fetch it again"
        )
    return tensor
