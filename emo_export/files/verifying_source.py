"""Whether a checkpoint, or another package, is the one that a manifest says it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.files.manifest import InputEntry, digest
from emo_export.files.parts import HEADER, TENSOR, OnBytes, Span, differing, hashing
from emo_export.files.verifying import ABSENT, CONTENT, SIZE, Place, Problem
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.safetensors_file import LazyTensor


def verify_source(
    inputs: Sequence[InputEntry], folder: Path, on_bytes: OnBytes = lambda nbytes: None
) -> list[Problem]:
    """Compare files of a folder with the inputs of a manifest: those, and tensors, that were read.

    Raises EmoExportError for inputs without digests, and for a checkpoint that can't be opened.
    """
    if not inputs:
        raise EmoExportError("the manifest, of an earlier version, has no digests of its source")
    tensors: dict[tuple[str, str], LazyTensor] = {}
    if any(one.tensors for one in inputs):
        found = Checkpoint.open(folder)
        tensors = {(tensor.file.name, tensor.name): tensor for tensor in found.values()}

    with hashing(on_bytes) as (workers, told):

        def check(one: InputEntry) -> Problem | None:
            path = folder / one.path
            if not path.is_file():
                return Problem(one.path, ABSENT)
            size = path.stat().st_size
            if size != one.bytes:
                return Problem(one.path, SIZE, size, one.bytes)
            if one.sha256 is not None:
                return None if digest(path) == one.sha256 else Problem(one.path, CONTENT)
            wrong = _differing(one, path, tensors, told)
            return Problem(one.path, CONTENT, places=tuple(wrong)) if wrong else None

        return [problem for problem in workers.map(check, inputs) if problem is not None]


def _differing(
    one: InputEntry, path: Path, tensors: dict[tuple[str, str], LazyTensor], on_bytes: OnBytes
) -> list[Place]:
    """The header, and tensors that were read, where they are others now."""
    expected = {}
    if one.header_sha256 is not None:
        with path.open("rb") as handle:
            length = 8 + int.from_bytes(handle.read(8), "little")
        expected[Span(HEADER, "", 0, length)] = one.header_sha256
    gone = []
    for name, sha256 in one.tensors.items():
        tensor = tensors.get((path.name, name))
        if tensor is None:
            gone.append(Place(TENSOR, name))
        else:
            expected[Span(TENSOR, name, tensor.offset, tensor.nbytes)] = sha256
    spans = sorted(expected, key=lambda span: span.offset)
    wrong = differing(path, spans, expected, on_bytes)
    return [*gone, *(Place(span.kind, span.name) for span in wrong)]
