"""The bytes of an ONNX model of one node, for trying an operator where the onnx package is not.

Source: onnx `onnx.proto3` (field numbers, element types), protobuf's encoding guide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_IR_VERSION, _OPSET = 8, 17  # old enough for every ONNX Runtime that has the operators
_FLOAT, _UINT8 = 1, 2  # TensorProto.DataType
_OF_FLOAT, _OF_INT, _OF_STRING = 1, 2, 3  # AttributeProto.AttributeType

Attribute = int | float | str


def one_node_model(
    domain: str,
    operator: str,
    inputs: Sequence[str],
    attributes: Mapping[str, Attribute],
    weights: Mapping[str, npt.NDArray[Any]],
) -> bytes:
    """A model of one operator with one output, `y`; everything is a matrix (tokens, columns).

    `inputs` are the operator's, empty where left out; those that `weights` (float32 or uint8) does
    not have are the model's, float32.
    """
    node = [_field(1, name) for name in inputs] + [_field(2, "y"), _field(4, operator)]
    node += [_field(5, attribute_bytes(name, value)) for name, value in attributes.items()]
    node.append(_field(7, domain))
    graph = [_field(1, b"".join(node)), _field(2, operator)]
    graph += [_field(5, tensor_bytes(name, values)) for name, values in weights.items()]
    given = dict.fromkeys(name for name in inputs if name and name not in weights)
    graph += [_field(11, _value(name)) for name in given] + [_field(12, _value("y"))]
    opsets = (_field(1, name) + _field(2, number) for name, number in (("", _OPSET), (domain, 1)))
    model = [_field(1, _IR_VERSION), _field(7, b"".join(graph))]
    return b"".join(model + [_field(8, entry) for entry in opsets])


def attribute_bytes(name: str, value: Attribute) -> bytes:
    """An AttributeProto."""
    named = _field(1, name)
    if isinstance(value, int):
        return named + _field(3, value) + _field(20, _OF_INT)
    if isinstance(value, str):
        return named + _field(4, value) + _field(20, _OF_STRING)
    stored = _varint(2 << 3 | 5) + np.float32(value).tobytes()  # a fixed 32-bit field
    return named + stored + _field(20, _OF_FLOAT)


def tensor_bytes(name: str, values: npt.NDArray[Any]) -> bytes:
    """A TensorProto of float32 or uint8."""
    kind = _UINT8 if values.dtype == np.uint8 else _FLOAT
    sizes = b"".join(_field(1, size) for size in values.shape)
    return sizes + _field(2, kind) + _field(8, name) + _field(9, values.tobytes())


def _value(name: str) -> bytes:
    """A float32 matrix of any size."""
    shape = b"".join(_field(1, _field(2, f"{name}.{axis}")) for axis in range(2))
    return _field(1, name) + _field(2, _field(1, _field(1, _FLOAT) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field: a varint, or bytes with their length before them."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode("utf-8") if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; value is not negative."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
