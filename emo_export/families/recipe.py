"""What both families check: options that no target takes, and the types that a manifest names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from emo_export.errors import EmoExportError
from emo_export.files.target_entry import TargetEntry
from emo_export.model.recipes import LayerTypes, Part


def refuse_unused(family: str, given: Mapping[str, object]) -> None:
    """Raise EmoExportError for an option that was given, where its family has no target."""
    for option, value in given.items():
        if value:
            raise EmoExportError(f"{option} is for {family} targets only, and there is none")


def known_recipe(entry: TargetEntry, known: Collection[str]) -> dict[Part, LayerTypes]:
    """The type of each part; refuses by name what this version doesn't know."""
    recipe: dict[Part, LayerTypes] = {}
    for role, types in (entry.recipe or {}).items():
        names = (types,) if isinstance(types, str) else types
        for name in names:
            if role not in list(Part) or name not in known:
                raise EmoExportError(
                    f"{entry.spec}: its recipe gives {role} the type {name}, which this version "
                    "does not know; was manifest.json changed, or made by a newer emo-export?"
                )
        recipe[Part(role)] = types
    return recipe
