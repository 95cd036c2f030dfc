"""What llama.cpp's graph of a GGUF computes, held against what EMO computes.

Source: docs/emo.md (routing, measurements) and the graphs in llama.cpp `src/models/*.cpp`:
deepseek, glm4-moe, bailingmoe, smallthinker, olmoe, qwen2moe, qwen3moe, llama, granite, dbrx,
deepseek2; which keys must be there: their `load_arch_hparams`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from emo_export.files.gguf_names import EXPERTS, GGUF_NAMES
from emo_export.files.tensor_names import Form
from emo_export.inspect.finding import AGAIN, Finding, Subject
from emo_export.inspect.kin import EXACT, RELEASED, TOKENS
from emo_export.model.names import Role

_RENORMALISED = "the chosen experts' weights are scaled to a sum of 1, EMO's are not"
_NO_SHARED = "no shared expert is added, EMO's every token needs it"
_QK_NORM = "q and k are normalised, EMO's are not (and without q/k norm tensors it does not open)"
DIFFERENCES: Mapping[str, tuple[str, ...]] = {
    "smallthinker": (
        "the experts are chosen before attention instead of after it",
        "they use ReLU instead of SiLU",
        _RENORMALISED,
        _NO_SHARED,
    ),
    "olmoe": (_QK_NORM, _NO_SHARED),
    "qwen2moe": (
        "the shared expert is weakened by a sigmoid gate, EMO's counts fully (and a gate of zeros "
        "gives NaN)",
    ),
    "qwen3moe": (_QK_NORM, _RENORMALISED, _NO_SHARED),
    "llama": (_RENORMALISED, _NO_SHARED),
    "granitemoe": (_RENORMALISED,),
    "dbrx": ("LayerNorm takes the place of RMSNorm", _RENORMALISED, _NO_SHARED),
    "deepseek2": ("keys and values go through a compressed cache (MLA), which EMO has not",),
}
"""What each graph does otherwise than EMO."""

MEASURED = {
    "smallthinker": " (measured on a random EMO: KL 4.0, 1.8% of the most likely tokens agree)"
}
SOFTMAX, SIGMOID = 1, 2  # enum llama_expert_gating_func_type
NORM_KEY = ("glm4moe", "bailingmoe")  # whose graph obeys expert_weights_norm
MAX_CONTEXT = 1 << 20
ROPE_BASE, DEFAULT_ROPE_BASE = 500_000, 10_000
REQUIRED_KEYS = (
    "attention.layer_norm_rms_epsilon",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_used_count",
)
_BLOCK = (Role.ATTN_NORM, Role.Q, Role.K, Role.V, Role.O)
_DENSE = (Role.DENSE_GATE, Role.DENSE_UP, Role.DENSE_DOWN)
MUST_BE = "llama.cpp does not open the file"


def graph_findings(subject: Subject) -> Iterator[Finding]:
    """Findings about the graph that an EMO's architecture and keys stand for."""
    if subject.arch in EXACT:
        yield from _missing(subject)
    else:
        yield _architecture(subject)
    if subject.expert_blocks:
        yield from _shared(subject)
    if subject.arch in EXACT:
        yield from _weights(subject)
        yield from _counts(subject)
    yield from _rope(subject)
    yield from _numbers(subject)
    if subject.has(".attn_q_norm.") and subject.arch in EXACT:
        yield Finding(
            "wrong", "has q/k norm tensors", "EMO has none: every attention score differs"
        )


def _architecture(subject: Subject) -> Finding:
    what = f"architecture {subject.arch[:40]!r} on an EMO"
    differences = DIFFERENCES.get(subject.arch)
    if differences is None:
        return Finding(
            "risk",
            what,
            "it was never compared with EMO; one difference in the graph is enough for text that "
            "loses its sense, without an error message",
            "Known to compute EMO exactly: deepseek and glm4moe. " + AGAIN,
        )
    consequence = f"{'; '.join(differences)}. So the text loses its sense, without an error message"
    return Finding("wrong", what, consequence + MEASURED.get(subject.arch, ""), AGAIN)


def _missing(subject: Subject) -> Iterator[Finding]:
    """Keys and tensors without which llama.cpp refuses a file of an exact architecture."""
    keys = [f"{subject.arch}.{name}" for name in REQUIRED_KEYS if subject.number(name) is None]
    if keys:
        yield Finding("wrong", f"has no {', '.join(keys)}", MUST_BE, AGAIN)
    shared = subject.has("_shexp.")  # none at all is a finding of its own
    names = [name for block in subject.blocks for name in _block_names(subject, block, shared)]
    absent = [name for name in names if name not in subject.tensors]
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        what = f"tensors are missing: {', '.join(absent[:3])}{more}"
        yield Finding("wrong", what, MUST_BE, AGAIN)


def _block_names(subject: Subject, block: int, shared: bool) -> list[str]:
    second = Form.GLM4MOE if subject.arch == "glm4moe" else Form.OWN
    held = [(role, Form.OWN) for role in _BLOCK] + [(Role.FFN_NORM, second)]
    if block < (subject.number("leading_dense_block_count") or 0):
        held += [(role, Form.OWN) for role in _DENSE]
    else:
        # llama.cpp also takes gate and up fused, a tensor that export does not write.
        fused = f"blk.{block}.ffn_gate_up_exps.weight" in subject.tensors
        held += [(Role.ROUTER, Form.OWN)]
        held += [(role, Form.STACK) for role in ((Role.DOWN,) if fused else EXPERTS)]
        held += [(role, Form.SHARED) for role in (EXPERTS if shared else ())]
    return [GGUF_NAMES.name(role, block, form=form) for role, form in held]


def _shared(subject: Subject) -> Iterator[Finding]:
    if not subject.has("_shexp."):
        said = subject.number("expert_shared_count")
        opens = "" if subject.arch != "deepseek" else f"; {MUST_BE}"
        yield Finding(
            "wrong",
            f"has no shared expert (no ffn_*_shexp tensors, expert_shared_count {said})",
            "EMO adds it to every token in every layer; without it each layer's output lacks a "
            f"large part{opens}",
            AGAIN + " (a checkpoint with num_shared_experts 0 gets one of zeros)",
        )
    elif subject.number("expert_shared_count") == 0:
        yield Finding(
            "wrong",
            "expert_shared_count is 0, but there are ffn_*_shexp tensors",
            f"the shared expert is left out, or {MUST_BE}",
            f"Set {subject.arch}.expert_shared_count to 1",
        )


def _weights(subject: Subject) -> Iterator[Finding]:
    """How the chosen experts are weighed: EMO takes the softmax's values as they are."""
    arch, gating = subject.arch, subject.number("expert_gating_func")
    scale = subject.number("expert_weights_scale")
    if scale not in (None, 0, 1):
        yield Finding(
            "wrong",
            f"expert_weights_scale is {scale:g}",
            f"the routed experts count {scale:g} times beside the shared one, EMO's count once",
            f"Set {arch}.expert_weights_scale to 1",
        )
    if arch == "glm4moe" and gating in (None, 0):
        what = "has no expert_gating_func"
        yield Finding("wrong", what, _gating("a sigmoid is the default"), _set_softmax(arch))
    elif gating not in (None, 0, SOFTMAX):
        what = f"expert_gating_func is {gating:g}{' (sigmoid)' if gating == SIGMOID else ''}"
        if arch == "glm4moe":
            yield Finding("wrong", what, _gating("it is obeyed"), _set_softmax(arch))
        else:
            yield _ignored(arch, what, "EMO's is 1 (softmax)")
    if subject.number("expert_weights_norm") and arch not in NORM_KEY:
        yield _ignored(arch, "expert_weights_norm is true", "EMO's weights are not renormalised")


def _gating(why: str) -> str:
    return f"EMO's router is a softmax and {why}: other experts are chosen, with other weights"


def _set_softmax(arch: str) -> str:
    return f"Set {arch}.expert_gating_func to 1"


def _ignored(arch: str, what: str, right: str) -> Finding:
    consequence = f"{right}; llama.cpp's {arch} graph ignores the key, another engine may obey it"
    return Finding("risk", what, consequence)


def _counts(subject: Subject) -> Iterator[Finding]:
    """Experts of the released shape: 8 per token, of which one is the shared expert."""
    shape = all(subject.number(name) == size for name, size in RELEASED.items())
    released = shape and (subject.number("vocab_size") or subject.token_count) in TOKENS
    used, count = subject.number("expert_used_count"), subject.number("expert_count")
    if used is not None and count is not None and not 0 < used <= count:
        what = f"expert_used_count is {used:g} of {count:g} experts"
        yield Finding("wrong", what, "llama.cpp ends the process when it opens the file")
    used = used or 0
    if released and used > 7 and subject.has("_shexp."):
        yield Finding(
            "wrong",
            f"expert_used_count is {used:g} beside a shared expert",
            "EMO takes 7 routed experts and the shared one; one more is added to every token",
            f"Set {subject.arch}.expert_used_count to 7",
        )


def _rope(subject: Subject) -> Iterator[Finding]:
    base, arch = subject.number("rope.freq_base"), subject.arch
    if base is None or base == DEFAULT_ROPE_BASE:
        missing = f"has no {arch[:40]}.rope.freq_base (llama.cpp takes {DEFAULT_ROPE_BASE})"
        yield Finding(
            "wrong" if base is None else "risk",
            missing if base is None else f"rope.freq_base is {base:g}",
            f"the published EMOs have {ROPE_BASE}; with another base positions are misread, worse "
            "the longer the text",
            f"Set {arch[:40]}.rope.freq_base to the checkpoint's rope_theta",
        )
    kind = subject.text(f"{arch}.rope.scaling.type")
    if kind not in (None, "none", "linear"):
        what = f"rope.scaling.type is {str(kind)[:20]!r}"
        yield Finding("note", what, "the published EMOs have none; compare with the checkpoint's")


def _numbers(subject: Subject) -> Iterator[Finding]:
    context = subject.number("context_length")
    if context is None or not 0 < context <= MAX_CONTEXT:
        yield Finding(
            "risk",
            f"context_length is {context}",
            "engines take the memory for as many tokens, or refuse",
            f"Set {subject.arch[:40]}.context_length to the checkpoint's (published EMOs: 4096)",
        )
    heads, size = subject.number("attention.head_count"), subject.number("attention.key_length")
    q = next((t for n, t in subject.tensors.items() if n.endswith(".attn_q.weight")), None)
    if heads and size and q is not None and heads * size != q.shape[0]:
        yield Finding(
            "wrong",
            f"{q.name} has {q.shape[0]} rows, head_count x key_length is {heads * size:g}",
            MUST_BE,
        )
