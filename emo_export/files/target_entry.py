"""What manifest.json says of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from emo_export.model.recipes import LayerTypes
from emo_export.spec import Spec


@dataclass(frozen=True)
class ImportanceSource:
    """The importance matrix that a target was quantised with: its file, and the text it is of."""

    file: str
    source: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class TargetEntry:
    """One target of a folder.

    `path` is that of its file or folder, relative to the export's. `recipe` gives the type of each
    part, or that of each layer (None: not known), `fallbacks` maps a tensor whose rows did not fit
    it to (type of the recipe, type used). `arch`, `context` and `importance` are told of GGUF
    alone, `graph` and what follows it of ONNX; `no_genai` says why there is no genai_config.json
    (empty: there is one). `trunk` is the file of what it has in common with other domains'
    (None: not in a file apart).
    `rounding`: how its weights were rounded to their grids (None: not told).
    """

    spec: Spec
    path: str
    recipe: Mapping[str, LayerTypes] | None = None
    fallbacks: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    arch: str | None = None
    context: int | None = None
    importance: ImportanceSource | None = None
    graph: str | None = None
    onnxruntime: str | None = None
    logits_to_keep: int | None = None
    no_genai: str | None = None
    trunk: str | None = None
    rounding: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Its file or folder, and the trunk where that lies beside it."""
        if self.trunk is None or self.trunk.startswith(f"{self.path}/"):
            return (self.path,)
        return self.path, self.trunk

    def as_dict(self) -> dict[str, Any]:
        """For manifest.json, where the spec is the key; what is None is left out."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name != "spec" and value is not None
        }

    @classmethod
    def from_dict(cls, spec: Spec, raw: Mapping[str, Any]) -> TargetEntry:
        """Read what `as_dict` made; what a newer version says beside it is left out.

        Raises ValueError, KeyError or TypeError for what is not of our form.
        """
        said = {f.name: raw[f.name] for f in fields(cls) if f.name in raw and f.name != "spec"}
        if not isinstance(raw["path"], str):
            raise ValueError(f"path of {spec} is {raw['path']!r}")
        if "recipe" in said:
            said["recipe"] = recipe_from(said["recipe"])
        for name, kind in _TYPES.items():
            if not isinstance(said.get(name, kind()), kind):
                raise ValueError(f"{name} of {spec} is {said[name]!r}")
        if "importance" in said:
            made = said["importance"]
            if not isinstance(made["file"], str):
                raise ValueError(f"importance of {spec} is in {made['file']!r}")
            said["importance"] = ImportanceSource(
                made["file"], made.get("source", ""), made.get("tokens", 0)
            )
        if "fallbacks" in said:
            said["fallbacks"] = {name: (a, b) for name, (a, b) in said["fallbacks"].items()}
        return cls(spec, **said)


def recipe_from(raw: Any) -> dict[str, LayerTypes]:
    """A recipe that was read from JSON. Raises ValueError for what is not of our form."""
    if not isinstance(raw, dict):
        raise ValueError(f"recipe is {raw!r}")
    found: dict[str, LayerTypes] = {}
    for part, types in raw.items():
        if isinstance(types, list) and types and all(isinstance(name, str) for name in types):
            found[part] = tuple(types)
        elif isinstance(types, str):
            found[part] = types
        else:
            raise ValueError(f"recipe gives {part} the type {types!r}")
    return found


_TYPES: Mapping[str, type[str] | type[int]] = {
    "arch": str,
    "context": int,
    "graph": str,
    "onnxruntime": str,
    "logits_to_keep": int,
    "no_genai": str,
    "trunk": str,
    "rounding": str,
}
