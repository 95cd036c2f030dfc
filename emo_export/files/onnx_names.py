"""The initializers of an ONNX graph that export writes, by name.

One is STEM.ELEMENT: the weight, the scales or the bias of what the stem holds.
"""

from __future__ import annotations

from dataclasses import replace

from emo_export.files.tensor_names import Form, Held, NameTable
from emo_export.model.names import VECTORS, Role
from emo_export.model.recipes import Part

WEIGHT, SCALES, BIAS = "weight", "scales", "bias"
ANGLES = ("cos", "sin")
"""The tables of rotary angles, which hold nothing of the checkpoint."""

_OWN = {
    Role.EMBED: "embed",
    Role.ATTN_NORM: "layers.{layer}.attn_norm",
    **dict.fromkeys((Role.Q, Role.K, Role.V), "layers.{layer}.qkv"),
    **dict.fromkeys((Role.Q_BIAS, Role.K_BIAS, Role.V_BIAS), "layers.{layer}.qkv"),
    **dict.fromkeys((Role.O, Role.O_BIAS), "layers.{layer}.attn_out"),
    Role.FFN_NORM: "layers.{layer}.ffn_norm",
    Role.ROUTER: "layers.{layer}.router",
    **dict.fromkeys((Role.GATE, Role.UP), "layers.{layer}.experts.{expert}.gate_up"),
    Role.DOWN: "layers.{layer}.experts.{expert}.down",
    **dict.fromkeys((Role.DENSE_GATE, Role.DENSE_UP), "layers.{layer}.dense.gate_up"),
    **dict.fromkeys((Role.DENSE_GATE_BIAS, Role.DENSE_UP_BIAS), "layers.{layer}.dense.gate_up"),
    **dict.fromkeys((Role.DENSE_DOWN, Role.DENSE_DOWN_BIAS), "layers.{layer}.dense.down"),
    Role.FINAL_NORM: "final_norm",
    Role.HEAD: "head",
}
ONNX_STEMS = NameTable(
    {(role, Form.OWN): stem for role, stem in _OWN.items()}
    | {
        (Role.GATE, Form.STACK): "layers.{layer}.experts.fc1",
        (Role.UP, Form.STACK): "layers.{layer}.experts.fc1",
        (Role.DOWN, Form.STACK): "layers.{layer}.experts.fc2",
        (Role.GATE, Form.SHARED): "layers.{layer}.forced.{expert}.gate_up",
        (Role.UP, Form.SHARED): "layers.{layer}.forced.{expert}.gate_up",
        (Role.DOWN, Form.SHARED): "layers.{layer}.forced.{expert}.down",
    }
)


def held(name: str) -> Held | None:
    """What an initializer holds; None for angles, constants, and what export does not write."""
    stem, _, element = name.rpartition(".")
    found = ONNX_STEMS.held(stem)
    if found is None or element not in (WEIGHT, SCALES, BIAS):
        return None
    norm = found.roles[0] in VECTORS  # the roles of any other stem begin with a matrix
    roles = tuple(r for r in found.roles if norm or (r in VECTORS) == (element == BIAS))
    return replace(found, roles=roles) if roles else None


def of_routed(name: str) -> bool:
    """Whether an initializer holds routed experts or their router, and so a choice among them."""
    found = held(name)
    if found is None or found.form == Form.SHARED:
        return False
    return found.roles[0] in (Role.ROUTER, Role.GATE, Role.UP, Role.DOWN)


def element_of(name: str) -> str:
    """Weight, scales or bias, or what else the name of an initializer ends in."""
    return name.rpartition(".")[2]


def part_of(name: str) -> Part | None:
    """The part of the model in an initializer; None where `held` says so."""
    found = held(name)
    return None if found is None else found.part
