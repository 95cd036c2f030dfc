"""How a model fits llama.cpp's graphs: `deepseek` wherever that is exact, else `glm4moe`.

Both take the experts of a layer as one stack that a router chooses from, beside a shared expert of
weight 1. `glm4moe` also adds a bias to the probabilities for the selection alone, can normalise the
weights of the chosen, and does not tie the heads to the hidden size. That is enough for experts
that are always active, for counts that differ between layers, and for dense layers anywhere.
Source: llama.cpp `src/models/deepseek.cpp`, `src/models/glm4-moe.cpp`, and `build_moe_ffn` of
`src/llama-graph.cpp`. Letters: D hidden, F expert width, E experts of a stack, W dense width.
"""

from __future__ import annotations

from dataclasses import dataclass

from emo_export.errors import EmoExportError
from emo_export.files.gguf_types import ARCHITECTURES
from emo_export.model.config import EmoConfig, LayerShape
from emo_export.model.rope import rope_type

FORCE, HIDE = 10.0, -1e9
"""What is added to a probability (at most 1) of which the selection must, or must never, take."""

MAX_EXPERTS = MAX_LAYERS = 512  # llama-hparams.h; beyond them llama.cpp ends the process


@dataclass(frozen=True)
class Stack:
    """The expert tensors of one layer; the tuples have one entry for each of the E positions.

    `experts`: whose matrices a position holds, -1 for zeros. In a dense layer, which run of F
    columns of the hidden activation (the shared expert holds the first runs).
    `router`: whose router row it has, -1 for zeros.
    `bias`: what is added to its probability for the selection.
    `shared`: the expert in the shared expert's place, -1 for none.
    `factor`: what the `down` matrices in the stack are multiplied by, since the graph weighs them
    by 1 / factor of what the model does.
    """

    experts: tuple[int, ...]
    router: tuple[int, ...]
    bias: tuple[float, ...]
    shared: int
    factor: float


@dataclass(frozen=True)
class Graph:
    """A model as one of llama.cpp's graphs computes it.

    `lead` dense layers come first, which have tensors of their own and no stack (None in `stacks`).
    All other layers have stacks of `experts` positions, of which a token takes `used`, beside a
    shared expert of width `shared` * F.
    """

    arch: str
    lead: int
    experts: int
    used: int
    shared: int
    stacks: tuple[Stack | None, ...]


def choose_arch(config: EmoConfig, forced: str | None = None) -> str:
    """The first architecture whose graph computes the model exactly, or the forced one.

    Raises EmoExportError naming what no graph, or not the forced one, can express, and what to do.
    """
    if forced is not None and forced not in ARCHITECTURES:
        raise EmoExportError(
            f"gguf: architecture {forced!r} is not known; choose {' or '.join(ARCHITECTURES)}"
        )
    found = {arch: _problems(config, arch) for arch in ARCHITECTURES}
    exact = [arch for arch, problems in found.items() if not problems]
    if forced is None and exact:
        return exact[0]
    if forced in exact:
        return forced
    if forced is None:
        who, problems = f"{' and '.join(ARCHITECTURES)} graphs", found[ARCHITECTURES[-1]]
    else:
        who, problems = f"{forced} graph", found[forced]
    remedy = f"use --arch {exact[0]}" if exact else "export to ONNX instead (--to onnx:int4)"
    if not exact and any(not s.is_dense and not s.num_routed_per_tok for s in config.layers):
        remedy = "ONNX can't either: in some layer tokens choose no expert"
    raise EmoExportError(f"gguf: llama.cpp's {who} can't express {'; '.join(problems)}; {remedy}")


def graph_of(config: EmoConfig, arch: str) -> Graph:
    """How a model that `choose_arch` accepts for `arch` is laid out in that graph."""
    sparse = [layer for layer in config.layers if not layer.is_dense]
    dense = [layer.is_dense for layer in config.layers]
    lead = dense.index(False) if sparse else len(dense)
    experts = max((len(_scored(layer)) for layer in sparse), default=1) or 1
    used = max((_taken(layer) for layer in sparse), default=1) or 1
    runs = 0
    if any(dense[lead:]):
        runs = -(-(config.dense_intermediate_size or 0) // config.intermediate_size)
    shared = max(1, runs - used)
    stacks: list[Stack | None] = [None] * lead
    for layer in config.layers[lead:]:
        if layer.is_dense:
            # The softmax of equal logits gives each 1 / E; normalised, each of those taken 1 / K.
            factor = used if config.norm_topk_prob else experts
            stacks.append(_dense_stack(experts, shared, runs, factor))
        else:
            stacks.append(_sparse_stack(layer, experts, used, config.norm_topk_prob))
    return Graph(arch, lead, experts, used, shared, tuple(stacks))


def _scored(layer: LayerShape) -> tuple[int, ...]:
    """The experts that share one softmax and stand in the stack; none when none is ever taken."""
    if layer.always_active_experts:
        return tuple(range(layer.num_experts))
    return layer.routed if layer.num_routed_per_tok else ()


def _taken(layer: LayerShape) -> int:
    """How many of the experts in the stack a token takes."""
    if layer.always_active_experts:
        return layer.num_experts_per_tok
    return layer.num_routed_per_tok


def _dense_stack(experts: int, shared: int, runs: int, factor: float) -> Stack:
    """A dense MLP cut into runs of F columns: the first in the shared expert, others forced."""
    rest = tuple(range(shared, runs))
    empty = experts - len(rest)
    bias = (FORCE,) * len(rest) + (0.0,) * empty
    return Stack(rest + (-1,) * empty, (-1,) * experts, bias, -1, factor)


def _sparse_stack(layer: LayerShape, experts: int, used: int, norm: bool) -> Stack:
    """A layer's n experts, then E - n empty ones that only have copies of the router's rows.

    With each row E / n times, every probability is n / E of what it should be. Of the empty ones,
    as many are forced as the layer takes fewer than others; the rest are hidden.
    """
    scored = _scored(layer)
    count = len(scored)
    single = 0 if layer.always_active_experts else layer.num_shared_experts
    shared = layer.forced[-1] if single else -1
    if not count:
        none = (-1,) * experts
        return Stack(none, none, (0.0,) * experts, shared, 1.0)
    empty, idle = experts - count, used - _taken(layer)
    forced = set(layer.always_active_experts)
    bias = [FORCE if expert in forced else 0.0 for expert in scored]
    bias += [FORCE] * idle + [HIDE] * (empty - idle)
    factor = 1.0 if norm else experts / count
    router = scored * (experts // count)
    return Stack(scored + (-1,) * empty, router, tuple(bias), shared, factor)


def _problems(config: EmoConfig, arch: str) -> list[str]:
    """What the graph cannot compute, by name (emo.md, GGUF table)."""
    dense = [layer.is_dense for layer in config.layers]
    sparse = [layer for layer in config.layers if not layer.is_dense]
    plain = [layer for layer in sparse if not layer.always_active_experts]
    experts = max((len(_scored(layer)) for layer in sparse), default=0)
    problems = {
        "num_shared_experts above 1": any(layer.num_shared_experts > 1 for layer in plain),
        "attention_bias": config.attention_bias,
        "dense_mlp_bias": config.dense_mlp_bias and any(dense),
        "rope_scaling llama3": rope_type(config) == "llama3",
        f"more than {MAX_EXPERTS} experts": experts > MAX_EXPERTS,
        f"more than {MAX_LAYERS} layers": len(config.layers) > MAX_LAYERS,
    }
    found = [name for name, present in problems.items() if present]
    if arch == "deepseek":
        return found + _deepseek_problems(config, sparse)
    return found + _count_problems(sparse, experts)


def _deepseek_problems(config: EmoConfig, sparse: list[LayerShape]) -> list[str]:
    dense = [layer.is_dense for layer in config.layers]
    lead = dense.index(False) if sparse else len(dense)
    routing = [layer for layer in sparse if _scored(layer)]
    counts = sorted({len(_scored(layer)) for layer in routing})
    taken = sorted({_taken(layer) for layer in routing})
    width = config.num_attention_heads * config.head_dim
    problems = {
        "always_active_experts": any(layer.always_active_experts for layer in sparse),
        "dense layers that do not lead": any(dense[lead:]),
        f"routed expert counts that differ between layers {counts}": len(counts) > 1,
        f"routed experts per token that differ between layers {taken}": len(taken) > 1,
        "norm_topk_prob": config.norm_topk_prob,
        f"heads of total width {width} beside hidden_size {config.hidden_size}": width
        != config.hidden_size,
    }
    return [name for name, present in problems.items() if present]


def _count_problems(sparse: list[LayerShape], experts: int) -> list[str]:
    """Counts that copies of router rows and idle experts do not even out."""
    routing = [layer for layer in sparse if _scored(layer)]
    counts = sorted({len(_scored(layer)) for layer in routing})
    taken = sorted({_taken(layer) for layer in routing})
    if any(experts % count for count in counts):
        return [f"routed expert counts that do not divide the largest {counts}"]
    if any(taken[-1] - _taken(layer) > experts - len(_scored(layer)) for layer in routing):
        return [f"routed experts per token that differ between layers {taken}"]
    return []
