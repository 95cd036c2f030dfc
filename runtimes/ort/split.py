"""model.onnx taken apart into its weights and the rest, and put together again from bytes.

No onnx package on a device: this walks over protobuf's wire format, in which a message is its
fields one after the other, so bytes of fields may be left out, moved and joined. Give it files that
`emo_export.files.onnx_header.read_onnx` has read: that one checks all that is nested in them.
Source: onnx `onnx.proto3` (field numbers), protobuf's encoding guide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from emo_export.errors import EmoExportError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
GRAPH, NODE, INITIALIZER, INPUT = 7, 1, 5, 11  # ModelProto.graph; GraphProto's other three
EXTERNAL = 1  # TensorProto.DataLocation


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, the number or bytes it holds, and all of its bytes."""

    number: int
    value: int | bytes
    raw: bytes


@dataclass(frozen=True)
class Weight:
    """An initializer in external data: its bytes there, and what stands for it in a graph.

    `constant` is the GraphProto field with the initializer, `variable` one with an input of the
    same name, type and shape: with that in its place ONNX Runtime cannot pack it.
    """

    nbytes: int
    constant: bytes
    variable: bytes


@dataclass(frozen=True)
class SplitModel:
    """A model.onnx whose external weights have been taken out.

    `outside`: the fields around the graph; `inside`: the graph's own without those weights;
    `taken`: for each node, the weights that it or the graphs within it take.
    """

    outside: bytes
    inside: bytes
    weights: Mapping[str, Weight]
    taken: Sequence[tuple[str, ...]]

    def with_constants(self, fields: Iterable[bytes]) -> bytes:
        """The model with these GraphProto fields added."""
        return self.outside + _bytes_field(GRAPH, self.inside + b"".join(fields))

    def packing_only(self, names: Iterable[str]) -> bytes:
        """The model in which only these weights are constant, the others inputs."""
        kept = set(names)
        return self.with_constants(
            weight.constant if name in kept else weight.variable
            for name, weight in self.weights.items()
        )

    def groups(self, limit: int) -> list[list[str]]:
        """All weights in groups of about `limit` bytes; those of one node stay together.

        A node packs one weight by what it knows of its others, so they must be constant at once.
        """
        together: dict[str, list[str]] = {name: [name] for name in self.weights}
        for names in self.taken:
            joined = list(dict.fromkeys(other for name in names for other in together[name]))
            together |= dict.fromkeys(joined, joined)
        groups: list[list[str]] = [[]]
        size = 0
        for joined in {id(names): names for names in together.values()}.values():
            nbytes = sum(self.weights[name].nbytes for name in joined)
            if groups[-1] and size + nbytes > limit:
                groups.append([])
                size = 0
            groups[-1] += joined
            size += nbytes
        return groups


def with_moved_data(initializer: bytes, location: str, moved: Callable[[int, int], int]) -> bytes:
    """The GraphProto field of an external initializer, with its data in another file.

    `moved` takes offset and bytes of a block where it was and answers its new offset. Blocks are
    the weight itself and what kernels packed of it: `prepacked_N` is `key|offset;bytes;0|…`
    (onnxruntime `ExternalDataInfo::WritePrepackedToFileAndAddToProto`).
    """
    (field,) = _fields(initializer)
    kept, entries = [], {}
    for part in _fields(_message(field)):
        if part.number == 13:
            pair = {inner.number: inner.value for inner in _fields(_message(part))}
            entries[_decoded(pair.get(1, b""))] = _decoded(pair.get(2, b""))
        else:
            kept.append(part.raw)
    try:
        offset = moved(int(entries.get("offset", "0")), int(entries["length"]))
        placed = {"location": location, "offset": str(offset), "length": entries["length"]}
        for key, value in entries.items():
            if key.startswith("prepacked_"):
                name, *blocks = value.split("|")
                sizes = [block.split(";") for block in blocks]
                moves = [f"{moved(int(at), int(size))};{size};{rest}" for at, size, rest in sizes]
                placed[key] = "|".join([name, *moves])
    except (KeyError, ValueError) as error:
        raise EmoExportError(f"an ONNX initializer has external data at {entries!r}") from error
    for key, value in placed.items():
        pair_bytes = _bytes_field(1, key.encode()) + _bytes_field(2, value.encode())
        kept.append(_bytes_field(13, pair_bytes))
    return _bytes_field(INITIALIZER, b"".join(kept))


def split_model(model: bytes) -> SplitModel:
    """Take a model.onnx apart. Raises EmoExportError for bytes that are no such thing."""
    fields = list(_fields(model))
    graphs = [_message(field) for field in fields if field.number == GRAPH]
    if len(graphs) != 1:
        raise EmoExportError(f"there are {len(graphs)} graphs in an ONNX model, expected one")
    outside = b"".join(field.raw for field in fields if field.number != GRAPH)
    inside = []
    weights = {}
    for field in _fields(graphs[0]):
        found = _weight(field) if field.number == INITIALIZER else None
        if found is None:
            inside.append(field.raw)
        else:
            weights[found[0]] = found[1]
    nodes = [_message(field) for field in _fields(graphs[0]) if field.number == NODE]
    taken = [tuple(name for name in _taken(node) if name in weights) for node in nodes]
    return SplitModel(outside, b"".join(inside), weights, taken)


def _weight(initializer: Field) -> tuple[str, Weight] | None:
    """Name and weight of an initializer, or None where its data are in the model itself."""
    dims: list[int] = []
    kind = nbytes = 0
    external, name = False, b""
    for field in _fields(_message(initializer)):
        if field.number == 1:  # packed into bytes, or one number each
            dims += [field.value] if isinstance(field.value, int) else _varints(field.value)
        elif field.number == 2:
            kind = _number(field)
        elif field.number == 8:
            name = _message(field)
        elif field.number == 13:  # StringStringEntryProto: key, value
            pair = {part.number: part.value for part in _fields(_message(field))}
            digits = _decoded(pair.get(2, b""))
            if pair.get(1) == b"length" and digits.isdecimal():
                nbytes = int(digits)
        elif field.number == 14:
            external = field.value == EXTERNAL
    if not external:
        return None
    shape = b"".join(_bytes_field(1, _int_field(1, dim)) for dim in dims)
    tensor = _int_field(1, kind) + _bytes_field(2, shape)
    variable = _bytes_field(1, name) + _bytes_field(2, _bytes_field(1, tensor))
    return _decoded(name), Weight(nbytes, initializer.raw, _bytes_field(INPUT, variable))


def _taken(node: bytes) -> Iterator[str]:
    """The names that a node takes, with those of the nodes of the graphs in its attributes."""
    for field in _fields(node):
        if field.number == 1:
            yield _decoded(field.value)
        elif field.number == 5:
            for inner in _fields(_message(field)):
                if inner.number in (6, 11):  # AttributeProto.g, .graphs
                    for part in _fields(_message(inner)):
                        if part.number == NODE:
                            yield from _taken(_message(part))


def _fields(message: bytes) -> Iterator[Field]:
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


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _message(field: Field) -> bytes:
    if isinstance(field.value, int):
        raise EmoExportError(f"field {field.number} of an ONNX model is a number, expected bytes")
    return field.value


def _number(field: Field) -> int:
    if not isinstance(field.value, int):
        raise EmoExportError(f"field {field.number} of an ONNX model is bytes, expected a number")
    return field.value


def _decoded(value: int | bytes) -> str:
    if isinstance(value, int):
        raise EmoExportError(f"there is a number ({value}) where an ONNX model has a name")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EmoExportError(f"there is no text where an ONNX model has a name: {error}") from error


def _int_field(number: int, value: int) -> bytes:
    return _encoded(number << 3 | VARINT) + _encoded(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
