"""External data of an ONNX model: a file or two, laid out before any is read, aligned to 4096.

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
from emo_export.files.onnx_names import of_routed
from emo_export.interfaces import TensorDecl

ALIGNMENT = 4096
LOCATION = "model.onnx.data"
TRUNK = "model.onnx.trunk.data"

ReadRows = Callable[[str, int, int], npt.NDArray[Any]]
"""(initializer, first row, end row) -> what lies there, (rows, elements of a row)."""

_ELEMENTS = {"f32": (TensorProto.FLOAT, 4), "u8": (TensorProto.UINT8, 1)}


class ExternalData:
    """The layout of the external data: initializers declared in order, each a region of rows.

    `files` has the regions of each file, by name. With `split`, what is the same whichever routed
    experts are kept goes to TRUNK.
    """

    def __init__(self, split: bool = False) -> None:
        self.files: dict[str, dict[str, Region]] = {LOCATION: {}}
        if split:
            self.files[TRUNK] = {}
        self.protos: list[TensorProto] = []
        self._declared: list[TensorDecl] = []
        self._sizes = dict.fromkeys(self.files, 0)

    @property
    def trunk(self) -> frozenset[str]:
        """The initializers in TRUNK."""
        return frozenset(self.files.get(TRUNK, ()))

    def region(self, name: str) -> Region:
        """Where an initializer lies in its file."""
        return next(regions[name] for regions in self.files.values() if name in regions)

    def size(self, location: str) -> int:
        """Bytes of a whole file."""
        return self._sizes[location]

    @property
    def declarations(self) -> Sequence[TensorDecl]:
        """Every initializer that has bytes of its own."""
        return self._declared

    def declare(self, name: str, element: str, shape: Sequence[int], rows: int) -> None:
        """Reserve an initializer of element type `f32` or `u8`, to be filled in `rows` rows."""
        _, item = _ELEMENTS[element]
        nbytes = math.prod(shape) * item
        location = TRUNK if TRUNK in self.files and not of_routed(name) else LOCATION
        offset = -(-self._sizes[location] // ALIGNMENT) * ALIGNMENT
        self.files[location][name] = Region(offset, rows, nbytes // rows)
        self._declared.append(TensorDecl(name, tuple(shape), element, nbytes))
        self._sizes[location] = offset + nbytes
        self._refer(name, element, shape, location, offset, nbytes)

    def alias(self, name: str, element: str, shape: Sequence[int], source: str) -> None:
        """Name the bytes of `source` a second time, in another shape (tied embeddings)."""
        location = next(file for file, regions in self.files.items() if source in regions)
        region = self.files[location][source]
        self._refer(name, element, shape, location, region.offset, region.nbytes)

    def _refer(
        self,
        name: str,
        element: str,
        shape: Sequence[int],
        location: str,
        offset: int,
        nbytes: int,
    ) -> None:
        proto = TensorProto(name=name, data_type=_ELEMENTS[element][0], dims=list(shape))
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", nbytes)):
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)
        self.protos.append(proto)
