"""The sites of a model: parts of some layers that get one type, and how many bytes they take."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from emo_export.interfaces import Format
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role, Slot, shape_of, slots
from emo_export.model.recipes import Part
from emo_export.model.scheme import part_of

FEW_LAYERS = 4
"""Up to so many, each is a group by itself; more are a first quarter, a middle and a last one."""
FIXED = (Part.ROUTER, Part.VECTOR)
PER_LAYER = (Part.ATTENTION, Part.EXPERT, Part.EXPERT_DOWN, Part.SHARED_EXPERT, Part.DENSE)

Place = tuple[Part, int]
"""A part of one layer; the layer of embedding and head is -1."""


@dataclass(frozen=True)
class Site:
    """Parts that get one type together, in the layers from `first` to `last` (both -1: in none)."""

    parts: tuple[Part, ...]
    first: int
    last: int

    def places(self) -> Iterator[Place]:
        """Its parts of its layers."""
        for part in self.parts:
            for layer in range(self.first, self.last + 1):
                yield part, layer


def place_of(slot: Slot, config: EmoConfig) -> Place:
    """The place of a matrix; a tied head is the embedding."""
    if slot.role == Role.HEAD and config.tie_word_embeddings:
        return Part.EMBED, -1
    return part_of(slot, config), slot.layer


def groups(layers: int) -> list[tuple[int, int]]:
    """(first, last) of each group of layers."""
    if layers <= FEW_LAYERS:
        return [(layer, layer) for layer in range(layers)]
    quarter = layers // 4
    return [(0, quarter - 1), (quarter, layers - quarter - 1), (layers - quarter, layers - 1)]


def sites(config: EmoConfig, together: Collection[Part] = ()) -> list[Site]:
    """All sites of a model; parts in `together` share theirs."""
    present = {place_of(slot, config) for slot in slots(config)}
    found = [Site((part,), -1, -1) for part in (Part.EMBED, Part.HEAD) if (part, -1) in present]
    units: list[tuple[Part, ...]] = [(part,) for part in PER_LAYER if part not in together]
    if together:
        units.append(tuple(part for part in PER_LAYER if part in together))
    for first, last in groups(config.num_hidden_layers):
        for unit in units:
            has = [(part, n) in present for part in unit for n in range(first, last + 1)]
            if any(has):
                found.append(Site(unit, first, last))
    return found


def slots_of(site: Site, config: EmoConfig) -> list[Slot]:
    """Every matrix of a site."""
    places = set(site.places())
    return [slot for slot in slots(config) if place_of(slot, config) in places]


@dataclass(frozen=True)
class Bytes:
    """`stored`: in the file. `read`: by one decode step, of routed experts those of a token."""

    stored: int
    read: float


def bytes_of(matrices: Sequence[Slot], kind: Format, config: EmoConfig) -> Bytes:
    """What matrices take as one format; of the embedding a step reads a row unless it is tied."""
    stored, read = 0, 0.0
    for slot in matrices:
        rows, cols = shape_of(slot, config)
        nbytes, share = kind.nbytes(rows, cols), 1.0
        if slot.role == Role.EMBED and not config.tie_word_embeddings:
            share = 1 / rows
        elif slot.expert >= 0 and slot.expert not in config.layers[slot.layer].forced:
            layer = config.layers[slot.layer]
            share = layer.num_routed_per_tok / len(layer.routed)
        stored += nbytes
        read += nbytes * share
    return Bytes(stored, read)


@dataclass(frozen=True)
class Candidates:
    """The types that a target may have: lines of names, formats by name, parts that share a type.

    The last line is of types that fit any row. `routed`: types for routed experts besides, and of
    what hidden size and twice an expert's width must be multiples for each.
    """

    lines: Sequence[Sequence[str]]
    known: Mapping[str, Format]
    together: Collection[Part] = ()
    routed: Mapping[str, int] = field(default_factory=dict)

    def fitting(self, matrices: Sequence[Slot], config: EmoConfig) -> Sequence[str]:
        """The first line whose types' blocks divide all rows of the matrices, and `routed`."""
        cols = math.gcd(*(shape_of(slot, config)[-1] for slot in matrices))
        found = next(
            line for line in self.lines if all(cols % self.known[name].block == 0 for name in line)
        )
        parts = {part_of(slot, config) for slot in matrices}
        if not parts <= {Part.EXPERT, Part.EXPERT_DOWN}:
            return found
        sizes = math.gcd(config.hidden_size, 2 * config.intermediate_size)
        more = (
            name
            for name, least in self.routed.items()
            if sizes % least == 0 and cols % self.known[name].block == 0
        )
        return (*found, *more)
