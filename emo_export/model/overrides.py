"""`--tensor-type ROLE=TYPE`: another type for one part of the model."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from emo_export.base.near import did_you_mean
from emo_export.errors import EmoExportError
from emo_export.model.recipes import Part
from emo_export.model.scheme import QuantScheme

FIXED = (Part.ROUTER, Part.VECTOR)


def parse_overrides(
    given: Sequence[str], types: Mapping[str, Collection[str]]
) -> dict[str, dict[Part, str]]:
    """`expert_down=q5_k` -> {"gguf": {Part.EXPERT_DOWN: "q5_k"}, "onnx": {}}.

    `types` names the types of each kind of target that is asked for; an entry goes to the kinds
    that know its type. Raises EmoExportError for what is not ROLE=TYPE, for a type that none knows,
    and for a role whose type is fixed.
    """
    roles = [part.value for part in Part if part not in FIXED]
    found: dict[str, dict[Part, str]] = {kind: {} for kind in types}
    for entry in given:
        role, _, name = entry.lower().partition("=")
        if role in [part.value for part in FIXED]:
            raise EmoExportError(
                f"--tensor-type {entry}: the {role} stays f32: quantised, text loops and little "
                "is saved"
            )
        takers = [kind for kind, known in types.items() if name in known]
        if role not in roles or not takers:
            known = "; or ".join(f"{', '.join(names)} ({kind})" for kind, names in types.items())
            kinds = {name for names in types.values() for name in names}
            slip = did_you_mean(role, roles) if role not in roles else did_you_mean(name, kinds)
            raise EmoExportError(
                f"--tensor-type {entry}: expected ROLE=TYPE, with ROLE one of {', '.join(roles)} "
                f"and TYPE one of {known}{slip}"
            )
        for kind in takers:
            if Part(role) in found[kind]:
                raise EmoExportError(f"--tensor-type {entry}: {role} is there twice")
            found[kind][Part(role)] = name
    return found


def check_overrides(overrides: Iterable[Part], scheme: QuantScheme, kind: str) -> None:
    """Refuse a type for a part that this model has not, which would change nothing."""
    for part in overrides:
        if part not in scheme.used_recipe:
            raise EmoExportError(
                f"--tensor-type {part.value}: this model's {kind} has no such part; it has "
                + ", ".join(p.value for p in scheme.used_recipe if p not in FIXED)
            )
