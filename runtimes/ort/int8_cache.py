"""A graph of ours with its keys and values in int8, whose scales are measured beforehand.

GroupQueryAttention multiplies an int8 cache by a scale for each channel, which is an input of the
graph and can't follow the text. So the float graph reads random tokens first: they choose more
experts than any text does. A pair of channels of a key is rotated with its position, so both have
one scale. Source: onnxruntime `contrib_defs.cc` (GroupQueryAttention), onnx `onnx.proto3`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from emo_export.base.disk import cache_folder, make_private, write_whole
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32
from emo_export.runtimes.ort.folder import read_config
from emo_export.runtimes.ort.onnx_bytes import Attribute, attribute_bytes, tensor_bytes
from emo_export.runtimes.ort.prepacked_key import prepacked_key
from emo_export.runtimes.ort.wire import (
    Field,
    bytes_field,
    decoded,
    fields_of,
    int_field,
    message_of,
    number_of,
)

if TYPE_CHECKING:
    from emo_export.runtimes.ort.model import OnnxModel

GRAPH, NODE, INITIALIZER, INPUT, OUTPUT = 7, 1, 5, 11, 12
INT8, LARGEST = 3, 127  # TensorProto.DataType
OPERATOR = "GroupQueryAttention"
K_SCALE = 12  # of its inputs; that of the values follows
SEQUENCES, TOKENS, SEED = 4, 256, 0
MARGIN = 1.5
"""Times the largest that the random tokens gave: with it, emo-nano lost least on text."""
METHOD = f"{SEQUENCES}x{TOKENS}-{SEED}-{MARGIN}"


def scales_of(folder: Path, opening: Callable[..., OnnxModel]) -> F32:
    """The scales (layers, 2, heads, size) for a folder, measured where they are not yet stored.

    They are kept in this user's cache, where there is one. `opening` opens the float graph
    with the `context` that it is given.
    """
    place = None
    with suppress(EmoExportError):  # no home
        place = cache_folder("kv-scales", "") / f"{prepacked_key(folder).digest}-{METHOD}.npy"
    if place is not None and place.is_file():
        with suppress(OSError, ValueError, EOFError):  # damaged: measured anew
            scales = np.asarray(np.load(place, allow_pickle=False), np.float32)
            if np.isfinite(scales).all() and (scales > 0).all():
                return scales
    most = read_config(folder)["max_position_embeddings"]
    model = opening(context=min(TOKENS, most))
    try:
        scales = measured(model)
    finally:
        model.close()
    if place is not None:
        stored = io.BytesIO()
        np.save(stored, scales)
        # A disk that is full or read-only, or another process that writes: they are measured again.
        with suppress(OSError, EmoExportError):
            make_private(place.parent)
            write_whole(place, stored.getvalue())
    return scales


def measured(model: OnnxModel) -> F32:
    """The scales (layers, 2, heads, size) that hold what random tokens give, with MARGIN."""
    rng = np.random.default_rng(SEED)
    largest: list[npt.NDArray[np.float64]] = []
    for _ in range(SEQUENCES):
        ids = rng.integers(0, model.vocab_size, model.context_length)
        model.reset()
        model.forward(ids, last=True)
        found = model.keys_and_values()
        peaks = [np.abs(rows).max(1).astype(np.float64) for rows in found]
        peaks[::2] = [_rotated(rows) for rows in found[::2]]
        for layer, peak in enumerate(peaks):
            if not np.isfinite(peak).all():
                raise EmoExportError(
                    f"the {'values' if layer % 2 else 'keys'} of layer {layer // 2} are not finite "
                    "on random tokens, so its KV cache can't be int8"
                )
        largest = peaks if not largest else [*map(np.maximum, largest, peaks)]
    scales = np.maximum(np.stack(largest) * MARGIN / LARGEST, np.finfo(np.float32).tiny)
    return scales.astype(np.float32).reshape(-1, 2, *scales.shape[1:])


def _rotated(keys: F32) -> npt.NDArray[np.float64]:
    """Keys (heads, T, size) -> the largest that a channel can be at any position: (heads, size)."""
    half = keys.shape[2] // 2
    length = np.hypot(keys[..., :half], keys[..., half:]).max(1).astype(np.float64)
    return np.concatenate([length, length], -1)


def with_int8_cache(model: bytes, scales: F32, names: Sequence[str]) -> bytes:
    """The bytes of a model whose inputs and outputs `names` are int8, by scales of each layer.

    Raises EmoExportError for a graph whose attention is not one GroupQueryAttention a layer.
    """
    graphs = [message_of(field) for field in fields_of(model) if field.number == GRAPH]
    if len(graphs) != 1:
        raise EmoExportError(f"there are {len(graphs)} graphs in an ONNX model, expected one")
    outside = b"".join(field.raw for field in fields_of(model) if field.number != GRAPH)
    return outside + bytes_field(GRAPH, b"".join(_changed(graphs[0], scales, set(names))))


def _changed(graph: bytes, scales: F32, names: set[str]) -> Iterator[bytes]:
    layer = 0
    for field in fields_of(graph):
        if field.number == NODE and _text(field, 4) == OPERATOR:
            if layer < len(scales):
                inputs = [f"layers.{layer}.{part}.scale" for part in ("key", "value")]
                yield bytes_field(NODE, _quantised(message_of(field), inputs))
                for name, each in zip(inputs, scales[layer], strict=True):
                    yield bytes_field(INITIALIZER, tensor_bytes(name, each[None, :, None]))
            layer += 1
        elif field.number in (INPUT, OUTPUT) and _text(field, 1) in names:
            yield bytes_field(field.number, _int8(message_of(field)))
        else:
            yield field.raw
    if layer != len(scales):
        raise EmoExportError(
            f"an ONNX graph has {layer} {OPERATOR} for {len(scales)} layers, so its KV cache can't "
            "be int8"
        )


def _text(field: Field, number: int) -> str:
    """A text of a message; empty where it has none."""
    found = [part.value for part in fields_of(message_of(field)) if part.number == number]
    return decoded(found[-1]) if found else ""


def _quantised(node: bytes, scales: Sequence[str]) -> bytes:
    given = sum(field.number == 1 for field in fields_of(node))
    if given > K_SCALE:
        raise EmoExportError(f"a {OPERATOR} of an ONNX graph has {given} inputs, scales among them")
    inputs = [b""] * (K_SCALE - given) + [name.encode() for name in scales]
    kinds: Mapping[str, Attribute] = {
        "k_quant_type": "PER_CHANNEL",
        "v_quant_type": "PER_CHANNEL",
        "kv_cache_bit_width": 8,
    }
    added = [bytes_field(1, name) for name in inputs]
    added += [bytes_field(5, attribute_bytes(name, value)) for name, value in kinds.items()]
    return node + b"".join(added)


def _int8(value: bytes) -> bytes:
    """A ValueInfoProto with another element type: field 1 of a tensor in field 1 of field 2."""
    return _within(value, (2, 1, 1))


def _within(message: bytes, path: tuple[int, ...]) -> bytes:
    changed = []
    for field in fields_of(message):
        if field.number != path[0]:
            changed.append(field.raw)
        elif len(path) == 1:
            number_of(field)
            changed.append(int_field(field.number, INT8))
        else:
            changed.append(bytes_field(field.number, _within(message_of(field), path[1:])))
    return b"".join(changed)
