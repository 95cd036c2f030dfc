"""The keys of a GGUF file: what llama.cpp reads of a model besides its tensors.

Source: gguf-py `gguf_writer.py`; `load_arch_hparams` of llama.cpp `src/models/glm4-moe.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf

from emo_export.converters.gguf.graph import Graph
from emo_export.converters.gguf.reader import GgufReader
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


def copy_keys(
    writer: gguf.GGUFWriter,
    source: Path,
    take: Callable[[str], bool],
    changed: Mapping[str, Any] | None = None,
) -> None:
    """Add the keys of a file that `take` names, in its order, some of them with other values.

    Never its architecture, which a writer has already, nor what tells where its bytes lie: the
    alignment, and the parts of a model in several files.
    """
    for name, field in GgufReader(source).fields.items():
        own = name.startswith(("GGUF.", "split.", "general.architecture", "general.alignment"))
        if own or not take(name):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = (changed or {}).get(name)
        writer.add_key_value(name, field.contents() if value is None else value, kind, sub)


def add_importance_keys(writer: gguf.GGUFWriter, matrix: ImportanceMatrix) -> None:
    """Name the importance matrix that the file was quantised with, as llama-quantize does."""
    writer.add_string("quantize.imatrix.file", IMATRIX)
    writer.add_string("quantize.imatrix.dataset", matrix.source)
    writer.add_int32("quantize.imatrix.chunks_count", matrix.chunks)
