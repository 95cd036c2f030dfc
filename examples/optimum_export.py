"""Export an EMO checkpoint with optimum's own exporter, to hold other exports against.

python examples/optimum_export.py CHECKPOINT FOLDER

Needs optimum-onnx[onnxruntime]==0.1.0 and torch, and not emo_export. The graph that comes out is
for small models and for comparison: float32, and every expert works on every token, since a traced
graph can't choose. For a graph to run, use `emo-export export`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from optimum.exporters.onnx import main_export
from optimum.exporters.onnx.model_configs import LlamaOnnxConfig, register_tasks_manager_onnx
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm

TASK = "text-generation-with-past"


class EmoConfig(LlamaConfig):
    """Llama's keys; those of the experts become attributes too."""

    model_type = "emo"

    def expert_count(self, layer: int) -> int:
        """Experts of a layer; 0 is a dense layer."""
        counts = getattr(self, "num_experts_per_layer", None)
        return counts[layer] if counts else self.num_experts

    def shared_count(self, layer: int) -> int:
        """How many of a layer's experts, the last ones, every token takes."""
        shared = getattr(self, "num_shared_experts", 0)
        if not getattr(self, "num_experts_per_layer", None):
            return shared
        listed = getattr(self, "num_shared_experts_per_layer", None)
        return listed[layer] if listed else min(shared, self.expert_count(layer))

    def always_active(self, layer: int) -> list[int]:
        """Experts that every token takes with the weight that the router gives them."""
        listed = getattr(self, "always_active_experts_per_layer", None)
        always = listed[layer] if listed else getattr(self, "always_active_experts", None)
        return list(always or [])


class Mlp(nn.Module):
    """down(silu(gate x) * up x): one expert, or a dense layer."""

    def __init__(self, hidden: int, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias)
        self.up_proj = nn.Linear(hidden, width, bias)
        self.down_proj = nn.Linear(width, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, D) -> (tokens, D)."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """All experts on all tokens, each by its weight, which is 0 where it was not chosen.

    A loop over the tokens of each expert would be traced with the number that the example had.
    """

    def __init__(self, config: EmoConfig, layer: int) -> None:
        super().__init__()
        count, hidden = config.expert_count(layer), config.hidden_size
        self.gate = nn.Linear(hidden, count, bias=False)
        self.experts = nn.ModuleList(Mlp(hidden, config.intermediate_size) for _ in range(count))
        self.shared, self.always = config.shared_count(layer), config.always_active(layer)
        self.take, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        weights = self.weights(self.gate(x))
        return sum(weights[..., e, None] * expert(x) for e, expert in enumerate(self.experts))

    def weights(self, logits: Tensor) -> Tensor:
        """Router logits (B, T, E) -> the weight of each expert."""
        if self.always:
            scores = logits.softmax(-1)
            always = torch.zeros(logits.shape[-1], dtype=torch.bool)
            always[self.always] = True
            others = scores.masked_fill(always, -1.0)
            best = others.topk(self.take - len(self.always), dim=-1).indices
            return scores * (always + torch.zeros_like(scores).scatter(-1, best, 1.0))
        routed = logits.shape[-1] - self.shared
        scores = logits[..., :routed].softmax(-1)
        best = scores.topk(self.take - self.shared, dim=-1)
        weights = torch.zeros_like(scores).scatter(-1, best.indices, best.values)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        if not self.shared:
            return weights
        return torch.cat([weights, logits[..., routed:].softmax(-1)], dim=-1)


class EmoLayer(nn.Module):
    """Llama's attention, then the experts or a dense MLP, under the checkpoint's names."""

    def __init__(self, config: EmoConfig, layer: int) -> None:
        super().__init__()
        self.pre_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config, layer)
        self.pre_feedforward_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            Experts(config, layer)
            if config.expert_count(layer)
            else Mlp(config.hidden_size, config.dense_intermediate_size, bias=config.dense_mlp_bias)
        )

    def forward(self, x: Tensor, **attention: Any) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.self_attn(self.pre_attention_layernorm(x), **attention)[0]
        return x + self.mlp(self.pre_feedforward_layernorm(x))


class EmoForCausalLM(LlamaForCausalLM):
    """EMO's forward pass (arXiv 2605.06663) in Llama's frame, with transformers' `generate`."""

    config_class = EmoConfig
    # optimum tells by this name what library a model is of; it is what remote code is given.
    __module__ = "transformers_modules.emo"

    def __init__(self, config: EmoConfig) -> None:
        super().__init__(config)
        layers = range(config.num_hidden_layers)
        self.model.layers = nn.ModuleList(EmoLayer(config, layer) for layer in layers)
        self.post_init()


@register_tasks_manager_onnx("emo", "text-generation", TASK)
class EmoOnnxConfig(LlamaOnnxConfig):
    """Llama's inputs and outputs."""


AutoConfig.register("emo", EmoConfig)
AutoModelForCausalLM.register(EmoConfig, EmoForCausalLM)


def export(checkpoint: str, folder: str) -> None:
    """Write model.onnx; optimum holds it against the model above. Exits on a doubtful weight."""
    _, loaded = EmoForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if loaded[problem]:
            sys.exit(f"{checkpoint}: {problem}: {', '.join(map(str, loaded[problem]))}")
    main_export(checkpoint, folder, task=TASK, dtype="fp32")


def main() -> None:
    """Export one checkpoint."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/optimum_export.py CHECKPOINT FOLDER")
    export(sys.argv[1], sys.argv[2])


if __name__ == "__main__":
    main()
