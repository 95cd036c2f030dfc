"""External data of an ONNX model: one file, offsets aligned to 4096, laid out before any is read.

Source: onnx `external_data_helper` (keys location, offset, length) and the page size that lets a
runtime memory-map an initializer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
from onnx import TensorProto

from emo_export.converters.placed_file import Region
from emo_export.interfaces import TensorDecl

ALIGNMENT = 4096
LOCATION = "model.onnx.data"

ReadRows = Callable[[str, int, int], npt.NDArray[Any]]
"""(initializer, first row, end row) -> what lies there, (rows, elements of a row)."""

_ELEMENTS = {"f32": (TensorProto.FLOAT, 4), "u8": (TensorProto.UINT8, 1)}


class ExternalData:
    """The layout of `model.onnx.data`: initializers declared in order, each a region of rows."""

    def __init__(self) -> None:
        self.regions: dict[str, Region] = {}
        self.protos: list[TensorProto] = []
        self._declared: list[TensorDecl] = []
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._size

    @property
    def declarations(self) -> Sequence[TensorDecl]:
        """Every initializer that has bytes of its own."""
        return self._declared

    def declare(self, name: str, element: str, shape: Sequence[int], rows: int) -> None:
        """Reserve an initializer of element type `f32` or `u8`, to be filled in `rows` rows."""
        _, item = _ELEMENTS[element]
        nbytes = math.prod(shape) * item
        offset = -(-self._size // ALIGNMENT) * ALIGNMENT
        self.regions[name] = Region(offset, rows, nbytes // rows)
        self._declared.append(TensorDecl(name, tuple(shape), element, nbytes))
        self._size = offset + nbytes
        self._refer(name, element, shape, offset, nbytes)

    def alias(self, name: str, element: str, shape: Sequence[int], source: str) -> None:
        """Name the bytes of `source` a second time, in another shape (tied embeddings)."""
        region = self.regions[source]
        self._refer(name, element, shape, region.offset, region.nbytes)

    def _refer(
        self, name: str, element: str, shape: Sequence[int], offset: int, nbytes: int
    ) -> None:
        proto = TensorProto(name=name, data_type=_ELEMENTS[element][0], dims=list(shape))
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", LOCATION), ("offset", offset), ("length", nbytes)):
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)
        self.protos.append(proto)
