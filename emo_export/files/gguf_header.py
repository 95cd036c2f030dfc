"""A GGUF header, read strictly: every count and length is held against the bytes that are there.

Needs nothing but the standard library, and a crafted file costs no more than its own size: nothing
is allocated or looped over before the bytes for it are known to exist. (gguf-py 0.19 loops over
whatever count a file claims.) Source: ggml `docs/gguf.md`, `src/gguf.cpp` (limits).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from emo_export.base.plain_file import open_plain
from emo_export.errors import EmoExportError
from emo_export.files.gguf_types import ARRAY, BOOL, SCALARS, STRING, TENSOR_TYPES, VALUE_NAMES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_HEADER = 64 << 20  # bytes; the headers of the largest vocabularies have about 20 MB
MAX_KEY = 65_535
MAX_NAME = 64
MAX_DIMS = 4
MAX_DEPTH = 3  # of arrays within arrays
MAX_KEYS = 4096  # and as many arrays; real files have about 40
MAX_TENSORS = 16_384  # a stack of experts is one
MAX_TEXT = 1 << 20  # bytes of the value of a key
MAX_ITEMS = 1_500_000  # of all arrays; Gemma's tokens, scores, types and merges are 1.3 million
MAX_KEPT = 200_000  # values that are kept, in all
KEPT_ITEMS = 256  # longer arrays are summarised
FIRST_ITEMS = 4  # of a summarised array
MIN_PAIR = 8 + 4 + 1  # bytes of the shortest key/value pair: empty key, type, one byte
MIN_TENSOR = 8 + 4 + 8 + 4 + 8  # empty name, dimensions, one of them, type, offset


@dataclass(frozen=True)
class GgufArray:
    """A long array of a key: its element type, its length and its first few values.

    `start` is the byte of the file at which its first element begins.
    """

    type: str
    length: int
    first: tuple[Any, ...]
    start: int = field(default=0, compare=False)


@dataclass(frozen=True)
class GgufTensor:
    """One tensor. `shape` has rows first, as numpy has it (the file has it the other way round).

    `offset` counts from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF's header says; `data_offset` is where the tensors begin, `size` the file's.

    Values of `keys` are numbers, booleans, strings, lists of at most KEPT_ITEMS, or a GgufArray.
    """

    version: int
    keys: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    alignment: int
    data_offset: int
    size: int


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises EmoExportError naming the file, the place and what is wrong there.
    """
    file: GgufFile = _with_reader(path, lambda reader: reader.file())
    return file


def read_item(path: Path, array: GgufArray, index: int) -> Any:
    """One element of a long array that read_gguf summarised: a token's text, or its type.

    Raises EmoExportError when the array has no such element, or the file changed meanwhile.
    """
    if not 0 <= index < array.length or array.type == "array":
        raise EmoExportError(f"{path}: an array of {array.length} {array.type} has no item {index}")
    return _with_reader(path, lambda reader: reader.item(array, index))


def _with_reader(path: Path, read: Callable[[_Reader], Any]) -> Any:
    try:
        with open_plain(path) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size < len(MAGIC) or handle.read(len(MAGIC)) != MAGIC:
                raise EmoExportError(f"{path}: is not a GGUF file (it does not begin with GGUF)")
            with mmap.mmap(handle.fileno(), min(size, MAX_HEADER), access=mmap.ACCESS_READ) as raw:
                return read(_Reader(path, raw, size))
    except OSError as error:
        raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # mmap: the file shrank meanwhile
        raise EmoExportError(f"{path}: cannot be read ({error})") from error


class _Reader:
    """A cursor over the first bytes of the file; every read is checked against what is left."""

    def __init__(self, path: Path, raw: mmap.mmap, size: int) -> None:
        self._path, self._raw, self._size = path, raw, size
        self._end = len(raw)
        self._at = len(MAGIC)
        self._arrays = self._items = self._kept = 0

    def file(self) -> GgufFile:
        version = self._version()
        tensors, pairs = self._number("Q", "tensor count"), self._number("Q", "key count")
        if pairs > MAX_KEYS or tensors > MAX_TENSORS:
            self._refuse(f"says it has {pairs} keys and {tensors} tensors, more than any model has")
        self._fits(pairs, MIN_PAIR, f"a count of {pairs} keys")
        self._fits(tensors, MIN_TENSOR, f"a count of {tensors} tensors")
        keys: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string("a key", MAX_KEY)
            if key in keys:
                self._refuse(f"key {key!r} is there twice")
            keys[key] = self._value(self._number("I", f"type of {key!r}"), key, 0)
        alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self._refuse(f"general.alignment is {alignment!r}, expected a power of two")
        infos = [self._tensor() for _ in range(tensors)]
        data = -(-self._at // alignment) * alignment
        placed = self._place(infos, data, alignment)
        return GgufFile(version, keys, placed, alignment, data, self._size)

    def item(self, array: GgufArray, index: int) -> Any:
        """The element of an array that file() has walked."""
        kind = next(kind for kind, name in VALUE_NAMES.items() if name == array.type)
        self._at = array.start
        if kind == STRING:
            self._skip_strings(index, array.type)
            return self._string(f"element {index}")
        self._at += index * struct.calcsize(f"<{SCALARS[kind][1]}")
        return self._number(SCALARS[kind][1], f"element {index}")

    def _version(self) -> int:
        version: int = self._number("I", "version")
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in (1, *VERSIONS):
            self._refuse("is big-endian; only little-endian GGUF is read")
        if version == 1:
            self._refuse("is of GGUF version 1, which nothing reads any more; convert it again")
        if version not in VERSIONS:
            self._refuse(f"is of GGUF version {version}; versions 2 and 3 are read")
        return version

    def _refuse(self, what: str) -> NoReturn:
        raise EmoExportError(f"{self._path}: {what} (header byte {self._at} of {self._size})")

    def _fits(self, count: int, item: int, what: str) -> None:
        """Refuse `count` items of at least `item` bytes when that many bytes are not left."""
        if count * item > self._end - self._at:
            self._short(what)

    def _short(self, what: str) -> NoReturn:
        limit = f"the {MAX_HEADER} bytes allowed for a header"
        where = limit if self._end < self._size else "the file"
        self._refuse(f"{what} does not fit what is left of {where}")

    def _number(self, code: str, what: str) -> Any:
        size = struct.calcsize(f"<{code}")
        self._fits(1, size, what)
        value: Any = struct.unpack_from(f"<{code}", self._raw, self._at)[0]
        self._at += size
        return value

    def _string(self, what: str, limit: int = MAX_TEXT) -> str:
        length = self._number("Q", f"the length of {what}")
        if length > limit:
            self._refuse(f"{what} has {length} bytes, at most {limit} are allowed")
        self._fits(length, 1, f"{what} of {length} bytes")
        raw = self._raw[self._at : self._at + length]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            self._refuse(f"{what} is not UTF-8")
        self._at += length
        return text

    def _value(self, kind: int, key: str, depth: int) -> Any:
        self._kept += 1
        if self._kept > MAX_KEPT:
            self._refuse(f"has more than {MAX_KEPT} values at {key!r}, more than any model")
        if kind == STRING:
            return self._string(f"the value of {key!r}")
        if kind == ARRAY:
            return self._array(key, depth)
        if kind not in SCALARS:
            self._refuse(f"key {key!r} has value type {kind}, which does not exist")
        value = self._number(SCALARS[kind][1], f"the value of {key!r}")
        return self._boolean(value, key) if kind == BOOL else value

    def _boolean(self, value: int, key: str) -> bool:
        if value > 1:
            self._refuse(f"key {key!r} has a boolean of {value}, expected 0 or 1")
        return bool(value)

    def _array(self, key: str, depth: int) -> Any:
        self._arrays += 1
        if depth >= MAX_DEPTH or self._arrays > MAX_KEYS:
            self._refuse(f"key {key!r} has too many arrays within arrays")
        kind = self._number("I", f"element type of {key!r}")
        count = self._number("Q", f"length of {key!r}")
        if kind not in VALUE_NAMES:
            self._refuse(f"key {key!r} is an array of type {kind}, which does not exist")
        item = struct.calcsize(f"<{SCALARS[kind][1]}") if kind in SCALARS else 8
        self._fits(count, 12 if kind == ARRAY else item, f"an array of {count} in {key!r}")
        self._items += count
        if self._items > MAX_ITEMS:
            self._refuse(f"has more than {MAX_ITEMS} values in arrays, at {key!r}")
        if count <= KEPT_ITEMS:
            return [self._value(kind, key, depth + 1) for _ in range(count)]
        start = self._at
        first = tuple(self._value(kind, key, depth + 1) for _ in range(FIRST_ITEMS))
        self._skip(kind, item, count - FIRST_ITEMS, key, depth)
        return GgufArray(VALUE_NAMES[kind], count, first, start)

    def _skip(self, kind: int, item: int, count: int, key: str, depth: int) -> None:
        if kind == ARRAY:
            for _ in range(count):
                self._array(key, depth + 1)
        elif kind == STRING:
            self._skip_strings(count, key)
        else:
            self._at += item * count  # _array has checked that they are there

    def _skip_strings(self, count: int, key: str) -> None:
        unpack: Callable[..., tuple[int]] = struct.Struct("<Q").unpack_from
        raw, at, last = self._raw, self._at, self._end - 8
        for _ in range(count):
            if at > last:
                self._short(f"an array of strings in {key!r}")
            at += 8 + unpack(raw, at)[0]
        if at > self._end:
            self._short(f"an array of strings in {key!r}")
        self._at = at

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        """Name, shape, type, offset in the data and bytes of one tensor."""
        name = self._string("a tensor's name", MAX_NAME)
        count = self._number("I", f"dimensions of {name!r}")
        if not 1 <= count <= MAX_DIMS:
            self._refuse(f"tensor {name!r} has {count} dimensions, 1 to {MAX_DIMS} are allowed")
        sizes = tuple(self._number("Q", f"shape of {name!r}") for _ in range(count))
        kind = self._number("I", f"type of {name!r}")
        offset = self._number("Q", f"offset of {name!r}")
        if kind not in TENSOR_TYPES:
            self._refuse(f"tensor {name!r} has type {kind}, which this version does not know")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if min(sizes) < 1 or sizes[0] % block:
            self._refuse(
                f"tensor {name!r} of shape {list(reversed(sizes))} has no whole blocks of "
                f"{type_name} (rows of a multiple of {block})"
            )
        nbytes = math.prod(sizes) // block * block_bytes
        return name, sizes[::-1], type_name, offset, nbytes

    def _place(
        self, infos: list[tuple[str, tuple[int, ...], str, int, int]], data: int, alignment: int
    ) -> tuple[GgufTensor, ...]:
        """Check that tensors are distinct, aligned, within the file and apart."""
        placed = [
            GgufTensor(name, shape, kind, data + offset, nbytes)
            for name, shape, kind, offset, nbytes in infos
        ]
        end, before = data, "the header"
        for tensor in sorted(placed, key=lambda t: t.offset):
            if tensor.offset % alignment:
                self._refuse(f"tensor {tensor.name!r} is not aligned to {alignment} bytes")
            if tensor.offset < end:
                self._refuse(f"tensor {tensor.name!r} overlaps {before!r}")
            end, before = tensor.offset + tensor.nbytes, tensor.name
            if end > self._size:
                self._refuse(f"tensor {tensor.name!r} ends at byte {end}: the file is truncated")
        if len({tensor.name for tensor in placed}) != len(placed):
            self._refuse("a tensor's name is there twice")
        return tuple(placed)
