"""The weights that an ONNX folder holds, as the model's own matrices: what an engine computes with.

The graph's header says where each initializer lies, `Layout` what of a matrix is in it, and the
format how to dequantise it. Nothing of the checkpoint and of how it was quantised is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.converters.onnx.data import LOCATION, TRUNK
from emo_export.converters.onnx.experts.routing import router_rows
from emo_export.converters.onnx.kinds import KINDS
from emo_export.converters.onnx.layout import Layout, Place
from emo_export.errors import EmoExportError
from emo_export.files.onnx_data import check_data
from emo_export.files.onnx_header import read_onnx
from emo_export.files.onnx_names import ANGLES
from emo_export.interfaces import F32, Packed
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Role, Slot, shape_of
from emo_export.model.scheme import QuantScheme

TYPES: Mapping[str, np.dtype[Any]] = {"FLOAT": np.dtype("<f4"), "UINT8": np.dtype(np.uint8)}


class OnnxWeights:
    """Rows of the slots of a model in one ONNX folder. Holds no tensor."""

    def __init__(self, folder: Path, config: EmoConfig, scheme: QuantScheme) -> None:
        """`scheme`: the types that its parts have.

        Raises EmoExportError for a damaged graph, and where an initializer is not what this model
        with these types has.
        """
        self._folder, self._config, self._scheme = folder, config, scheme
        model = folder / "model.onnx"
        file = read_onnx(model)
        check_data(model, file)
        self._stored = {tensor.name: tensor for tensor in file.initializers}
        angles = self._stored.get(ANGLES[0])
        if angles is None:
            raise EmoExportError(
                f"{model}: is not a graph that export makes: it has no {ANGLES[0]!r}"
            )
        kind, positions = KINDS[scheme.spec.graph], angles.shape[0]
        self._layout = Layout(kind, config, scheme, positions)
        for declared in self._layout.data.declarations:
            found = self._stored.get(declared.name)
            shape = None if found is None else found.shape
            if found is None or shape != declared.shape or found.nbytes != declared.nbytes:
                raise EmoExportError(
                    f"{model}: initializer {declared.name} is of shape {shape}, this model as "
                    f"{scheme.spec} has {declared.shape}"
                )
            # Never a path out of the folder, whatever the graph says.
            if found.location not in (LOCATION, TRUNK) or found.type not in TYPES:
                raise EmoExportError(
                    f"{model}: initializer {declared.name} of type {found.type} lies in "
                    f"{found.location!r}; a graph that export makes has them in {LOCATION} or "
                    f"{TRUNK}"
                )

    def rows(self, slot: Slot, start: int, stop: int) -> F32:
        """Rows start..stop of a slot (stop - start, C), dequantised.

        Rows of a router that the graph leaves out, whose value changes nothing, are zeros.
        """
        if slot.role == Role.HEAD and self._config.tie_word_embeddings:
            slot = Slot(Role.EMBED)  # whose bytes are the head's
        packed = self.packed(slot, start, stop)
        if slot.role in VECTORS:
            return self._float(packed["weight"])
        return self._float(self._scheme.format_of(slot).dequantize(packed))

    def packed(self, slot: Slot, start: int, stop: int) -> Packed:
        """The same rows as the folder stores them, for OnnxWriter."""
        layout = self._layout
        if slot in layout.stacks:
            stack, place = layout.stacks[slot]
            parts = self._parts(stack.fc1)
            whole = {p: stack.stored(slot.role, place, p, self._read) for p in parts}
            return {part: rows[start:stop] for part, rows in whole.items()}
        at = layout.places[slot]
        if slot.role in VECTORS:
            width = shape_of(slot, self._config)[0]
            return {"weight": self._read(at.stem, at.row, at.row + width).reshape(1, width)}
        if slot.role == Role.ROUTER:
            return {part: rows[start:stop] for part, rows in self._router(slot, at).items()}
        return self._packed(at.stem, at.row + start, at.row + stop)

    def row_bytes(self, slot: Slot) -> int:
        """Bytes of a row of a slot in the folder."""
        return self._scheme.format_of(slot).nbytes(1, shape_of(slot, self._config)[-1])

    def type_of(self, slot: Slot) -> str:
        """The format of a slot, as `int4b128`."""
        return self._scheme.format_of(slot).name

    def _router(self, slot: Slot, at: Place) -> Packed:
        kept = list(router_rows(self._config.layers[slot.layer]))
        whole = {}
        for part, rows in self._packed(at.stem, at.row, at.row + len(kept)).items():
            whole[part] = np.zeros((shape_of(slot, self._config)[0], rows.shape[1]), rows.dtype)
            whole[part][kept] = rows
        return whole

    def _packed(self, stem: str, start: int, stop: int) -> Packed:
        return {part: self._read(f"{stem}.{part}", start, stop) for part in self._parts(stem)}

    def _parts(self, stem: str) -> list[str]:
        return [part for part in ("weight", "scales") if f"{stem}.{part}" in self._stored]

    def _read(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows of an initializer, as the writer counts them: (rows, elements of a row)."""
        tensor, region = self._stored[name], self._layout.data.region(name)
        kind = TYPES[tensor.type]
        width = region.row_bytes // kind.itemsize
        offset = tensor.offset + start * region.row_bytes
        try:
            found = np.fromfile(
                self._folder / tensor.location, kind, (stop - start) * width, offset=offset
            )
        except OSError as error:
            raise EmoExportError(
                f"{self._folder / tensor.location}: cannot be read ({error.strerror})"
            ) from error
        if found.size != (stop - start) * width:
            raise EmoExportError(f"{self._folder / tensor.location}: ends inside {name}")
        whole: npt.NDArray[Any] = found.reshape(stop - start, width)
        return whole

    @staticmethod
    def _float(rows: npt.NDArray[Any]) -> F32:
        return np.ascontiguousarray(rows, np.float32)
