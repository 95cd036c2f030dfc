"""Bytes that a model would have in another format, from the header of the one that is there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufTensor
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.files.gguf_parts import read_model
from emo_export.files.gguf_types import TENSOR_TYPES
from emo_export.files.onnx_header import OnnxTensor, read_onnx
from emo_export.files.onnx_names import SCALES, element_of, held, part_of
from emo_export.model.recipes import (
    BLOCKS,
    GGUF_RECIPES,
    NEXT_BETTER,
    ONNX_RECIPES,
    LayerTypes,
    Part,
    in_layer,
)
from emo_export.spec import GGUF, Spec

_BLOCKS = {name.lower(): (block, nbytes) for name, block, nbytes in TENSOR_TYPES.values()}
_INT_BLOCKS = re.compile(r"int([248])b(\d+)")


def gguf_sizes(path: Path) -> dict[Spec, int]:
    """Target -> bytes of its tensors, for every recipe.

    Raises EmoExportError for a file that export did not write.
    """
    tensors = read_model(path).tensors
    return {
        Spec(GGUF, name): sum(_gguf_bytes(path, tensor, recipe) for tensor in tensors)
        for name, recipe in GGUF_RECIPES.items()
    }


def onnx_sizes(path: Path, spec: Spec) -> dict[Spec, int]:
    """Target -> bytes of its tensors, for every recipe of the graph of `spec`, which is at `path`.

    A folder without its recipe has no others. That a row may not fit a block is left out.
    """
    return {replace(spec, type=name): size for name, size in _onnx_sizes(path, spec.graph)}


def _gguf_bytes(path: Path, tensor: GgufTensor, recipe: Mapping[Part, str]) -> int:
    held = GGUF_NAMES.held(tensor.name)
    if held is None:
        raise EmoExportError(
            f"{path}: {tensor.name} is no tensor that export writes, so sizes are not known"
        )
    part = held.part
    if part in (Part.ROUTER, Part.VECTOR):
        return tensor.nbytes
    count = 1
    for size in tensor.shape:
        count *= size
    for name in (recipe[part], *NEXT_BETTER.get(recipe[part], ())):
        block, nbytes = _BLOCKS[name]
        if tensor.shape[-1] % block == 0:
            return count // block * nbytes
    return tensor.nbytes


def _onnx_sizes(path: Path, graph: str) -> Iterator[tuple[str, int]]:
    stored: Mapping[str, LayerTypes] = read_json(path / "emo_export.json").get("recipe") or {}
    initializers = read_onnx(path / "model.onnx").initializers
    named = {n for types in stored.values() for n in ([types] if isinstance(types, str) else types)}
    lengths = [int(found[2]) for name in named if (found := _INT_BLOCKS.match(name))]
    block = max(lengths, default=BLOCKS[0])
    for name, recipe in ONNX_RECIPES[graph].items() if stored else ():
        total = 0.0
        for tensor in initializers:
            part = part_of(tensor.name)
            if part is None or part not in stored:
                total += tensor.nbytes
            elif element_of(tensor.name) != SCALES:  # those come with their weights
                count = tensor.nbytes * 8 / _bits(_stored_type(stored[part], tensor.name))
                total += count * _bits(recipe[part]) / 8
                total += 4 * count / _columns(recipe[part], tensor, block)
        yield name, round(total)


def _stored_type(types: LayerTypes, name: str) -> str:
    """The type of an initializer of a part."""
    found = held(name)
    return in_layer(types, -1 if found is None else found.layer)


def _bits(name: str) -> int:
    """Bits of one stored weight: f32, int8, int4b128, int8row."""
    return 32 if name == "f32" else int(name[3])


def _columns(name: str, tensor: OnnxTensor, block: int) -> float:
    """Weights for each scale, infinity where there is none."""
    if name == "f32":
        return math.inf
    return tensor.shape[-1] if name.endswith("row") else block
