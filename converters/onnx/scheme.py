"""Which block format each matrix of an ONNX target gets."""

from __future__ import annotations

from collections.abc import Mapping

from emo_export.converters.onnx.formats import NBITS_FORMATS, IntBlocks
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.recipes import (
    AUTO,
    BLOCKS,
    CHOSEN,
    ONNX_RECIPES,
    ROWS_OF_2_BITS,
    LayerTypes,
    Part,
    Recipe,
)
from emo_export.model.rope import rope_type
from emo_export.model.scheme import QuantScheme, part_of, resolve
from emo_export.spec import Spec

SHORT = ("int8", "int4", "int2")
"""Types whose block is the target's; NBITS_FORMATS has them with one, as int4b32."""
OVERRIDING = ("f32", *SHORT, *(name for name in NBITS_FORMATS if name not in ("f32", "int8row")))


def onnx_scheme(
    spec: Spec,
    config: EmoConfig,
    overrides: Mapping[Part, LayerTypes] | None = None,
    block: int = BLOCKS[0],
) -> QuantScheme:
    """The formats of an ONNX target for this model, in blocks of so many columns.

    `overrides` gives some parts another type. Raises EmoExportError for an unknown type or graph,
    and for a type that the graph can't have.
    """
    kind, graph = spec.type, spec.graph
    if graph not in ONNX_RECIPES:
        raise EmoExportError(
            f"{spec}: graph {graph!r} is not known; choose one of {', '.join(ONNX_RECIPES)}"
        )
    recipes = _recipes(graph)
    if kind not in recipes:
        raise EmoExportError(_unknown(spec))
    rope_type(config)
    if any(not s.is_dense and s.num_routed_per_tok == 0 for s in config.layers):
        raise EmoExportError("onnx: a layer whose tokens use no routed expert is not supported")
    if kind == "f32" and any(name != "f32" for name in (overrides or {}).values()):
        raise EmoExportError(
            f"{spec}: a quantised part makes it another type, which is judged by other "
            "limits: begin with int8 or int4 and give the rest f32, as in --tensor-type head=f32"
        )
    wanted = {**recipes[kind], **(overrides or {})}
    recipe = {part: _stored(types, graph, block) for part, types in wanted.items()}
    # One operator holds gate, up and down of all routed experts; QMoE has one block size for them.
    together = frozenset({Part.EXPERT, Part.EXPERT_DOWN})
    if graph != "if" and not all(layer.is_dense for layer in config.layers):
        _check_together(spec, recipe)
    uniform = together if graph == "qmoe" else frozenset()
    scheme = resolve(spec, recipe, NBITS_FORMATS, config, uniform)
    _check_2_bits(scheme, config)
    return scheme


def _stored(types: LayerTypes, graph: str, block: int) -> LayerTypes:
    """The format behind the short name of a type, or of each layer's."""
    if isinstance(types, str):
        return _format(types, graph, block)
    return tuple(_format(name, graph, block) for name in types)


def _format(name: str, graph: str, block: int) -> str:
    if graph == "if" and name.startswith("int2"):
        raise EmoExportError(
            f"the graph @if has no {name}: the ONNX Runtimes that it is for multiply 2 bits "
            "slowly; take @qmoe, or int4"
        )
    if graph != "standard":
        return f"{name}b{block}" if name in SHORT else name
    found = "int8row" if name == "int8" else name
    if found not in ("f32", "int8row"):
        raise EmoExportError(
            f"the standard graph has f32 and int8 (one scale for a row) only, not {name}: no "
            "standard operator multiplies by other blocks that are gathered at run time"
        )
    return found


def _check_together(spec: Spec, recipe: Recipe) -> None:
    up, down = (
        types if isinstance(types, str) else ", ".join(types)
        for types in (recipe.get(part, "none") for part in (Part.EXPERT, Part.EXPERT_DOWN))
    )
    if up != down:
        raise EmoExportError(
            f"{spec}: one operator holds all of the routed experts, so expert ({up}) and "
            f"expert_down ({down}) must have the same type; only the graph @if can tell them apart"
        )


def _check_2_bits(scheme: QuantScheme, config: EmoConfig) -> None:
    """Refuse routed experts of 2 bits whose shape has no fast kernel."""
    expert, least = config.intermediate_size, ROWS_OF_2_BITS
    for slot, kind in scheme.formats.items():
        routed = part_of(slot, config) in (Part.EXPERT, Part.EXPERT_DOWN)
        if not routed or not isinstance(kind, IntBlocks) or kind.bits != 2:
            continue
        if config.hidden_size % least or 2 * expert % least:
            raise EmoExportError(
                f"{slot.name}: 2 bits need a hidden size of a multiple of {least} and experts "
                f"as wide as one of {least // 2}, here they are {config.hidden_size} and "
                f"{expert}; export this model as int4"
            )


def _recipes(graph: str) -> Mapping[str, Mapping[Part, str]]:
    """Of each type; the standard graph has one below f32 alone, and nothing to choose."""
    own = ONNX_RECIPES[graph]
    return own if graph == "standard" else {**own, AUTO: CHOSEN}


def _unknown(spec: Spec) -> str:
    kind, graph = spec.type, spec.graph
    known = ", ".join(_recipes(graph))
    others = [name for name in ONNX_RECIPES if kind in _recipes(name)]
    if not others:
        return f"{spec} is not a known type; choose one of {known}"
    return (
        f"onnx:{kind}@{graph}: the {graph} graph has {known} only; {kind} is possible as "
        f"{', '.join(f'onnx:{kind}@{name}' for name in others)}"
    )
