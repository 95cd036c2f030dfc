"""Every key that a config.json may hold, as data: required, optional, ignored or neutral only.

Source: allenai/EMO `configuration_emo.py` and transformers' PretrainedConfig (4.57 and 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REQUIRED_KEYS = tuple(
    """
    model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_experts num_experts_per_tok num_shared_experts max_position_embeddings rms_norm_eps
    """.split()
)

OPTIONAL_KEYS = frozenset(
    """
    num_key_value_heads head_dim hidden_act rope_theta rope_scaling rope_parameters attention_bias
    tie_word_embeddings norm_topk_prob num_experts_per_layer num_shared_experts_per_layer
    always_active_experts always_active_experts_per_layer dense_intermediate_size dense_mlp_bias
    bos_token_id eos_token_id pad_token_id
    """.split()
)

# Keys that say how the model was made or is to be sampled, and change no logit.
IGNORED_KEYS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures
    attention_dropout attn_implementation auto_map bad_words_ids begin_suppress_tokens
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    ghost_extend_coeff_mode ghost_extend_random_k id2label initializer_range is_decoder label2id
    length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_router_logits output_scores
    prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate router_aux_loss_coef sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype
    torchscript transformers_version typical_p use_bfloat16 use_cache
    """.split()
)

# Keys that would change what the model computes, with the values under which they do not.
NEUTRAL_ONLY: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "ghost_extend_eval": (False, None),
    "is_encoder_decoder": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "sliding_window": (None,),
}
