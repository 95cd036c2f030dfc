"""Which bytes of a file belong to which tensor, as its header says, and their digests.

A file is its header, its tensors and the padding between and after them. A header or a tensor has
a SHA-256 of its own; padding is zeros.
"""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from emo_export.base.threads import usable_cpus
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import read_gguf
from emo_export.files.onnx_header import read_onnx

HEADER, TENSOR, PADDING = "header", "tensor", "padding"
PIECE = 1 << 20
"""Bytes that are read and hashed at a time."""
MOST_THREADS = 8

OnBytes = Callable[[int], None]
"""Hears of bytes that were hashed, from several threads."""


@dataclass(frozen=True)
class Span:
    """`bytes` bytes of a file from byte `offset`; `name` is that of the tensor, or the one before.

    `kind` is header, tensor or padding.
    """

    kind: str
    name: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Part:
    """A header or a tensor, and the SHA-256 of its bytes."""

    span: Span
    sha256: str


def tensor_spans(folder: Path, files: Sequence[Path]) -> dict[Path, list[Span]]:
    """The tensors of each GGUF file, data file of an ONNX graph, safetensors file and archive.

    In order of their bytes. Raises EmoExportError for a header that can't be read, and for tensors
    that overlap.
    """
    found: dict[Path, list[Span]] = {}
    for path in files:
        if path.suffix == ".gguf":
            found[path] = [
                Span(TENSOR, t.name, t.offset, t.nbytes) for t in read_gguf(path).tensors
            ]
        elif path.suffix == ".safetensors":
            from emo_export.model.safetensors_file import read_header  # it needs numpy

            tensors = read_header(path).values()
            found[path] = [Span(TENSOR, t.name, t.offset, t.nbytes) for t in tensors]
        elif path.suffix == ".npz":
            found[path] = _arrays(path)
        elif path.suffix == ".onnx":
            for tensor in read_onnx(path).initializers:
                if tensor.location and tensor.length:
                    place = path.parent / tensor.location
                    span = Span(TENSOR, tensor.name, tensor.offset, tensor.length)
                    found.setdefault(place, []).append(span)
    return {path: _ordered(path, spans) for path, spans in found.items() if path in files}


def _arrays(path: Path) -> list[Span]:
    """The arrays of an archive with their local headers, and its directory, which comes last."""
    with zipfile.ZipFile(path) as archive:
        starts = {one.header_offset: one.filename for one in archive.infolist()}
        directory = archive.start_dir
    ends = [*sorted(starts)[1:], directory]
    return [
        *(
            Span(TENSOR, starts[start].removesuffix(".npy"), start, end - start)
            for start, end in zip(sorted(starts), ends, strict=True)
        ),
        Span(HEADER, "", directory, path.stat().st_size - directory),
    ]


def _ordered(path: Path, spans: Sequence[Span]) -> list[Span]:
    """By offset; tensors with the very same bytes, as tied ones are, are told together."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.offset, s.bytes, s.name)):
        last = found[-1] if found else Span(HEADER, "", 0, 0)
        if found and (span.offset, span.bytes) == (last.offset, last.bytes):
            found[-1] = Span(TENSOR, f"{last.name}, {span.name}", span.offset, span.bytes)
        elif span.offset < last.offset + last.bytes:
            raise EmoExportError(f"{path}: tensors {last.name} and {span.name} overlap")
        else:
            found.append(span)
    return found


def covering(spans: Sequence[Span], size: int) -> Iterator[Span]:
    """Every byte of a file of `size` bytes: spans in order, and padding where none is."""
    at, name = 0, ""
    for span in spans:
        if span.offset > at:
            yield Span(PADDING, name, at, span.offset - at)
        yield span
        at, name = span.offset + span.bytes, span.name or name
    if at < size:
        yield Span(PADDING, name, at, size - at)


@contextmanager
def hashing(on_bytes: OnBytes) -> Iterator[tuple[ThreadPoolExecutor, OnBytes]]:
    """Threads that hash, and what they tell of bytes, which ends them when the work is interrupted.

    Python waits for its threads, and one may have 30 GB before it.
    """
    stopped = threading.Event()

    def told(nbytes: int) -> None:
        if stopped.is_set():
            raise CancelledError
        on_bytes(nbytes)

    with ThreadPoolExecutor(min(MOST_THREADS, len(usable_cpus()))) as workers:
        try:
            yield workers, told
        except BaseException:
            stopped.set()
            raise


def digest_parts(
    path: Path, tensors: Sequence[Span], on_bytes: OnBytes
) -> tuple[str, tuple[Part, ...]]:
    """SHA-256 of a file and of each of its parts, in one read.

    Raises EmoExportError where bytes between tensors are not zero: nothing would account for them.
    """
    size = path.stat().st_size
    begin = tensors[0].offset if tensors else size
    header = [Span(HEADER, "", 0, begin)] if begin else []
    whole, parts = hashlib.sha256(), []
    # hashlib frees the interpreter, so that both digests of a piece are computed at once.
    with path.open("rb") as handle, ThreadPoolExecutor(1) as beside:
        for span in covering([*header, *tensors], size):
            own = hashlib.sha256()
            for piece in pieces(handle, span):
                other = beside.submit(whole.update, piece)
                own.update(piece)
                other.result()
                on_bytes(len(piece))
            if span.kind != PADDING:
                parts.append(Part(span, own.hexdigest()))
            elif own.hexdigest() != zeros(span.bytes):
                raise EmoExportError(f"{path}: the bytes after tensor {span.name} are no tensor's")
    return whole.hexdigest(), tuple(parts)


def differing(
    path: Path,
    spans: Sequence[Span],
    expected: Mapping[Span, str],
    on_bytes: OnBytes,
) -> list[Span]:
    """Those of some spans of a file whose SHA-256 isn't as expected; padding must be zeros."""
    found = []
    with path.open("rb") as handle:
        for span in spans:
            own = hashlib.sha256()
            for piece in pieces(handle, span):
                own.update(piece)
                on_bytes(len(piece))
            if own.hexdigest() != (expected.get(span) or zeros(span.bytes)):
                found.append(span)
    return found


def pieces(handle: BinaryIO, span: Span) -> Iterator[bytes]:
    """The bytes of a span, as many as there are."""
    handle.seek(span.offset)
    left = span.bytes
    while left and (piece := handle.read(min(PIECE, left))):
        left -= len(piece)
        yield piece


def zeros(nbytes: int) -> str:
    """SHA-256 of so many zero bytes."""
    found = hashlib.sha256()
    for at in range(0, nbytes, PIECE):
        found.update(bytes(min(PIECE, nbytes - at)))
    return found.hexdigest()
