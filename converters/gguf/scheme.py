"""Which ggml type each matrix of a GGUF target gets."""

from __future__ import annotations

from collections.abc import Mapping

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.gguf.graph import choose_arch
from emo_export.converters.gguf.scaled import fit_to_graph
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.names import Role
from emo_export.model.recipes import AUTO, CHOSEN, GGUF_RECIPES, LayerTypes, Part
from emo_export.model.scheme import QuantScheme, resolve
from emo_export.spec import GGUF, Spec


def gguf_scheme(
    type_name: str,
    config: EmoConfig,
    overrides: Mapping[Part, LayerTypes] | None = None,
    arch: str | None = None,
) -> QuantScheme:
    """The formats of a GGUF recipe for this model, with the types of some parts overridden.

    `arch` forces one of llama.cpp's graphs. Raises EmoExportError for an unknown type, or a
    configuration that no graph, or not the forced one, can express.
    """
    recipes = {**GGUF_RECIPES, AUTO: CHOSEN}
    if type_name not in recipes:
        known = ", ".join(recipes)
        raise EmoExportError(f"gguf:{type_name} is not a known type; choose one of {known}")
    graph = choose_arch(config, arch)
    recipe = {**recipes[type_name], **(overrides or {})}
    return fit_to_graph(resolve(Spec(GGUF, type_name), recipe, GGML_FORMATS, config), config, graph)


def check_importance(scheme: QuantScheme, measured: bool, head: bool = True) -> None:
    """Refuse a scheme with a type that ggml can't pack without importance, where there is none.

    `measured`: whether an importance matrix is at hand; it never has a row for the embedding, and
    one of llama-imatrix has none for the head unless asked: `head`.
    """
    for slot, kind in scheme.formats.items():
        if not GGML_FORMATS[kind.name].needs_importance:
            continue
        if slot.role == Role.EMBED:
            raise EmoExportError(
                f"{scheme.spec}: {slot.name} can't be {kind.name}, which needs an "
                "importance that nothing measures for the embedding; choose another type for it"
            )
        if not measured:
            raise EmoExportError(
                f"{scheme.spec}: {slot.name} as {kind.name} needs an importance matrix: "
                'add --calibration FILE (a .txt, a .jsonl with "text", or a folder of them), which '
                "collects one, or --imatrix FILE.gguf of llama-imatrix"
            )
        if slot.role == Role.HEAD and not head:
            raise EmoExportError(
                f"{scheme.spec}: {slot.name} can't be {kind.name}: the importance matrix "
                "has no output.weight; let llama-imatrix measure it (--process-output), or use "
                "--calibration FILE"
            )
