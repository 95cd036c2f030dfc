"""The recipes, as data: which type each part of the model gets in each target.

What every token reads (attention, the shared expert, the head) and what every position starts from
(the embedding) is a fifth of the weights and makes most of the error; a routed expert sees few
tokens and is three quarters of the bytes. So the routed experts carry the type's name and the rest
stays above them. A better `down` buys less for its bytes than any of the rest, so it stands above
gate/up only where the file has room (q5_k_m, q3_k_l, q2_k). `python -m tests.bench.recipes` prints
what each recipe costs and buys, `python -m tests.bench.sizes` the bytes beside llama-quantize's at
the released shape: fewer with many experts, more with few. Norms, biases and the router stay in
float32: a 4-bit router loops, and it is 0.05% of the size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum


class Part(StrEnum):
    """The parts of the model to which a recipe gives a type."""

    EMBED = "embed"
    ATTENTION = "attention"
    ROUTER = "router"
    EXPERT = "expert"  # gate and up of the routed experts
    EXPERT_DOWN = "expert_down"
    SHARED_EXPERT = "shared_expert"
    DENSE = "dense"
    HEAD = "head"
    VECTOR = "vector"


LayerTypes = str | tuple[str, ...]
"""One type for all layers, or one for each."""
Recipe = Mapping[Part, LayerTypes]

AUTO = "auto"
"""The type of a target whose recipe is chosen for a budget, or read from a file."""


def in_layer(types: LayerTypes, layer: int) -> str:
    """The type of a part in one layer; -1 for a part that is in none."""
    return types if isinstance(types, str) else types[layer]


def _recipe(
    expert: str, rest: str, *, down: str = "", attention: str = "", head: str = ""
) -> Mapping[Part, str]:
    """`down` defaults to the type of gate/up, `attention` and `head` to the rest's."""
    return {part: rest for part in Part} | {
        Part.EXPERT: expert,
        Part.EXPERT_DOWN: down or expert,
        Part.ATTENTION: attention or rest,
        Part.HEAD: head or rest,
        Part.ROUTER: "f32",
        Part.VECTOR: "f32",
    }


GGUF_RECIPES: Mapping[str, Mapping[Part, str]] = {
    "f32": _recipe("f32", "f32"),
    "f16": _recipe("f16", "f16"),
    "bf16": _recipe("bf16", "bf16"),
    "q8_0": _recipe("q8_0", "q8_0"),
    "q6_k": _recipe("q6_k", "q8_0"),
    "q5_k_m": _recipe("q5_k", "q8_0", down="q6_k"),
    "q5_k_s": _recipe("q5_k", "q8_0"),
    "q5_1": _recipe("q5_1", "q8_0"),
    "q5_0": _recipe("q5_0", "q8_0"),
    "q4_k_m": _recipe("q4_k", "q6_k", attention="q5_k"),
    "q4_k_s": _recipe("q4_k", "q5_k", head="q6_k"),
    "q4_1": _recipe("q4_1", "q8_0"),
    "q4_0": _recipe("q4_0", "q8_0"),
    "iq4_nl": _recipe("iq4_nl", "q8_0"),
    "iq4_xs": _recipe("iq4_xs", "q6_k"),
    "mxfp4": _recipe("mxfp4", "q8_0"),
    "q3_k_l": _recipe("q3_k", "q6_k", down="q4_k"),
    "q3_k_m": _recipe("q3_k", "q6_k", attention="q5_k"),
    "q3_k_s": _recipe("q3_k", "q5_k", head="q6_k"),
    "iq3_s": _recipe("iq3_s", "q6_k"),
    "iq3_xxs": _recipe("iq3_xxs", "q6_k"),
    "q2_k": _recipe("q2_k", "q6_k", down="q3_k"),
    "iq2_s": _recipe("iq2_s", "q6_k"),
    "iq2_xs": _recipe("iq2_xs", "q6_k"),
    "iq2_xxs": _recipe("iq2_xxs", "q6_k"),
}
_BLOCKS: Mapping[str, Mapping[Part, str]] = {
    "f32": _recipe("f32", "f32"),
    "int8": _recipe("int8", "int8"),
    "int4": _recipe("int4", "int8"),
}
_BLOCKS_2 = {**_BLOCKS, "int2": _recipe("int2", "int8")}
BLOCKS = (128, 64, 32, 16)
"""Columns that share a scale in the types int8, int4 and int2; the first is the default.

`python -m tests.bench.onnx_recipes` prints what each costs and buys. At 8 bits the length makes no
difference to the quality. 16 is for rows that fit no other.
"""
BLOCKS_OF: Mapping[int, Sequence[int]] = {8: BLOCKS, 4: BLOCKS, 2: (128, 64, 32)}
"""Those by bits: no kernel multiplies blocks of 16 at 2 bits without unpacking them first."""
ROWS_OF_2_BITS = 128
"""QMoE multiplies 2 bits where its matrices have rows in multiples of so many, and unpacks others,
50 times as slowly. Source: onnxruntime `qlutgemm.cpp`, MlasIsLutGemmAvailable."""
ONNX_RECIPES: Mapping[str, Mapping[str, Mapping[Part, str]]] = {
    "qmoe": _BLOCKS_2,
    "if": _BLOCKS,
    # No standard operator multiplies by 4-bit weights that are gathered at run time.
    "standard": {"f32": _recipe("f32", "f32"), "int8": _recipe("int8row", "int8row")},
}
"""The recipes of each ONNX graph."""
CHOSEN: Mapping[Part, str] = {Part.ROUTER: "f32", Part.VECTOR: "f32"}
"""What a recipe for AUTO has, whatever else was chosen."""

ONNXRUNTIME_MIN: Mapping[str, str] = {
    "qmoe": "1.31",  # QMoE has router_weights and a CPU kernel for accuracy_level from then on
    "if": "1.22",  # tests/bench/ort_versions.py judged this graph there
    "standard": "1.23",  # the first with kernels of opset 23 (the same script)
}
"""The ONNX Runtime that each graph needs at least."""
ONNXRUNTIME_MIN_PLAIN = "1.21"
"""That of `if` with neither GroupQueryAttention, whose positions and bias came with 1.22, nor 8-bit
matrices, whose kernel did (tests/converters/onnx/test_older_ort.py); Debian 13 has 1.21."""


# When a row is not a multiple of a type's block: the next better types, in order. Blocks of 256
# give way to blocks of 32, and those to half precision.
_SMALL_BLOCKS: Mapping[str, str] = {
    "q6_k": "q8_0",
    "q5_k": "q5_1",
    "q4_k": "q5_0",
    "iq4_xs": "iq4_nl",
    **dict.fromkeys(("q3_k", "iq3_s", "iq3_xxs", "q2_k", "iq2_s", "iq2_xs", "iq2_xxs"), "iq4_nl"),
}
NEXT_BETTER: Mapping[str, Sequence[str]] = {
    **{name: (small, "f16") for name, small in _SMALL_BLOCKS.items()},
    **dict.fromkeys(("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "mxfp4"), ("f16",)),
    **{
        f"int{bits}b{block}": tuple(f"int{bits}b{less}" for less in blocks if less < block)
        for bits, blocks in BLOCKS_OF.items()
        for block in blocks
    },
}
