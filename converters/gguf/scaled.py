"""A scheme fitted to a graph: one type for all that shares a tensor, and factors on `down`.

See `gguf_graph.Stack` for where the factors come from. They go into the rows before these are
packed, so that the file holds what the format made of them; the dequantised reference divides them
out again and is what the engine computes with.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from emo_export.converters.gguf.formats import GGML_FORMATS, GgmlFormat
from emo_export.converters.gguf.graph import Graph, Stack, graph_of
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Format, Packed
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, shape_of
from emo_export.model.recipes import NEXT_BETTER, Part
from emo_export.model.scheme import QuantScheme


class Scaled:
    """A Format for rows (N, C) whose columns from `first` on are stored multiplied by `factor`.

    `scaled` makes one per combination, so that equal ones are identical.
    """

    def __init__(self, inner: GgmlFormat, factor: float, first: int) -> None:
        self.inner, self.factor, self.first = inner, factor, first
        self.name, self.block, self.kind = inner.name, inner.block, inner.kind

    @property
    def needs_importance(self) -> bool:
        """Whether the inner format can't be packed without an importance matrix."""
        return self.inner.needs_importance

    def nbytes(self, rows: int, cols: int) -> int:
        """Bytes of (rows, cols): the inner format's."""
        return self.inner.nbytes(rows, cols)

    def quantize(self, rows: F32, importance: F32 | None = None) -> Packed:
        """Rows (N, C) float32 -> the inner format's packed rows; importance (C,) goes along.

        A factor moves all of a column, so the columns' importance for the error stays as it was.
        """
        large = rows.copy()
        with np.errstate(over="ignore"):  # the inner format refuses what is infinite then
            large[:, self.first :] *= np.float32(self.factor)
        return self.inner.quantize(large, importance)

    def dequantize(self, packed: Packed) -> F32:
        """Packed rows -> (N, C) float32, the factor divided out."""
        rows = self.inner.dequantize(packed).copy()
        rows[:, self.first :] /= np.float32(self.factor)
        return rows

    def check(self, packed: Packed) -> None:
        """As the inner format does."""
        self.inner.check(packed)


@functools.cache
def scaled(inner: GgmlFormat, factor: float, first: int = 0) -> Scaled:
    """The format that multiplies columns from `first` on before it packs."""
    return Scaled(inner, factor, first)


def fit_to_graph(scheme: QuantScheme, config: EmoConfig, arch: str) -> QuantScheme:
    """The scheme with each matrix in the format that its tensor has in the graph of `arch`.

    Fitting a fitted scheme changes nothing. Raises EmoExportError when a part of a dense layer's
    rows fits no block.
    """
    graph = graph_of(config, arch)
    formats, fallbacks = dict(scheme.formats), dict(scheme.fallbacks)
    for index, stack in enumerate(graph.stacks):
        if stack is None:
            continue
        if config.layers[index].is_dense:
            _fit_dense(Slot(Role.DENSE_DOWN, index), config, graph, formats, fallbacks)
        else:
            _fit_stack(index, config, stack, formats, fallbacks)
    used = dict(scheme.used_recipe)
    layers = [layer for layer in config.layers if layer.forced]
    if all(layer.always_active_experts and layer.routed for layer in layers):
        used.pop(Part.SHARED_EXPERT, None)  # they stand among the routed ones, with their type
    return replace(scheme, used_recipe=used, formats=formats, fallbacks=fallbacks)


def _fit_stack(
    index: int,
    config: EmoConfig,
    stack: Stack,
    formats: dict[Slot, Format],
    fallbacks: dict[str, tuple[str, str]],
) -> None:
    """All of a stack take the type of a routed expert, also those that are always active."""
    stacked = [expert for expert in stack.experts if expert >= 0]
    for role in (Role.GATE, Role.UP, Role.DOWN) if stacked else ():
        model = Slot(role, index, (config.layers[index].routed or stacked)[0])
        name, fell = formats[model].name, fallbacks.get(model.name)
        for slot in (Slot(role, index, expert) for expert in stacked):
            if formats[slot].name != name:
                formats[slot] = GGML_FORMATS[name]
                fallbacks.pop(slot.name, None)
                if fell is not None:
                    fallbacks[slot.name] = fell
            if role == Role.DOWN and stack.factor != 1.0:
                formats[slot] = scaled(GGML_FORMATS[name], stack.factor)


def _fit_dense(
    slot: Slot,
    config: EmoConfig,
    graph: Graph,
    formats: dict[Slot, Format],
    fallbacks: dict[str, tuple[str, str]],
) -> None:
    """A dense `down` that is cut every F columns: F must be a multiple of the block as well."""
    width, whole = config.intermediate_size, shape_of(slot, config)[1]
    wanted, stack = formats[slot].name, graph.stacks[slot.layer]
    for name in (wanted, *NEXT_BETTER.get(wanted, ())):
        if not (width % GGML_FORMATS[name].block or whole % GGML_FORMATS[name].block):
            break
    else:
        raise EmoExportError(
            f"{slot.name}: parts of {width} columns fit no block of {wanted} or of the next better "
            "types; export this model as f32"
        )
    if name != wanted:
        formats[slot] = GGML_FORMATS[name]
        fallbacks[slot.name] = (fallbacks.get(slot.name, (wanted, name))[0], name)
    if stack is not None and max(stack.experts) >= 0:
        # What stands in the shared expert's place is not weighted.
        formats[slot] = scaled(GGML_FORMATS[name], stack.factor, graph.shared * width)
