"""A Writer: GGUF of an architecture whose graph in llama.cpp computes exactly what EMO computes.

llama.cpp has no `emo`; `gguf_graph` chooses the architecture and arranges the experts for it,
`gguf_layout` says where each matrix goes. Source: gguf-py `gguf_writer.py` (the file's header).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from emo_export.base.disk import writing
from emo_export.base.shown import on_one_line
from emo_export.converters.gguf.graph import choose_arch
from emo_export.converters.gguf.keys import add_importance_keys, add_keys
from emo_export.converters.gguf.layout import Cut, Layout
from emo_export.converters.gguf.scaled import fit_to_graph
from emo_export.converters.gguf.tokenizer import GgufTokenizer
from emo_export.converters.placed_file import PlacedFile, Region
from emo_export.errors import EmoExportError
from emo_export.files.gguf_parts import COUNT, NUMBER, TENSORS, part_name
from emo_export.files.gguf_types import FILE_TYPES
from emo_export.interfaces import Format, Ids, Packed, TensorDecl
from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import Role, Slot, shape_of
from emo_export.model.scheme import QuantScheme

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT
ZEROS_AT_ONCE = 1 << 22
"""Bytes of zeros that are written in one piece."""

Bytes = npt.NDArray[np.uint8]


def rope_permutation(heads: int, head_dim: int) -> Ids:
    """Source row of each row of q or k: halves of a head become neighbouring pairs.

    `deepseek` rotates neighbouring rows; `glm4moe` (NEOX) pairs them as EMO does.
    """
    rows = np.arange(heads * head_dim, dtype=np.int64)
    return rows.reshape(heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


class GgufWriter:
    """Writes a GGUF file, or two, in place; holds no tensor."""

    def __init__(
        self,
        path: Path,
        config: EmoConfig,
        scheme: QuantScheme,
        *,
        arch: str | None = None,
        tokenizer: GgufTokenizer | None,
        model_name: str,
        context: int,
        importance: ImportanceMatrix | None = None,
        split: bool = False,
    ) -> None:
        """`arch`: default what `choose_arch` says; the scheme must be fitted to its graph.

        `importance` is named in the file's keys, as llama-quantize does. `split`: the routed
        experts and their routers go to the first of two files, whose name `path` is; the second
        holds the tensors of `trunk`.

        Raises EmoExportError for a model that the graph can't express, and for another's scheme.
        """
        self.target = str(scheme.spec)
        self.path = path
        self.arch = choose_arch(config, arch)
        if fit_to_graph(scheme, config, self.arch).formats != scheme.formats:
            raise EmoExportError(f"gguf: the scheme was not fitted to the {self.arch} graph")
        self._config, self._scheme = config, scheme
        self._tokenizer, self._model_name, self._context = tokenizer, model_name, context
        self._importance = importance
        self._layout = Layout(config, self.arch, scheme)
        names = [name for name, _, _ in self._layout.declared]
        self.trunk = frozenset(filter(self._layout.in_trunk, names)) if split else frozenset()
        self._files: list[PlacedFile] = []

    def declarations(self) -> Sequence[TensorDecl]:
        """Every tensor, in file order."""
        return [
            TensorDecl(name, shape, kind.name, kind.nbytes(int(np.prod(shape[:-1])), shape[-1]))
            for name, shape, kind in self._layout.declared
        ]

    def format_of(self, slot: Slot) -> Format:
        """The ggml type of a slot."""
        return self._scheme.format_of(slot)

    def open(self) -> None:
        """Write header, keys, tensor infos and what no slot fills; reserve the rest of the file."""
        self._files = self._reserved()
        self._write_constants()

    def outline(self) -> None:
        """The file with its header and at its full size, a hole where the tensors belong."""
        for file in self._reserved():
            file.abort()

    @property
    def paths(self) -> Sequence[Path]:
        """The file, or both."""
        if not self.trunk:
            return [self.path]
        stem = self.path.name.removesuffix(part_name("", 0, 2))
        return [self.path.with_name(part_name(stem, number, 2)) for number in range(2)]

    def _reserved(self) -> list[PlacedFile]:
        self._regions: dict[str, Region] = {}
        return [self._reserve(number, path) for number, path in enumerate(self.paths)]

    def _reserve(self, number: int, path: Path) -> PlacedFile:
        writer = gguf.GGUFWriter(None, self.arch)
        if number == 0:
            self.add_keys(writer)
        if self.trunk:
            writer.add_uint16(NUMBER, number)
            writer.add_uint16(COUNT, 2)
            writer.add_int32(TENSORS, len(self._layout.declared))
        declared = []
        for (name, shape, kind), decl in zip(
            self._layout.declared, self.declarations(), strict=True
        ):
            if (name in self.trunk) != (number == 1):
                continue
            declared.append(decl)
            row = kind.nbytes(1, shape[-1])
            stored = (*shape[:-1], row) if kind.block > 1 else shape
            dtype = np.dtype(np.uint8 if kind.block > 1 else np.float32)
            writer.add_tensor_info(name, stored, dtype, decl.nbytes, raw_dtype=kind.kind)
        with writing(path):
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
        regions, offset = {}, _align(path.stat().st_size)
        for decl in declared:
            rows = int(np.prod(decl.shape[:-1]))
            regions[decl.name] = Region(offset, rows, decl.nbytes // rows)
            offset = _align(offset + decl.nbytes)
        self._regions |= regions
        return PlacedFile(path, offset, regions)

    def write(self, slot: Slot, start: int, packed: Packed) -> None:
        """Put rows in place: q and k as the graph rotates them, experts in their stack."""
        if not self._files:
            raise EmoExportError("the GGUF writer is not open")
        for name, at, rows in self._placed(slot, start, packed["rows"]):
            self._put(name, at, rows)

    def close(self) -> Sequence[Path]:
        """Check that every row was written; flush."""
        if not self._files:
            raise EmoExportError("the GGUF writer is not open")
        for file in self._files:
            file.close()
        return self.paths

    def placed(self) -> Sequence[PlacedFile]:
        """The file that holds its rows, once it is open."""
        return self._files

    def abort(self) -> None:
        """Let go of the file."""
        for file in self._files:
            file.abort()

    def _put(self, name: str, row: int, rows: Bytes) -> None:
        self._files[1 if name in self.trunk else 0].write(name, row, rows)

    def _placed(self, slot: Slot, start: int, rows: Bytes) -> Iterator[tuple[str, int, Bytes]]:
        """(tensor, first row, packed rows) of each place that a slot's rows (N, bytes) go to."""
        layout, size = self._layout, self._config.head_dim
        if layout.is_cut(slot):
            for cut in layout.cuts(slot):
                yield cut.tensor, cut.at, self._cut(slot, cut, rows)
        elif slot.role == Role.EMBED:
            yield layout.name_of(slot), start, rows
            if self._config.tie_word_embeddings:
                yield layout.name_of(Slot(Role.HEAD)), start, rows
        elif slot.role == Role.ROUTER:
            chosen = layout.router_rows(slot.layer)
            if chosen:
                yield layout.name_of(slot), 0, rows[chosen]
        elif slot.role in (Role.Q, Role.K) and self.arch == "deepseek":
            yield layout.name_of(slot), start, rows[rope_permutation(len(rows) // size, size)]
        else:
            yield layout.name_of(slot), start, rows

    def _cut(self, slot: Slot, cut: Cut, rows: Bytes) -> Bytes:
        """Rows and columns of a packed matrix, zero bytes filling the tensor's rows.

        Zero bytes are zeros in every ggml type: their scales are zero too.
        """
        whole = shape_of(slot, self._config)[1]
        first, end = (rows.shape[1] * column // whole for column in cut.cols)
        part = rows[cut.rows[0] : cut.rows[1], first:end]
        missing = self._regions[cut.tensor].row_bytes - part.shape[1]
        return np.pad(part, ((0, 0), (0, missing))) if missing > 0 else part

    def _write_constants(self) -> None:
        """The selection biases, and zeros in the rows that no slot fills."""
        for name, values in self._layout.biases():
            self._put(name, 0, np.array([values], np.float32).view(np.uint8))
        for name, start, stop in self._layout.gaps():
            width = self._regions[name].row_bytes
            step = max(1, ZEROS_AT_ONCE // width)
            for row in range(start, stop, step):
                self._put(name, row, np.zeros((min(step, stop - row), width), np.uint8))

    def add_keys(self, writer: gguf.GGUFWriter) -> None:
        """Add every key of the header but the architecture."""
        writer.add_name(_harmless(on_one_line(self._model_name)))
        writer.add_basename("emo")
        writer.add_file_type(FILE_TYPES[self._scheme.spec.type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        add_keys(writer, self._config, self._layout.graph, self._context)
        if self._importance is not None:
            add_importance_keys(writer, self._importance)
        if self._tokenizer is None:
            writer.add_tokenizer_model("none")
        else:
            self._tokenizer.add_to(writer)


def _harmless(name: str) -> str:
    """A name that llama.cpp's loader takes for nothing else.

    It changes how some models' special tokens behave by a part of general.name (llama-vocab.cpp).
    """
    known = ("phi-3", "phi3", "modern-bert")
    return "emo" if any(part in name.lower() for part in known) else name


def _align(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
