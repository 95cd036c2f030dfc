"""What a user may spend on a target, and the types that were found for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from emo_export.budget.sites import Site
from emo_export.model.recipes import LayerTypes, Part, Recipe
from emo_export.spec import Spec


class Limit(StrEnum):
    """What of a target is limited."""

    BITS = "bits"  # bytes of weights, as bits of each
    SIZE = "size"  # bytes of the file, or of all files of a folder
    READ = "read_per_token"  # bytes of weights that a decode step reads
    FIT = "fit"  # memory while it runs


@dataclass(frozen=True)
class Budget:
    """At most so many bits or bytes; `profile` is the device that --fit named."""

    limit: Limit
    amount: float
    profile: str = ""


@dataclass(frozen=True)
class Chosen:
    """The type of one site, the bytes that it takes and the KL that it alone was measured to cost.

    `stored` in the file, `read` by one decode step.
    """

    site: Site
    type: str
    stored: int
    read: float
    kl: float


@dataclass(frozen=True)
class Found:
    """What was found for one target: `used` of the budget, and its KL on `tokens` tokens of text.

    `kl` is measured with all of the types at once, `kl_sum` the sum of those of single sites.
    """

    spec: Spec
    budget: Budget
    used: float
    recipe: Recipe
    chosen: tuple[Chosen, ...]
    kl: float
    kl_sum: float
    tokens: int
    text: str

    def as_dict(self) -> dict[str, Any]:
        """For recipe.json, of which `types` is what can be repeated."""
        return {
            "types": {part.value: types for part, types in self.recipe.items()},
            "budget": asdict(self.budget),
            "used": self.used,
            "kl": self.kl,
            "kl_sum": self.kl_sum,
            "tokens": self.tokens,
            "text": self.text,
            "sites": [
                {
                    "parts": [part.value for part in one.site.parts],
                    "layers": [one.site.first, one.site.last],
                    "type": one.type,
                    "bytes": one.stored,
                    "read_per_token": one.read,
                    "kl": one.kl,
                }
                for one in self.chosen
            ],
        }


def recipe_of(chosen: Iterable[Chosen], layers: int) -> Recipe:
    """Their types; a layer without a part, of so many, has the type of one that has it."""
    places: dict[Part, dict[int, str]] = {}
    for one in chosen:
        for part, layer in one.site.places():
            places.setdefault(part, {})[layer] = one.type
    recipe: dict[Part, LayerTypes] = {}
    for part, types in places.items():
        first = next(iter(types.values()))
        names = tuple(types.get(layer, first) for layer in range(layers))
        recipe[part] = first if len(set(types.values())) == 1 else names
    return recipe
