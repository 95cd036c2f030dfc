"""Arrays from an .npz file, whose claims are held against its bytes before anything is inflated.

Source: numpy `lib/format.py` (members), the zip specification 4.3.16 (end of the directory).
"""

from __future__ import annotations

import math
import os
import struct
import sys
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from emo_export.base.plain_file import open_plain
from emo_export.errors import EmoExportError

MOST_MEMBERS = 4096
MOST_DIRECTORY = 1 << 20  # bytes; zipfile makes objects of all of it
FREE = 64 << 20  # bytes that any file may inflate to
RATIO = 16  # and so many more for each of its own; logits have 1.1
_KINDS = "biufU"
_END, _END_BYTES = b"PK\5\6", 22
_LOCATOR, _LOCATOR_BYTES, _WIDE_END_BYTES = b"PK\6\7", 20, 56

# What numpy, zipfile and zlib raise for bytes that are no archive, or a damaged member.
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    RecursionError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)
Array = npt.NDArray[Any]


def read_npz(path: Path, what: str) -> dict[str, Array]:
    """Every array of a file by its name: numbers, booleans and texts. `what` it should be.

    Raises EmoExportError for a file that is damaged, holds objects, has a name twice, or inflates
    to much more than it is.
    """
    with open_plain(path) as handle:
        try:
            return _arrays(handle)
        except _DAMAGE as error:
            raise EmoExportError(f"{path}: is not {what} ({error})") from error


def _arrays(handle: BinaryIO) -> dict[str, Array]:
    size = os.fstat(handle.fileno()).st_size
    _check_directory(handle, size)
    with zipfile.ZipFile(handle) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(members) > MOST_MEMBERS or len(set(names)) < len(names):
            raise ValueError(f"{len(members)} arrays, or two of one name")
        left = FREE + RATIO * size
        for member in members:
            left -= member.file_size
            if left < 0:
                raise ValueError(f"it would inflate to more than {FREE + RATIO * size} bytes")
        return {name: _array(archive, member) for name, member in zip(names, members, strict=True)}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as inside:
        shape, fortran, kind = _header(inside)
        if kind.kind not in _KINDS or not kind.itemsize:
            raise ValueError(f"{member.filename} holds {kind}")
        begin = inside.tell()
        if any(not 0 <= n < 1 << 63 for n in shape):
            raise ValueError(f"{member.filename} has a shape that can't be")
        nbytes = math.prod(shape) * kind.itemsize
        if begin + nbytes != member.file_size:
            raise ValueError(f"{member.filename} has other bytes than its shape and type take")
        raw = np.empty(nbytes, np.uint8)
        place = raw.data
        while place:
            count = inside.readinto(place)  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"{member.filename} ends early")
            place = place[count:]
        inside.read(1)  # so that the check sum is looked at
    if kind.kind == "U" and nbytes and raw.view(f"{kind.byteorder}u4").max() > sys.maxunicode:
        raise ValueError(f"{member.filename} holds what is no text")  # numpy would make a str of it
    found = raw.view(kind) if nbytes else np.empty(math.prod(shape), kind)
    return found.reshape(shape[::-1]).T if fortran else found.reshape(shape)


def _header(inside: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(inside)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(inside)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(inside)
    raise ValueError(f"version {version} of .npy")


def _check_directory(handle: BinaryIO, size: int) -> None:
    """Refuse a directory that is large, or an end that isn't the end; np.savez writes no comment.

    zipfile goes by either of the two records of its length.
    """
    tail = min(size, _END_BYTES + _LOCATOR_BYTES + _WIDE_END_BYTES)
    handle.seek(size - tail)
    raw = handle.read(tail)
    end = raw[-_END_BYTES:]
    if not end.startswith(_END):
        raise ValueError("it has no end of a directory")
    lengths = [struct.unpack_from("<L", end, 12)[0]]
    before = raw[:-_END_BYTES]
    if before[-_LOCATOR_BYTES:].startswith(_LOCATOR):
        lengths = [struct.unpack_from("<Q", before, 40)[0]]
    if max(lengths) > MOST_DIRECTORY:
        raise ValueError(f"its directory has {max(lengths)} bytes")
    handle.seek(0)
