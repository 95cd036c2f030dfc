"""llama.cpp's importance matrix files: GGUF with `NAME.in_sum2` (E, C) and `NAME.counts` (E, 1).

NAME is a tensor of the model's GGUF, E the experts in it (1 for other matrices), C its columns.
Source: llama.cpp `tools/imatrix/imatrix.cpp` (writes them), `common/imatrix-loader.cpp` (reads).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from emo_export.base.disk import writing
from emo_export.converters.gguf.graph import graph_of
from emo_export.converters.gguf.layout import DENSE_ROLES, EXPERT_NAMES, NAMES
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufFile, GgufTensor, read_gguf
from emo_export.interfaces import F32
from emo_export.model.config import EmoConfig
from emo_export.model.importance import CHUNK, LARGEST, ImportanceMatrix
from emo_export.model.names import VECTORS, Role, Slot, shape_of, slots

SUMS, COUNTS = ".in_sum2", ".counts"
UNMEASURED = VECTORS | {Role.EMBED, Role.ROUTER}
STACKED = {*EXPERT_NAMES, *DENSE_ROLES.values()}
MOST_TOKENS = 1 << 40
"""A calibration text of more tokens is a damaged key."""
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
    for name, parts in _by_tensor(config, arch).items():
        sums: F32 = np.zeros(parts[0].shape, np.float32)
        counts: F32 = np.zeros((len(sums), 1), np.float32)
        measured = [part for part in parts if part.slot in matrix.sums]
        for part in measured:
            first, end = part.cols
            sums[part.place, : end - first] = matrix.sums[part.slot][first:end]
            counts[part.place] = matrix.counts[part.slot]
        if measured:
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
    datasets = file.keys.get("imatrix.datasets")
    named = datasets if isinstance(datasets, list) else []
    source = ", ".join(Path(str(name)).name for name in named) or path.name
    matrix = ImportanceMatrix(source, _tokens(path, file))
    for slot in slots(config):  # an expert that no token can take has no place in the file
        if slot.role in EXPERT_NAMES:
            matrix.sums[slot] = np.zeros(shape_of(slot, config)[1], np.float32)
            matrix.counts[slot] = 0
    for name, parts in known.items():
        if name + SUMS not in tensors:
            continue
        sums = _values(path, tensors[name + SUMS], parts[0].shape, LARGEST)
        counts = _values(path, tensors[name + COUNTS], (len(sums), 1), MOST_TOKENS)
        if (counts != np.rint(counts)).any() or sums[counts[:, 0] == 0].any():
            raise EmoExportError(
                f"{path}: {name}{COUNTS} holds no whole numbers, or 0 beside sums that are not; "
                f"it is damaged: {REMEDY}"
            )
        for part in parts:
            first, end = part.cols
            width = shape_of(part.slot, config)[1]
            whole = matrix.sums.setdefault(part.slot, np.zeros(width, np.float32))
            whole[first:end] = sums[part.place, : end - first]
            matrix.counts[part.slot] = int(counts[part.place, 0])
    return matrix


def _tokens(path: Path, file: GgufFile) -> int:
    """Tokens of the calibration text; 0 when the file doesn't say."""
    chunks, size = file.keys.get("imatrix.chunk_count"), file.keys.get("imatrix.chunk_size")
    if not isinstance(chunks, int) or not isinstance(size, int):
        return 0
    if not 0 <= chunks * size <= MOST_TOKENS:
        raise EmoExportError(
            f"{path}: imatrix.chunk_count {chunks} of imatrix.chunk_size {size} is damaged; "
            f"{REMEDY}"
        )
    return chunks * size


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


def _check_names(path: Path, tensors: dict[str, GgufTensor], known: dict[str, list[_Part]]) -> None:
    measured = {name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)}
    for name in sorted(measured):
        if name + COUNTS not in tensors:
            raise EmoExportError(f"{path}: has {name}{SUMS} but no {name}{COUNTS}: damaged")
        # The router, empty experts, a tied head and the like are measured too, but not needed.
        harmless = re.search(r"(ffn_gate_inp|_shexp|_exps|token_embd|^output)\.", name)
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


def _values(path: Path, tensor: GgufTensor, shape: tuple[int, int], largest: float = np.inf) -> F32:
    """A float32 tensor's values, checked: of the right shape, finite, not negative, not absurd."""
    found = (*(1,) * (2 - len(tensor.shape)), *tensor.shape)
    if tensor.type != "F32" or found != shape:
        raise EmoExportError(
            f"{path}: {tensor.name} is {tensor.type} of shape {list(found)}, this model needs F32 "
            f"of {list(shape)}; it is of another model: {REMEDY}"
        )
    values = np.fromfile(path, np.float32, shape[0] * shape[1], offset=tensor.offset)
    if not np.isfinite(values).all() or (values < 0).any() or (values > largest).any():
        raise EmoExportError(
            f"{path}: {tensor.name} holds a NaN, infinite, negative or absurdly large value; "
            f"{REMEDY}"
        )
    return values.reshape(shape)


@dataclass(frozen=True)
class _Part:
    """Columns (first, end) of a matrix, which begin row `place` of a tensor of `shape`."""

    slot: Slot
    place: int
    shape: tuple[int, int]
    cols: tuple[int, int]


def _by_tensor(config: EmoConfig, arch: str) -> dict[str, list[_Part]]:
    """GGUF tensor name -> what of the model's matrices is in it."""
    names: dict[str, list[_Part]] = {}
    for name, part in _parts(config, arch):
        names.setdefault(name, []).append(part)
    return names


def _parts(config: EmoConfig, arch: str) -> Iterator[tuple[str, _Part]]:
    graph = graph_of(config, arch)
    for slot in slots(config):
        if slot.role in UNMEASURED:
            continue
        cols = shape_of(slot, config)[1]
        whole = (0, cols)
        stack = None if slot.role == Role.HEAD else graph.stacks[slot.layer]
        stem = f"blk.{slot.layer}.{EXPERT_NAMES.get(slot.role, NAMES.get(slot.role))}"
        down = slot.role in (Role.DOWN, Role.DENSE_DOWN)
        width = config.intermediate_size if down else cols
        one = (1, graph.shared * width if down else cols)  # the shared expert's tensor
        if slot.role == Role.HEAD:
            yield "output.weight", _Part(slot, 0, (1, cols), whole)
        elif stack is None or slot.role not in STACKED:
            yield f"{stem}.weight", _Part(slot, 0, (1, cols), whole)
        elif slot.role in EXPERT_NAMES:
            if slot.expert == stack.shared:
                yield f"{stem}_shexp.weight", _Part(slot, 0, one, whole)
            elif slot.expert in stack.experts:
                place = stack.experts.index(slot.expert)
                yield f"{stem}_exps.weight", _Part(slot, place, (graph.experts, width), whole)
        else:  # a dense layer among sparse ones, of which F hidden columns look like an expert
            runs = [(place, run) for place, run in enumerate(stack.experts) if run >= 0]
            for place, run in runs:
                part = (run * width, min((run + 1) * width, cols)) if down else whole
                yield f"{stem}_exps.weight", _Part(slot, place, (graph.experts, width), part)
            part = (0, min(one[1], cols)) if down else whole
            yield f"{stem}_shexp.weight", _Part(slot, 0, one, part)
