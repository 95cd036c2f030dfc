"""The tensors of a GGUF file that export writes, by name. Source: gguf-py `constants.py`."""

from __future__ import annotations

from emo_export.files.tensor_names import Form, NameTable
from emo_export.model.names import Role

_OWN = {
    Role.EMBED: "token_embd.weight",
    Role.ATTN_NORM: "blk.{layer}.attn_norm.weight",
    Role.Q: "blk.{layer}.attn_q.weight",
    Role.K: "blk.{layer}.attn_k.weight",
    Role.V: "blk.{layer}.attn_v.weight",
    Role.O: "blk.{layer}.attn_output.weight",
    Role.FFN_NORM: "blk.{layer}.ffn_norm.weight",
    Role.ROUTER: "blk.{layer}.ffn_gate_inp.weight",
    Role.DENSE_GATE: "blk.{layer}.ffn_gate.weight",
    Role.DENSE_UP: "blk.{layer}.ffn_up.weight",
    Role.DENSE_DOWN: "blk.{layer}.ffn_down.weight",
    Role.FINAL_NORM: "output_norm.weight",
    Role.HEAD: "output.weight",
}
EXPERTS = (Role.GATE, Role.UP, Role.DOWN)
_STEMS = dict(zip(EXPERTS, ("gate", "up", "down"), strict=True))

GGUF_NAMES = NameTable(
    {(role, Form.OWN): name for role, name in _OWN.items()}
    | {(role, Form.STACK): f"blk.{{layer}}.ffn_{s}_exps.weight" for role, s in _STEMS.items()}
    | {(role, Form.SHARED): f"blk.{{layer}}.ffn_{s}_shexp.weight" for role, s in _STEMS.items()}
    | {
        (Role.FFN_NORM, Form.GLM4MOE): "blk.{layer}.post_attention_norm.weight",
        (Role.ROUTER, Form.GLM4MOE): "blk.{layer}.exp_probs_b.bias",
    }
)
