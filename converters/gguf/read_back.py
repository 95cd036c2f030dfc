"""The weights that a GGUF file holds, as the model's own matrices: what an engine computes with.

gguf-py dequantises; `Layout` says what of a matrix lies where. Nothing of the checkpoint
and of how the file was quantised is needed, so that this holds for a file of any quantiser.
"""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize

from emo_export.converters.gguf.graph import choose_arch
from emo_export.converters.gguf.layout import Layout
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.writer import rope_permutation
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufTensor, read_gguf
from emo_export.files.gguf_parts import part_paths, read_model
from emo_export.interfaces import F32, Packed
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, shape_of
from emo_export.model.scheme import QuantScheme


class GgufWeights:
    """Rows of the slots of a model in one GGUF file, or in several of which `path` is the first.

    Holds no tensor.
    """

    def __init__(self, path: Path, config: EmoConfig, scheme: QuantScheme | None = None) -> None:
        """Check that the file has the tensors of this model, by name and shape.

        With `scheme` their types, too; without, they are what they are. Raises EmoExportError for
        a damaged file, and for one of another model, architecture or scheme.
        """
        header = read_model(path)
        arch = str(header.keys.get("general.architecture"))
        self._config, self._path, self.arch = config, path, arch
        types = scheme or gguf_scheme("f32", config, arch=choose_arch(config, arch))
        self._layout = Layout(config, arch, types)
        self._tensors: dict[str, GgufTensor] = {}
        self._file_of: dict[str, Path] = {}
        for part in part_paths(path, header):
            for tensor in read_gguf(part).tensors:
                self._tensors[tensor.name], self._file_of[tensor.name] = tensor, part
        self._permuted = arch == "deepseek"
        extra = self._tensors.keys() - {name for name, _, _ in self._layout.declared}
        if extra:
            raise EmoExportError(
                f"{path}: has tensors that this model has not, such as {min(extra)}; it is of "
                "another model"
            )
        for name, shape, kind in self._layout.declared:
            if name not in self._tensors:
                raise EmoExportError(f"{path}: has no tensor {name}; it is of another model")
            found = self._tensors[name]
            if found.shape != shape:
                raise EmoExportError(
                    f"{path}: {name} is of shape {list(found.shape)}, this model has {list(shape)}"
                )
            if scheme is not None and found.type != kind.kind.name:
                raise EmoExportError(
                    f"{path}: is not what manifest.json says: {name} is {found.type.lower()}, "
                    f"its recipe {kind.name}"
                )

    def rows(self, slot: Slot, start: int, stop: int) -> F32:
        """Rows start..stop of a slot (stop - start, C), dequantised.

        Rows of a router that the file leaves out, whose value changes nothing, are zeros. Raises
        EmoExportError for an expert that no token can take, which has no place in the file.
        """
        layout, role = self._layout, slot.role
        if role == Role.ROUTER:
            return self._router(slot)[start:stop]
        if layout.is_cut(slot):
            return self._cut(slot)[start:stop]
        name = layout.name_of(slot)
        if role not in (Role.Q, Role.K) or not self._permuted:
            return self._read(name, start, stop)
        rows = shape_of(slot, self._config)[0]
        size = self._config.head_dim
        whole = np.empty(shape_of(slot, self._config), np.float32)
        whole[rope_permutation(rows // size, size)] = self._read(name, 0, rows)
        return whole[start:stop]

    def packed(self, slot: Slot, start: int, stop: int) -> Packed:
        """The same rows as the file stores them, as GgufWriter takes them: {"rows": (n, bytes)}."""
        layout, role = self._layout, slot.role
        if role == Role.ROUTER:  # float32 in every file that is written
            return {"rows": np.ascontiguousarray(self._router(slot)[start:stop]).view(np.uint8)}
        if layout.is_cut(slot):
            return {"rows": self._packed_cuts(slot)[start:stop]}
        name = layout.name_of(slot)
        if role not in (Role.Q, Role.K) or not self._permuted:
            return {"rows": self._stored(name, start, stop)}
        rows, size = shape_of(slot, self._config)[0], self._config.head_dim
        stored = self._stored(name, 0, rows)
        whole = np.empty_like(stored)
        whole[rope_permutation(rows // size, size)] = stored
        return {"rows": whole[start:stop]}

    def row_bytes(self, slot: Slot) -> int:
        """Bytes of a row of a slot in the file; 0 for an expert that has no place in it."""
        cols = shape_of(slot, self._config)[-1]
        cuts = self._layout.cuts(slot) if self._layout.is_cut(slot) else None
        if cuts == []:
            return 0
        return self._width(cuts[0].tensor if cuts else self._layout.name_of(slot), cols)

    def type_of(self, slot: Slot) -> str:
        """The ggml type of a slot, as `q4_0`; f32 for an expert that has no place in the file."""
        cuts = self._layout.cuts(slot) if self._layout.is_cut(slot) else None
        if cuts == []:
            return "f32"
        name = cuts[0].tensor if cuts else self._layout.name_of(slot)
        return str(self._tensors[name].type.lower())

    def _width(self, name: str, cols: int) -> int:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self._tensors[name].type]]
        return cols // block * size

    def _packed_cuts(self, slot: Slot) -> npt.NDArray[np.uint8]:
        cuts = self._layout.cuts(slot)
        rows, cols = shape_of(slot, self._config)
        kinds = {self._tensors[cut.tensor].type.lower() for cut in cuts}
        if len(kinds) != 1:
            raise EmoExportError(
                f"{self._path}: {slot.name} is stored as {' and '.join(sorted(kinds)) or 'nothing'}"
                ", and is copied from a file that has it in one type alone"
            )
        whole = np.zeros((rows, self._width(cuts[0].tensor, cols)), np.uint8)
        for cut in cuts:
            (first, end), (left, right) = cut.rows, (self._width(cut.tensor, c) for c in cut.cols)
            stored = self._stored(cut.tensor, cut.at, cut.at + end - first)
            whole[first:end, left:right] = stored[:, : right - left]
        return whole

    def _read(self, name: str, start: int, stop: int) -> F32:
        """Rows of a tensor, all of its leading dimensions counted as one."""
        tensor = self._tensors[name]
        kind = gguf.GGMLQuantizationType[tensor.type]
        rows = self._stored(name, start, stop)
        values: F32 = np.ascontiguousarray(dequantize(rows, kind), np.float32)
        return values

    def _stored(self, name: str, start: int, stop: int) -> npt.NDArray[np.uint8]:
        tensor = self._tensors[name]
        width = tensor.nbytes // math.prod(tensor.shape[:-1])
        # Not through a map, whose pages would count as memory of this process.
        offset, count = tensor.offset + start * width, (stop - start) * width
        stored = np.fromfile(self._file_of[name], np.uint8, count, offset=offset)
        if stored.size != count:
            raise EmoExportError(f"{self._file_of[name]}: ends inside {name}")
        return stored.reshape(stop - start, -1)

    def _router(self, slot: Slot) -> F32:
        rows = self._layout.router_rows(slot.layer)
        whole: F32 = np.zeros(shape_of(slot, self._config), np.float32)
        if rows:
            stored = self._read(self._layout.name_of(slot), 0, len(rows))
            # Where a row is there several times, the copies are equal.
            whole[rows] = stored
        return whole

    def _cut(self, slot: Slot) -> F32:
        cuts = self._layout.cuts(slot)
        if not cuts:
            raise EmoExportError(
                f"{self._path}: has no place for {slot.name}, which no token takes"
            )
        whole: F32 = np.zeros(shape_of(slot, self._config), np.float32)
        down = slot.role in (Role.DOWN, Role.DENSE_DOWN)
        for cut in cuts:
            (first, end), (left, right) = cut.rows, cut.cols
            stored = self._read(cut.tensor, cut.at, cut.at + end - first)[:, : right - left]
            factor = self._layout.factor(slot) if down and not cut.shared else 1.0
            whole[first:end, left:right] = stored / np.float32(factor)
        return whole


def check_arch(path: Path, arch: str) -> None:
    """Raise EmoExportError when a file is not of the architecture that manifest.json names."""
    found = read_gguf(path).keys.get("general.architecture")
    if found != arch:
        raise EmoExportError(
            f"{path}: is not what manifest.json says: its architecture is {found}, not {arch}"
        )
