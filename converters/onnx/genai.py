"""genai_config.json, by which onnxruntime-genai opens an exported folder.

Source: onnxruntime-genai `config.h`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emo_export.model.config import EmoConfig

GENAI = "genai_config.json"
NO_PAD = -1
"""Stands for padding where no token may; the graphs look up the last row, which the mask hides."""


def genai_config(
    config: EmoConfig, context: int, stops: Sequence[int], *, share_kv_buffer: bool
) -> dict[str, Any]:
    """The content of genai_config.json: the type `decoder` is any model with these inputs.

    `share_kv_buffer`: past and present are one buffer, as GroupQueryAttention takes them.
    """
    bos, pad = config.bos_token_id, config.pad_token_id
    # It hides whatever equals the pad at the end of a prompt, and takes 0 where none is named.
    pad = NO_PAD if pad is None or pad in stops else pad
    model = {
        "type": "decoder",
        # Our own runtime begins an empty text with the token that separates texts, too.
        "bos_token_id": min(stops) if bos is None else bos,
        "eos_token_id": list(stops),
        "pad_token_id": pad,
        "context_length": context,
        "vocab_size": config.vocab_size,
        "decoder": _decoder(config),
    }
    search = {
        "do_sample": False,
        "max_length": context,
        "min_length": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": share_kv_buffer,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    return {"model": model, "search": search}


def _decoder(config: EmoConfig) -> dict[str, Any]:
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
