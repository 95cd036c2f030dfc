"""Protobuf's wire format: a message is its fields one after the other.

Source: protobuf's encoding guide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from emo_export.errors import EmoExportError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, the number or bytes it holds, and all of its bytes."""

    number: int
    value: int | bytes
    raw: bytes


def fields_of(message: bytes) -> Iterator[Field]:
    """Its fields. Raises EmoExportError for bytes that are no message, as all here do."""
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield Field(key >> 3, value, message[start:at])
            continue
        if wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise EmoExportError(f"the field at byte {start} of an ONNX model has wire type {wire}")
        if size > len(message) - at:
            raise EmoExportError(f"a field of {size} bytes runs past the end of an ONNX model")
        yield Field(key >> 3, message[at : at + size], message[start : at + size])
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise EmoExportError(f"a number of an ONNX model has no end at byte {at}")


def varints(data: bytes) -> Iterator[int]:
    """The numbers of a packed field."""
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def message_of(field: Field) -> bytes:
    """Its bytes."""
    if isinstance(field.value, int):
        raise EmoExportError(f"field {field.number} of an ONNX model is a number, expected bytes")
    return field.value


def number_of(field: Field) -> int:
    """Its number."""
    if not isinstance(field.value, int):
        raise EmoExportError(f"field {field.number} of an ONNX model is bytes, expected a number")
    return field.value


def decoded(value: int | bytes) -> str:
    """Its text."""
    if isinstance(value, int):
        raise EmoExportError(f"there is a number ({value}) where an ONNX model has a name")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EmoExportError(f"there is no text where an ONNX model has a name: {error}") from error


def int_field(number: int, value: int) -> bytes:
    """A field that is a number."""
    return _encoded(number << 3 | VARINT) + _encoded(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A field that is text or a message."""
    return _encoded(number << 3 | BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
