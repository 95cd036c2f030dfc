"""QuantScheme: which format each matrix of a model gets, from a recipe that is data."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NoReturn

from emo_export.errors import EmoExportError
from emo_export.interfaces import Format
from emo_export.model.config import EmoConfig
from emo_export.model.names import VECTORS, Role, Slot, shape_of, slots
from emo_export.model.recipes import NEXT_BETTER, Part, Recipe, in_layer
from emo_export.spec import Spec

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
    Role.GATE: Part.EXPERT,
    Role.UP: Part.EXPERT,
    Role.DOWN: Part.EXPERT_DOWN,
}


def part_of_role(role: Role) -> Part:
    """The part of the model that a role belongs to, an expert's being a routed one."""
    return Part.VECTOR if role in VECTORS else _PARTS[role]


def part_of(slot: Slot, config: EmoConfig) -> Part:
    """The part of the model that a slot belongs to; an expert that every token uses is shared."""
    if slot.expert >= 0 and slot.expert in config.layers[slot.layer].forced:
        return Part.SHARED_EXPERT
    return part_of_role(slot.role)


@dataclass(frozen=True)
class QuantScheme:
    """The format of every matrix of one target, with the rows that did not fit their type.

    `fallbacks` maps a tensor name to (type of the recipe, type used instead).
    """

    spec: Spec
    used_recipe: Recipe  # of the parts that the model has
    formats: Mapping[Slot, Format]
    fallbacks: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def format_of(self, slot: Slot) -> Format:
        """The format of one slot."""
        return self.formats[slot]


def resolve(
    spec: Spec,
    recipe: Recipe,
    known: Mapping[str, Format],
    config: EmoConfig,
    uniform: frozenset[Part] = frozenset(),
) -> QuantScheme:
    """Give every slot of the model a format that its rows fit.

    All matrices of all parts in `uniform` get the same format (QMoE has one block size for all).

    Raises EmoExportError when no type fits a row, naming the tensor and its width, and for a recipe
    of a model with other parts or layers.
    """
    present = {part_of(slot, config) for slot in slots(config)}
    _check_recipe(spec, recipe, present, config)
    formats: dict[Slot, Format] = {}
    fallbacks: dict[str, tuple[str, str]] = {}
    shared = {shape_of(s, config)[-1] for s in slots(config) if part_of(s, config) in uniform}
    for slot in slots(config):
        part = part_of(slot, config)
        wanted = in_layer(recipe[part], slot.layer)
        cols = shared if part in uniform else {shape_of(slot, config)[-1]}
        chosen = _fitting(wanted, known, cols)
        if chosen is None:
            _refuse(wanted, known, config, uniform if part in uniform else frozenset({part}))
        if chosen != wanted:
            fallbacks[slot.name] = (wanted, chosen)
        formats[slot] = known[chosen]
    used = {part: name for part, name in recipe.items() if part in present}
    return QuantScheme(spec, used, formats, fallbacks)


def _check_recipe(
    spec: Spec, recipe: Recipe, present: AbstractSet[Part], config: EmoConfig
) -> None:
    missing = [part.value for part in Part if part in present and part not in recipe]
    if missing:
        raise EmoExportError(
            f"{spec} has no type of its own for {', '.join(missing)}: let export choose (--bits, "
            "--size, --read-per-token or --fit, with --calibration), or give it --recipe FILE"
        )
    for part, types in recipe.items():
        layers = 0 if part in (Part.EMBED, Part.HEAD) else config.num_hidden_layers
        if part in present and not isinstance(types, str) and len(types) != layers:
            raise EmoExportError(
                f"{spec}: the recipe has {len(types)} types for {part.value}, this model "
                f"{config.num_hidden_layers} layers; it was made for another model"
            )


def _refuse(
    wanted: str, known: Mapping[str, Format], config: EmoConfig, parts: frozenset[Part]
) -> NoReturn:
    """Name a tensor of the parts whose rows fit neither the type nor the next better ones."""
    for slot in slots(config):
        cols = shape_of(slot, config)[-1]
        if part_of(slot, config) in parts and _fitting(wanted, known, {cols}) is None:
            raise EmoExportError(
                f"{slot.name}: rows of {cols} fit no block of {wanted} or of the next better "
                "types; export this model as f32"
            )
    names = " and ".join(sorted(parts))
    raise EmoExportError(
        f"no one block of {wanted} fits all {names} matrices; export this model as f32"
    )


def _fitting(wanted: str, known: Mapping[str, Format], cols: set[int]) -> str | None:
    for name in (wanted, *NEXT_BETTER.get(wanted, ())):
        if all(width % known[name].block == 0 for width in cols):
            return name
    return None
