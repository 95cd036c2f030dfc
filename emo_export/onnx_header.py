"""What a model.onnx says of itself, read from the protobuf wire format without the onnx package.

Every length is held against the bytes that are there, and weights inside the file are stepped
over. Source: onnx `onnx.proto3` (field numbers, element types), protobuf's encoding guide.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from emo_export.errors import EmoExportError

MAX_FILE = 1 << 31  # protobuf's limit
MAX_FIELDS = 4_000_000  # of all messages; a graph with one `If` per expert has some 100 000
MAX_DEPTH = 8  # of graphs within graphs
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
EXTERNAL = 1  # TensorProto.DataLocation
# TensorProto.DataType -> (name, bits of an element)
ELEMENTS: Mapping[int, tuple[str, int]] = {
    number: (name, int(bits))
    for number, (name, bits) in enumerate(
        (
            entry.split()
            for entry in "FLOAT 32,UINT8 8,INT8 8,UINT16 16,INT16 16,INT32 32,INT64 64,STRING 0,"
            "BOOL 8,FLOAT16 16,DOUBLE 64,UINT32 32,UINT64 64,COMPLEX64 64,COMPLEX128 128,"
            "BFLOAT16 16,FLOAT8E4M3FN 8,FLOAT8E4M3FNUZ 8,FLOAT8E5M2 8,FLOAT8E5M2FNUZ 8,UINT4 4,"
            "INT4 4,FLOAT4E2M1 4,FLOAT8E8M0 8,UINT2 2,INT2 2".split(",")
        ),
        start=1,
    )
}


@dataclass(frozen=True)
class External:
    """Where an initializer's bytes lie; a `length` of None means up to the tensor's size."""

    location: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class OnnxTensor:
    """One initializer; `nbytes` is what its shape and element type come to."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    external: External | None


@dataclass(frozen=True)
class OnnxFile:
    """What model.onnx says; `ops` counts nodes by `domain.OpType`, those of inner graphs too."""

    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    metadata: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: tuple[OnnxTensor, ...]
    ops: Mapping[str, int]
    size: int


@dataclass
class _Graph:
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    initializers: list[OnnxTensor] = field(default_factory=list)
    ops: Counter[str] = field(default_factory=Counter)


def read_onnx(path: Path) -> OnnxFile:
    """Read model.onnx. Raises EmoExportError naming the file and what is malformed in it."""
    if not path.is_file():
        raise EmoExportError(f"{path}: is not a file")
    try:
        size = path.stat().st_size
        if not 0 < size < MAX_FILE:
            raise EmoExportError(f"{path}: has {size} bytes, a model.onnx has 1 to {MAX_FILE - 1}")
        with path.open("rb") as handle:
            with mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ) as raw:
                return _Reader(path, raw, size).model()
    except OSError as error:
        raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error


class _Span(tuple[int, int]):
    """Begin and end of a length-delimited field."""


class _Reader:
    """Walks over messages; a field is (number, an int or the span of its bytes)."""

    def __init__(self, path: Path, raw: mmap.mmap, size: int) -> None:
        self._path, self._raw, self._size = path, raw, size
        self._left = MAX_FIELDS

    def model(self) -> OnnxFile:
        version, producer = 0, ""
        opsets: dict[str, int] = {}
        metadata: dict[str, str] = {}
        graphs: list[_Span] = []
        for number, value in self._fields(_Span((0, self._size))):
            if number == 1:
                version = self._int(value)
            elif number == 2:
                producer = self._text(value)
            elif number == 7:
                graphs.append(self._span(value))
            elif number == 8:
                domain, opset = self._entry(value, 1, 2)
                opsets[self._text(domain)] = self._int(opset)
            elif number == 14:
                key, text = self._entry(value, 1, 2)
                metadata[self._text(key)] = self._text(text)
        if not version or len(graphs) != 1 or not opsets:
            self._refuse("has no ONNX model in it (IR version, one graph and opsets)")
        graph = _Graph()
        self._graph(graphs[0], graph, 0)
        ends = tuple(graph.inputs), tuple(graph.outputs)
        tensors, ops = tuple(graph.initializers), dict(sorted(graph.ops.items()))
        return OnnxFile(version, opsets, producer, metadata, *ends, tensors, ops, self._size)

    def _refuse(self, what: str) -> NoReturn:
        raise EmoExportError(f"{self._path}: {what}; is it a whole model.onnx?")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= end:
                break
            byte = self._raw[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value & (1 << 64) - 1, at
        self._refuse(f"a number at byte {at} has no end")

    def _fields(self, span: _Span) -> Iterator[tuple[int, int | _Span]]:
        at, end = span
        while at < end:
            self._left -= 1
            if self._left < 0:
                self._refuse(f"has more than {MAX_FIELDS} fields")
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            value: int | _Span
            if wire == VARINT:
                value, at = self._varint(at, end)
            elif wire in (BYTES, FIXED32, FIXED64):
                size = 8 if wire == FIXED64 else 4
                if wire == BYTES:
                    size, at = self._varint(at, end)
                if size > end - at:
                    self._refuse(f"a field of {size} bytes at byte {at} runs past byte {end}")
                value, at = _Span((at, at + size)), at + size
            else:
                self._refuse(f"byte {at} has wire type {wire}, which ONNX does not use")
            if number == 0:
                self._refuse(f"there is a field of number 0 before byte {at}")
            yield number, value

    def _int(self, value: int | _Span) -> int:
        if isinstance(value, _Span):
            self._refuse(f"there are bytes at byte {value[0]} where a number belongs")
        return value

    def _span(self, value: int | _Span) -> _Span:
        if not isinstance(value, _Span):
            self._refuse(f"there is a number ({value}) where bytes belong")
        return value

    def _text(self, value: int | _Span) -> str:
        begin, end = self._span(value)
        try:
            return self._raw[begin:end].decode("utf-8")
        except UnicodeDecodeError:
            self._refuse(f"the text at byte {begin} is not UTF-8")

    def _entry(self, value: int | _Span, *numbers: int) -> list[int | _Span]:
        """The last value of each of some fields of a message; text that is absent is empty."""
        found = dict(self._fields(self._span(value)))
        return [found.get(number, _Span((0, 0))) for number in numbers]

    def _graph(self, span: _Span, out: _Graph, depth: int) -> None:
        if depth > MAX_DEPTH:
            self._refuse(f"has graphs nested deeper than {MAX_DEPTH}")
        for number, value in self._fields(span):
            if number == 1:
                self._node(self._span(value), out, depth)
            elif number == 5:
                out.initializers.append(self._tensor(self._span(value)))
            elif number in (11, 12) and depth == 0:
                names = out.inputs if number == 11 else out.outputs
                names.append(self._text(self._entry(value, 1)[0]))

    def _node(self, span: _Span, out: _Graph, depth: int) -> None:
        kind, domain = "", ""
        for number, value in self._fields(span):
            if number == 4:
                kind = self._text(value)
            elif number == 7:
                domain = self._text(value)
            elif number == 5:
                for inner, graph in self._fields(self._span(value)):
                    if inner in (6, 11):
                        self._graph(self._span(graph), out, depth + 1)
        out.ops[f"{domain}.{kind}" if domain else kind] += 1

    def _tensor(self, span: _Span) -> OnnxTensor:
        name, kind, is_external = "", 0, False
        shape: list[int] = []
        pairs: dict[str, str] = {}
        for number, value in self._fields(span):
            if number == 1:
                shape += self._dims(value)
            elif number == 2:
                kind = self._int(value)
            elif number == 8:
                name = self._text(value)
            elif number == 13:
                key, text = self._entry(value, 1, 2)
                pairs[self._text(key)] = self._text(text)
            elif number == 14:
                is_external = self._int(value) == EXTERNAL
        if kind not in ELEMENTS or any(size >= 1 << 63 for size in shape):
            self._refuse(f"initializer {name!r} has shape {shape} and element type {kind}")
        type_name, bits = ELEMENTS[kind]
        nbytes = -(-math.prod(shape) * bits // 8)
        place = self._external(name, pairs) if is_external else None
        return OnnxTensor(name, tuple(shape), type_name, nbytes, place)

    def _dims(self, value: int | _Span) -> list[int]:
        if not isinstance(value, _Span):
            return [value]
        sizes, (at, end) = [], value
        while at < end:
            size, at = self._varint(at, end)
            sizes.append(size)
        return sizes

    def _external(self, name: str, pairs: Mapping[str, str]) -> External:
        numbers = {key: pairs[key] for key in ("offset", "length") if key in pairs}
        for key, text in numbers.items():
            if not (text.isascii() and text.isdecimal() and len(text) < 20):
                self._refuse(f"initializer {name!r} has external {key} {text!r}")
        if not pairs.get("location"):
            self._refuse(f"initializer {name!r} is external but names no file")
        length = int(numbers["length"]) if "length" in numbers else None
        return External(pairs["location"], int(numbers.get("offset", "0")), length)
