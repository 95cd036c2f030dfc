"""recipe.json: the types that were chosen for the targets of an export, to be chosen again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.target_entry import recipe_from
from emo_export.model.recipes import Part, Recipe
from emo_export.spec import Spec

RECIPE = "recipe.json"


def write_recipes(folder: Path, found: Mapping[Spec, Mapping[str, Any]]) -> None:
    """Write what is known of each target's choice; `types` of each is its recipe."""
    said = {str(spec): facts for spec, facts in found.items()}
    (folder / RECIPE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def read_recipes(path: Path) -> dict[Spec, dict[str, Any]]:
    """All that a file says, by target. Raises EmoExportError for what is not one."""
    found = {}
    for name, facts in read_json(path).items():
        if not isinstance(facts, dict) or "types" not in facts:
            raise EmoExportError(f"{path}: {name} has no types; it is no {RECIPE} of an export")
        found[Spec.parse(name)] = facts
    return found


def types_in(facts: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe in what a file says of a target. Raises EmoExportError for another form."""
    try:
        return {Part(part): types for part, types in recipe_from(facts["types"]).items()}
    except ValueError as error:
        raise EmoExportError(f"{path}: {error}; was it changed by hand?") from error
