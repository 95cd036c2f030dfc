"""llama.cpp's importance matrix files: GGUF with `NAME.in_sum2` (E, C) and `NAME.counts` (E, 1).

NAME is a tensor of the model's GGUF, E the experts in it (1 for other matrices), C its columns.
Source: llama.cpp `tools/imatrix/imatrix.cpp` (writes them), `common/imatrix-loader.cpp` (reads).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from emo_export.config import EmoConfig
from emo_export.converters.gguf_graph import graph_of
from emo_export.converters.gguf_layout import EXPERT_NAMES, NAMES
from emo_export.disk import writing
from emo_export.errors import EmoExportError
from emo_export.gguf_header import GgufFile, GgufTensor, read_gguf
from emo_export.importance import CHUNK, ImportanceMatrix
from emo_export.interfaces import F32
from emo_export.names import VECTORS, Role, Slot, shape_of, slots

SUMS, COUNTS = ".in_sum2", ".counts"
UNMEASURED = VECTORS | {Role.EMBED, Role.ROUTER}
REMEDY = "collect one with --calibration FILE"


def write_imatrix(path: Path, matrix: ImportanceMatrix, config: EmoConfig, arch: str) -> None:
    """Write an importance matrix for the GGUF of this model in the graph of `arch`.

    An expert that saw no token has count 0, which llama-quantize too takes as importance 1.
    """
    writer = gguf.GGUFWriter(path, "", use_temp_file=False)
    writer.kv_data[0].clear()  # the writer's general.architecture; an imatrix has none
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [matrix.source])
    writer.add_uint32("imatrix.chunk_count", matrix.chunks)
    writer.add_uint32("imatrix.chunk_size", CHUNK)
    for name, entries in _by_tensor(config, arch).items():
        count = next(size for _, size in entries.values())
        sums: F32 = np.zeros((count, shape_of(next(iter(entries)), config)[1]), np.float32)
        counts: F32 = np.zeros((count, 1), np.float32)
        for slot, (index, _) in entries.items():
            if slot in matrix.sums:
                sums[index], counts[index] = matrix.sums[slot], matrix.counts[slot]
        if any(slot in matrix.sums for slot in entries):
            writer.add_tensor(name + SUMS, sums)
            writer.add_tensor(name + COUNTS, counts)
    with writing(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_imatrix(path: Path, config: EmoConfig, arch: str) -> ImportanceMatrix:
    """Read an importance matrix made for this model, by us or by llama-imatrix.

    Raises EmoExportError for a file that is no such thing, of another model, or damaged.
    """
    file = _open(path)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    known = _by_tensor(config, arch)
    _check_names(path, tensors, known)
    chunks, size = file.keys.get("imatrix.chunk_count"), file.keys.get("imatrix.chunk_size")
    tokens = chunks * size if isinstance(chunks, int) and isinstance(size, int) else 0
    datasets = file.keys.get("imatrix.datasets")
    named = datasets if isinstance(datasets, list) else []
    source = ", ".join(Path(str(name)).name for name in named) or path.name
    matrix = ImportanceMatrix(source, tokens)
    for name, entries in known.items():
        if name + SUMS not in tensors:
            continue
        cols = shape_of(next(iter(entries)), config)[1]
        count = next(size for _, size in entries.values())
        sums = _values(path, tensors[name + SUMS], (count, cols))
        counts = _values(path, tensors[name + COUNTS], (count, 1))
        for slot, (index, _) in entries.items():
            matrix.sums[slot] = sums[index]
            matrix.counts[slot] = int(counts[index, 0])
    return matrix


def _open(path: Path) -> GgufFile:
    try:
        file = read_gguf(path)
    except EmoExportError as error:
        raise EmoExportError(
            f"{error}; llama-imatrix writes GGUF with `-o FILE.gguf` (its older .dat files are "
            f"not read), or {REMEDY}"
        ) from error
    if file.keys.get("general.type") != "imatrix":
        raise EmoExportError(
            f"{path}: is a GGUF file but no importance matrix (general.type is "
            f"{file.keys.get('general.type')!r}, expected 'imatrix'); {REMEDY}"
        )
    return file


def _check_names(
    path: Path, tensors: dict[str, GgufTensor], known: dict[str, dict[Slot, tuple[int, int]]]
) -> None:
    measured = {name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)}
    for name in sorted(measured):
        if name + COUNTS not in tensors:
            raise EmoExportError(f"{path}: has {name}{SUMS} but no {name}{COUNTS}: damaged")
        # The router, an empty shared expert and the like are measured too; nothing here needs them.
        harmless = re.search(r"(ffn_gate_inp|_shexp|token_embd)\.?", name)
        if name not in known and not harmless:
            raise EmoExportError(
                f"{path}: measures {name}, which this model's GGUF has not; it is of another "
                f"model or --arch: {REMEDY}"
            )
    needed = [name for name in known if name.startswith("blk.") and name not in measured]
    if needed:
        raise EmoExportError(
            f"{path}: says nothing of {needed[0]} and {len(needed) - 1} more tensors of this "
            f"model; {REMEDY}"
        )


def _values(path: Path, tensor: GgufTensor, shape: tuple[int, int]) -> F32:
    """A float32 tensor's values, checked: of the right shape, finite, not negative."""
    found = (*(1,) * (2 - len(tensor.shape)), *tensor.shape)
    if tensor.type != "F32" or found != shape:
        raise EmoExportError(
            f"{path}: {tensor.name} is {tensor.type} of shape {list(found)}, this model needs F32 "
            f"of {list(shape)}; it is of another model: {REMEDY}"
        )
    values = np.fromfile(path, np.float32, shape[0] * shape[1], offset=tensor.offset)
    if not np.isfinite(values).all() or (values < 0).any():
        raise EmoExportError(f"{path}: {tensor.name} holds a NaN, infinite or negative value")
    return values.reshape(shape)


def _by_tensor(config: EmoConfig, arch: str) -> dict[str, dict[Slot, tuple[int, int]]]:
    """GGUF tensor name -> the model's matrices in it, each with its place and the places in all."""
    names: dict[str, dict[Slot, tuple[int, int]]] = {}
    for slot, name, index, count in _places(config, arch):
        names.setdefault(name, {})[slot] = (index, count)
    return names


def _places(config: EmoConfig, arch: str) -> Iterator[tuple[Slot, str, int, int]]:
    graph = graph_of(config, arch)
    for slot in slots(config):
        if slot.role in UNMEASURED:
            continue
        if slot.role == Role.HEAD:
            yield slot, "output.weight", 0, 1
            continue
        stack = graph.stacks[slot.layer]
        if slot.role not in EXPERT_NAMES or stack is None:
            yield slot, f"blk.{slot.layer}.{NAMES[slot.role]}.weight", 0, 1
            continue
        stem = f"blk.{slot.layer}.{EXPERT_NAMES[slot.role]}"
        if slot.expert == stack.shared:
            yield slot, f"{stem}_shexp.weight", 0, 1
        elif slot.expert in stack.experts:
            place = stack.experts.index(slot.expert)
            yield slot, f"{stem}_exps.weight", place, graph.experts
