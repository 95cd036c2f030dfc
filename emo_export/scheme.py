"""QuantScheme: which format each matrix gets. The recipes are data; norms and biases stay float32.

The router stays in float32: a 4-bit router loops, and it is 0.05% of the size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NoReturn

from emo_export.config import EmoConfig
from emo_export.errors import EmoExportError
from emo_export.interfaces import Format
from emo_export.names import VECTORS, Role, Slot, shape_of, slots


class Part(StrEnum):
    """The parts of the model to which a recipe gives a type."""

    EMBED = "embed"
    ATTENTION = "attention"
    ROUTER = "router"
    EXPERT = "expert"
    SHARED_EXPERT = "shared_expert"
    DENSE = "dense"
    HEAD = "head"
    VECTOR = "vector"


def _recipe(expert: str, rest: str) -> Mapping[Part, str]:
    return {part: rest for part in Part} | {
        Part.EXPERT: expert,
        Part.ROUTER: "f32",
        Part.VECTOR: "f32",
    }


GGUF_RECIPES: Mapping[str, Mapping[Part, str]] = {
    "f32": _recipe("f32", "f32"),
    "f16": _recipe("f16", "f16"),
    "bf16": _recipe("bf16", "bf16"),
    "q8_0": _recipe("q8_0", "q8_0"),
    "q4_0": _recipe("q4_0", "q8_0"),
}
ONNX_RECIPES: Mapping[str, Mapping[Part, str]] = {
    "f32": _recipe("f32", "f32"),
    "int8": _recipe("int8b32", "int8b32"),
    "int4": _recipe("int4b32", "int8b32"),
}

# When a row is not a multiple of a type's block: the next better types, in order.
NEXT_BETTER: Mapping[str, Sequence[str]] = {
    "q4_0": ("f16",),
    "q8_0": ("f16",),
    "int4b32": ("int4b16",),
    "int8b32": ("int8b16",),
}

_PARTS: Mapping[Role, Part] = {
    Role.EMBED: Part.EMBED,
    Role.HEAD: Part.HEAD,
    Role.Q: Part.ATTENTION,
    Role.K: Part.ATTENTION,
    Role.V: Part.ATTENTION,
    Role.O: Part.ATTENTION,
    Role.ROUTER: Part.ROUTER,
    Role.DENSE_GATE: Part.DENSE,
    Role.DENSE_UP: Part.DENSE,
    Role.DENSE_DOWN: Part.DENSE,
}


def part_of(slot: Slot, config: EmoConfig) -> Part:
    """The part of the model that a slot belongs to; an expert that every token uses is shared."""
    if slot.role in VECTORS:
        return Part.VECTOR
    if slot.role in _PARTS:
        return _PARTS[slot.role]
    forced = config.layers[slot.layer].forced
    return Part.SHARED_EXPERT if slot.expert in forced else Part.EXPERT


@dataclass(frozen=True)
class QuantScheme:
    """The format of every matrix of one target, with the rows that did not fit their type.

    `fallbacks` maps a tensor name to (type of the recipe, type used instead).
    """

    type_name: str
    used_recipe: Mapping[Part, str]  # of the parts that the model has
    formats: Mapping[Slot, Format]
    fallbacks: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def format_of(self, slot: Slot) -> Format:
        """The format of one slot."""
        return self.formats[slot]


def resolve(
    type_name: str,
    recipe: Mapping[Part, str],
    known: Mapping[str, Format],
    config: EmoConfig,
    uniform: frozenset[Part] = frozenset(),
) -> QuantScheme:
    """Give every slot of the model a format that its rows fit.

    Every matrix of a part in `uniform` gets the same format (QMoE has one block size for all).

    Raises EmoExportError when no type fits a row, naming the tensor and its width.
    """
    formats: dict[Slot, Format] = {}
    fallbacks: dict[str, tuple[str, str]] = {}
    widths: dict[Part, set[int]] = {}
    for slot in slots(config):
        widths.setdefault(part_of(slot, config), set()).add(shape_of(slot, config)[-1])
    for slot in slots(config):
        wanted = recipe[part_of(slot, config)]
        part = part_of(slot, config)
        cols = {shape_of(slot, config)[-1]}
        if part in uniform:
            cols = widths[part]
        chosen = _fitting(wanted, known, cols)
        if chosen is None:
            _refuse(wanted, known, config, part)
        if chosen != wanted:
            fallbacks[slot.name] = (wanted, chosen)
        formats[slot] = known[chosen]
    used = {part: name for part, name in recipe.items() if part in widths}
    return QuantScheme(type_name, used, formats, fallbacks)


def _refuse(wanted: str, known: Mapping[str, Format], config: EmoConfig, part: Part) -> NoReturn:
    """Name a tensor of the part whose rows fit neither the type nor the next better ones."""
    for slot in slots(config):
        cols = shape_of(slot, config)[-1]
        if part_of(slot, config) == part and _fitting(wanted, known, {cols}) is None:
            raise EmoExportError(
                f"{slot.name}: rows of {cols} fit no block of {wanted} or of the next better "
                "types; export this model as f32"
            )
    raise EmoExportError(f"no block of {wanted} fits all {part} matrices; export this model as f32")


def _fitting(wanted: str, known: Mapping[str, Format], cols: set[int]) -> str | None:
    for name in (wanted, *NEXT_BETTER.get(wanted, ())):
        if all(width % known[name].block == 0 for width in cols):
            return name
    return None
