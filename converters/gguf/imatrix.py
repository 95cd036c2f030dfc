"""llama.cpp's importance matrix files: GGUF with `NAME.in_sum2` (E, C) and `NAME.counts` (E, 1).

NAME is a tensor of the model's GGUF, E the experts in it (1 for other matrices), C its columns.
Source: llama.cpp `tools/imatrix/imatrix.cpp` (writes them), `common/imatrix-loader.cpp` (reads).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import gguf
import numpy as np

from emo_export.base.disk import writing
from emo_export.converters.gguf.layout import Layout
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufFile, GgufTensor, read_gguf
from emo_export.files.gguf_names import EXPERTS, GGUF_NAMES
from emo_export.interfaces import F32
from emo_export.model.config import EmoConfig
from emo_export.model.finite import first
from emo_export.model.importance import CHUNK, LARGEST, ImportanceMatrix
from emo_export.model.names import VECTORS, Role, Slot, shape_of, slots

SUMS, COUNTS = ".in_sum2", ".counts"
UNMEASURED = VECTORS | {Role.EMBED, Role.ROUTER}
UNNEEDED = {Role.EMBED, Role.HEAD, Role.ROUTER, *EXPERTS}
"""Roles that llama-imatrix may measure without need: router, tied head, empty experts."""
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
        if slot.role in EXPERTS:
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
        held = GGUF_NAMES.held(name)
        if name not in known and (held is None or held.roles[0] not in UNNEEDED):
            raise EmoExportError(
                f"{path}: measures {name}, which this model's GGUF has not; it is of another "
                f"model or --arch: {REMEDY}"
            )
    needed = [name for name in known if name not in {*measured, GGUF_NAMES.name(Role.HEAD)}]
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
    values = values.reshape(shape)
    fits = np.isfinite(values) & (values >= 0) & (values <= largest)
    if not fits.all():
        row, column = first(~fits)
        raise EmoExportError(
            f"{path}: {tensor.name} holds a NaN, infinite, negative or absurdly large value: "
            f"expert {row}, column {column}: {values[row, column]}; {REMEDY}"
        )
    return values


@dataclass(frozen=True)
class _Part:
    """Columns (first, end) of a matrix, which begin row `place` of a tensor of `shape`."""

    slot: Slot
    place: int
    shape: tuple[int, int]
    cols: tuple[int, int]


def _by_tensor(config: EmoConfig, arch: str) -> dict[str, list[_Part]]:
    """GGUF tensor name -> what of the model's matrices is in it."""
    layout = Layout(config, arch, gguf_scheme("f32", config, arch=arch))
    shapes = {name: shape for name, shape, _ in layout.declared}
    names: dict[str, list[_Part]] = {}
    for slot in slots(config):
        if slot.role in UNMEASURED:
            continue
        if layout.is_cut(slot):
            # Runs of a dense layer's columns lie where a graph has experts. Its rows see all of
            # them, so that any tells as much; the shared expert's comes last and is kept.
            cuts = sorted(layout.cuts(slot), key=lambda cut: cut.shared)
            places = [(cut.tensor, cut.at // shapes[cut.tensor][-2], cut.cols) for cut in cuts]
        else:
            places = [(layout.name_of(slot), 0, (0, shape_of(slot, config)[1]))]
        for name, place, cols in places:
            *stacked, _, width = shapes[name]
            part = _Part(slot, place, (prod(stacked), width), cols)
            names.setdefault(name, []).append(part)
    return names
