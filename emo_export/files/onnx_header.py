"""What a model.onnx says of itself, read from the protobuf wire format without the onnx package.

Every length is held against the bytes that are there, and weights inside the file are stepped
over. Source: onnx `onnx.proto3` (field numbers, element types), protobuf's encoding guide.
"""

from __future__ import annotations

import math
import mmap
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

from emo_export.base.plain_file import open_plain
from emo_export.errors import EmoExportError

MAX_FILE = 1 << 31  # protobuf's limit
MAX_FIELDS = 250_000  # of all messages; a graph with one `If` per expert has some 100 000
MAX_NAME, MAX_TEXT = 1 << 16, 1 << 20  # bytes of a name; of a value of the metadata
MAX_DEPTH, MAX_RANK = 8, 16  # of graphs within graphs; of a tensor
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
# TensorProto.DataType from 1 on: name and bits of an element
_ELEMENTS = (
    "FLOAT 32,UINT8 8,INT8 8,UINT16 16,INT16 16,INT32 32,INT64 64,STRING 0,BOOL 8,FLOAT16 16,"
    "DOUBLE 64,UINT32 32,UINT64 64,COMPLEX64 64,COMPLEX128 128,BFLOAT16 16,FLOAT8E4M3FN 8,"
    "FLOAT8E4M3FNUZ 8,FLOAT8E5M2 8,FLOAT8E5M2FNUZ 8,UINT4 4,INT4 4,FLOAT4E2M1 4,FLOAT8E8M0 8,"
    "UINT2 2,INT2 2"
).split(",")
ELEMENTS = {i: (text.split()[0], int(text.split()[1])) for i, text in enumerate(_ELEMENTS, 1)}
Span = tuple[int, int]  # where the bytes of a field begin and end
Value = int | Span


@dataclass(frozen=True)
class OnnxTensor:
    """One initializer; `location` is the file it lies in, empty when that is the model itself."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    location: str
    offset: int
    length: int


@dataclass
class OnnxFile:
    """What model.onnx says; `ops` counts nodes by `domain.OpType`, those of inner graphs too."""

    ir_version: int
    producer: str
    opsets: dict[str, int]
    metadata: dict[str, str]
    inputs: list[str]
    outputs: list[str]
    initializers: list[OnnxTensor]
    ops: Counter[str]
    size: int


def read_onnx(path: Path) -> OnnxFile:
    """Read model.onnx. Raises EmoExportError naming the file and what is malformed in it."""
    try:
        with open_plain(path) as f:
            size = os.fstat(f.fileno()).st_size
            if not 0 < size < MAX_FILE:
                raise EmoExportError(f"{path}: is no file of 1 to {MAX_FILE - 1} bytes")
            with mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ) as raw:
                return _Reader(path, raw).model(size)
    except UnicodeDecodeError as error:
        raise EmoExportError(f"{path}: has a name that is not UTF-8 ({error.reason})") from error
    except (OSError, ValueError) as error:  # ValueError: it shrank
        raise EmoExportError(f"{path}: cannot be read ({error})") from error


class _Reader:
    """Walks over messages; a field is its number and either an int or the span of its bytes."""

    def __init__(self, path: Path, raw: mmap.mmap) -> None:
        self._path, self._raw, self._left = path, raw, MAX_FIELDS

    def model(self, size: int) -> OnnxFile:
        fields = [f for f in self._fields((0, size)) if f[0] in (1, 2, 7, 8, 14)]
        found = dict(fields)
        version, producer = self._int(found.get(1, 0)), self._text(found.get(2, (0, 0)))
        pairs = [self._pair(value) for number, value in fields if number == 8]
        opsets = {self._text(domain): self._int(opset) for domain, opset in pairs}
        meta = self._strings(fields, 14)
        model = OnnxFile(version, producer, opsets, meta, [], [], [], Counter(), size)
        if not version or not opsets or [number for number, _ in fields].count(7) != 1:
            self._refuse("holds no ONNX model (an IR version, opsets and one graph)")
        self._graph(found[7], model, 0)
        return model

    def _refuse(self, what: str) -> NoReturn:
        raise EmoExportError(f"{self._path}: {what}; is it a whole model.onnx?")

    def _varint(self, at: int, end: int) -> Span:
        """The number that begins at `at`, and where it ends."""
        value = 0
        for shift in range(0, 70, 7):
            if at < end:
                byte = self._raw[at]
                at += 1
                value |= (byte & 127) << shift
                if byte < 128:
                    return value & (1 << 64) - 1, at
        self._refuse(f"the number before byte {at} has no end")

    def _fields(self, span: Value) -> Iterator[tuple[int, Value]]:
        at, end = self._span(span)
        while at < end:
            self._left -= 1
            key, at = self._varint(at, end)
            wire, value, size = key & 7, 0, 8 if key & 7 == FIXED64 else 4
            if wire in (VARINT, BYTES):
                value, at = self._varint(at, end)
                size = value if wire == BYTES else 0
            if wire not in (VARINT, BYTES, FIXED32, FIXED64) or key < 8 or self._left < 0:
                self._refuse(f"the field before byte {at} is not one of an ONNX model")
            if size > end - at:
                self._refuse(f"a field of {size} bytes at byte {at} runs past byte {end}")
            yield key >> 3, value if wire == VARINT else (at, at + size)
            at += size

    def _int(self, value: Value) -> int:
        if isinstance(value, tuple):
            self._refuse(f"there are bytes at byte {value[0]} where a number belongs")
        return value

    def _span(self, value: Value) -> Span:
        if isinstance(value, int):
            self._refuse(f"there is a number ({value}) where bytes belong")
        return value

    def _text(self, value: Value, most: int = MAX_NAME) -> str:
        begin, end = self._span(value)
        if end - begin > most:
            self._refuse(f"a text at byte {begin} has {end - begin} bytes, more than {most}")
        return self._raw[begin:end].decode("utf-8")

    def _pair(self, value: Value) -> tuple[Value, Value]:
        """Fields 1 and 2 of a message; one that is absent is empty."""
        found = dict(self._fields(value))
        return found.get(1, (0, 0)), found.get(2, (0, 0))

    def _strings(self, fields: list[tuple[int, Value]], wanted: int) -> dict[str, str]:
        pairs = [self._pair(value) for number, value in fields if number == wanted]
        return {self._text(key): self._text(text, MAX_TEXT) for key, text in pairs}

    def _graph(self, span: Value, model: OnnxFile, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._refuse(f"has graphs nested deeper than {MAX_DEPTH}")
        for number, value in self._fields(span):
            if number == 1:
                self._node(value, model, depth)
            elif number == 5:
                model.initializers.append(self._tensor(value))
            elif number in (11, 12) and depth == 0:
                ends = model.inputs if number == 11 else model.outputs
                ends.append(self._text(self._pair(value)[0]))

    def _node(self, span: Value, model: OnnxFile, depth: int) -> None:
        kind = domain = ""
        for number, value in self._fields(span):
            if number == 4:
                kind = self._text(value)
            elif number == 7:
                domain = self._text(value) + "."
            elif number == 5:  # an attribute, which may hold graphs
                for inner, part in self._fields(value):
                    if inner in (6, 11):
                        self._graph(part, model, depth + 1)
                    elif inner in (5, 10) and self._tensor(part).location:
                        self._refuse("a constant of a node lies in external data")
        model.ops[domain.removeprefix(".") + kind] += 1

    def _tensor(self, span: Value) -> OnnxTensor:
        fields = [f for f in self._fields(span) if f[0] in (1, 2, 8, 13, 14)]
        found = dict(fields)
        name, kind = self._text(found.get(8, (0, 0))), self._int(found.get(2, 0))
        sizes = (size for number, value in fields if number == 1 for size in self._dims(value))
        shape = list(islice(sizes, MAX_RANK + 1))
        if kind not in ELEMENTS or len(shape) > MAX_RANK or max(shape, default=0) >= 1 << 63:
            self._refuse(f"initializer {name!r} has shape {shape[:MAX_RANK]} and type {kind}")
        nbytes = -(-math.prod(shape) * ELEMENTS[kind][1] // 8)
        keys = {"location": "", "offset": "0", "length": str(nbytes)}
        if found.get(14) == 1:  # TensorProto.EXTERNAL
            keys |= self._strings(fields, 13)
            places = keys["offset"], keys["length"]
            if not all(re.fullmatch("[0-9]{1,18}", n) for n in places) or not keys["location"]:
                self._refuse(f"initializer {name!r} has external data at {keys!r:.200}")
        place = keys["location"], int(keys["offset"]), int(keys["length"])
        return OnnxTensor(name, tuple(shape), ELEMENTS[kind][0], nbytes, *place)

    def _dims(self, value: Value) -> Iterator[int]:
        if isinstance(value, int):
            yield value
            return
        at, end = value
        while at < end:
            size, at = self._varint(at, end)
            yield size
