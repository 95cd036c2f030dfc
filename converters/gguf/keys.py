"""The keys of a GGUF file: what llama.cpp reads of a model besides its tensors.

Source: gguf-py `gguf_writer.py`; `load_arch_hparams` of llama.cpp `src/models/glm4-moe.cpp`.
"""

from __future__ import annotations

import gguf

from emo_export.converters.gguf.graph import Graph
from emo_export.model.config import EmoConfig
from emo_export.model.importance import IMATRIX, ImportanceMatrix
from emo_export.model.rope import rope_type


def add_keys(writer: gguf.GGUFWriter, config: EmoConfig, graph: Graph, context: int) -> None:
    """Add the shape of the model, its rope and its experts; `context` in tokens."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.dense_intermediate_size or config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    if rope_type(config) == "linear" and config.rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config.rope_scaling["factor"]))
    writer.add_expert_count(graph.experts)
    writer.add_expert_used_count(graph.used)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_expert_shared_count(graph.shared)
    writer.add_expert_weights_scale(1.0)
    if graph.arch == "glm4moe":
        # Its default is a sigmoid. llama.cpp keeps the sum above 6.1e-5 when it normalises; the K
        # largest of E probabilities sum to K / E or more, and E is at most 512.
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX)
        writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_leading_dense_block_count(graph.lead)
    writer.add_vocab_size(config.vocab_size)


def add_importance_keys(writer: gguf.GGUFWriter, matrix: ImportanceMatrix) -> None:
    """Name the importance matrix that the file was quantised with, as llama-quantize does."""
    writer.add_string("quantize.imatrix.file", IMATRIX)
    writer.add_string("quantize.imatrix.dataset", matrix.source)
    writer.add_int32("quantize.imatrix.chunks_count", matrix.chunks)
