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
from emo_export.runtimes.ort.wire import (
    Field,
    bytes_field,
    decoded,
    fields_of,
    int_field,
    message_of,
    number_of,
    varints,
)

GRAPH, NODE, INITIALIZER, INPUT = 7, 1, 5, 11  # ModelProto.graph; GraphProto's other three
EXTERNAL = 1  # TensorProto.DataLocation


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
        return self.outside + bytes_field(GRAPH, self.inside + b"".join(fields))

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
    (field,) = fields_of(initializer)
    kept, entries = [], {}
    for part in fields_of(message_of(field)):
        if part.number == 13:
            pair = {inner.number: inner.value for inner in fields_of(message_of(part))}
            entries[decoded(pair.get(1, b""))] = decoded(pair.get(2, b""))
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
        pair_bytes = bytes_field(1, key.encode()) + bytes_field(2, value.encode())
        kept.append(bytes_field(13, pair_bytes))
    return bytes_field(INITIALIZER, b"".join(kept))


def split_model(model: bytes) -> SplitModel:
    """Take a model.onnx apart. Raises EmoExportError for bytes that are no such thing."""
    fields = list(fields_of(model))
    graphs = [message_of(field) for field in fields if field.number == GRAPH]
    if len(graphs) != 1:
        raise EmoExportError(f"there are {len(graphs)} graphs in an ONNX model, expected one")
    outside = b"".join(field.raw for field in fields if field.number != GRAPH)
    inside = []
    weights = {}
    for field in fields_of(graphs[0]):
        found = _weight(field) if field.number == INITIALIZER else None
        if found is None:
            inside.append(field.raw)
        else:
            weights[found[0]] = found[1]
    nodes = [message_of(field) for field in fields_of(graphs[0]) if field.number == NODE]
    taken = [tuple(name for name in _taken(node) if name in weights) for node in nodes]
    return SplitModel(outside, b"".join(inside), weights, taken)


def _weight(initializer: Field) -> tuple[str, Weight] | None:
    """Name and weight of an initializer, or None where its data are in the model itself."""
    dims: list[int] = []
    kind = nbytes = 0
    external, name = False, b""
    for field in fields_of(message_of(initializer)):
        if field.number == 1:  # packed into bytes, or one number each
            dims += [field.value] if isinstance(field.value, int) else varints(field.value)
        elif field.number == 2:
            kind = number_of(field)
        elif field.number == 8:
            name = message_of(field)
        elif field.number == 13:  # StringStringEntryProto: key, value
            pair = {part.number: part.value for part in fields_of(message_of(field))}
            digits = decoded(pair.get(2, b""))
            if pair.get(1) == b"length" and digits.isdecimal():
                nbytes = int(digits)
        elif field.number == 14:
            external = field.value == EXTERNAL
    if not external:
        return None
    shape = b"".join(bytes_field(1, int_field(1, dim)) for dim in dims)
    tensor = int_field(1, kind) + bytes_field(2, shape)
    variable = bytes_field(1, name) + bytes_field(2, bytes_field(1, tensor))
    return decoded(name), Weight(nbytes, initializer.raw, bytes_field(INPUT, variable))


def _taken(node: bytes) -> Iterator[str]:
    """The names that a node takes, with those of the nodes of the graphs in its attributes."""
    for field in fields_of(node):
        if field.number == 1:
            yield decoded(field.value)
        elif field.number == 5:
            for inner in fields_of(message_of(field)):
                if inner.number in (6, 11):  # AttributeProto.g, .graphs
                    for part in fields_of(message_of(inner)):
                        if part.number == NODE:
                            yield from _taken(message_of(part))
