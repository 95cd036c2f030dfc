"""The files beside an ONNX graph that its runtimes read: configurations and the tokenizer."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.converters.onnx.genai_tokenizer import respelt
from emo_export.model.chat_templates import (
    DEFAULT,
    TEMPLATE,
    TEMPLATES,
    chat_templates,
    template_files,
)
from emo_export.model.config import EmoConfig
from emo_export.model.product import Product
from emo_export.model.stop_tokens import GENERATION

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def write_config(folder: Path, product: Product, context: int) -> None:
    """config.json: the product's, with what it leaves to defaults spelt out."""
    raw, config = dict(product.raw), product.config
    raw.pop("auto_map", None)  # no remote code is shipped
    raw |= {
        "model_type": loaded_as(config),
        "head_dim": config.head_dim,
        "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": context,
    }
    write_json(folder / "config.json", raw)


def loaded_as(config: EmoConfig) -> str:
    """The model_type under which transformers and optimum open the folder, knowing no `emo`.

    Optimum takes the shape of an empty KV cache from it: `olmoe` has one KV head for each head and
    heads as wide as the hidden size together; `nemotron` reads num_key_value_heads and head_dim.
    Source: optimum-onnx 0.1.0, modeling_decoder.py.
    """
    heads = config.num_attention_heads
    plain = config.num_key_value_heads == heads and heads * config.head_dim == config.hidden_size
    return "olmoe" if plain else "nemotron"


def write_generation(folder: Path, checkpoint: Path, stops: Sequence[int]) -> None:
    """generation_config.json: the checkpoint's, with the tokens that end a text."""
    given = checkpoint / GENERATION
    generation = read_json(given) if given.is_file() else {}
    if stops:
        generation["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
    write_json(folder / GENERATION, generation)


def write_tokenizer(folder: Path, checkpoint: Path) -> None:
    """The tokenizer's files and the chat templates, where the checkpoint has them."""
    source, given = checkpoint / TOKENIZER, checkpoint / TOKENIZER_CONFIG
    if source.is_file():
        changed = respelt(read_json(source))
        if changed is None:
            # Byte for byte, but without a byte order mark, which not all who read it take.
            (folder / TOKENIZER).write_bytes(source.read_bytes().removeprefix(codecs.BOM_UTF8))
        else:
            write_json(folder / TOKENIZER, changed)
    if source.is_file() or given.is_file():  # onnxruntime-genai opens no tokenizer without it
        settings = tokenizer_settings(checkpoint)
        settings.pop("auto_map", None)
        # GPT2Tokenizer, the class in EMO's files, splits text as GPT-2 does in transformers 5,
        # whatever tokenizer.json says (its issue 45920); this class takes the file as it is.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        settings["model_input_names"] = ["input_ids", "attention_mask"]
        _write_templates(folder, checkpoint, settings)
        write_json(folder / TOKENIZER_CONFIG, settings)


def _write_templates(folder: Path, checkpoint: Path, settings: dict[str, object]) -> None:
    """The default chat template as a setting, and all of them as files where one setting won't do.

    onnxruntime-genai 0.18 opens no folder in whose settings it is null or a list.
    """
    templates = chat_templates(checkpoint)
    if DEFAULT in templates:
        settings["chat_template"] = templates[DEFAULT]
    else:
        settings.pop("chat_template", None)
    if set(templates) <= {DEFAULT} and not template_files(checkpoint):
        return
    for name, text in templates.items():
        place = folder / (TEMPLATE if name == DEFAULT else f"{TEMPLATES}/{name}.jinja")
        place.parent.mkdir(exist_ok=True)
        place.write_text(text, "utf-8")


def tokenizer_settings(checkpoint: Path) -> dict[str, object]:
    """tokenizer_config.json, empty without one. Raises EmoExportError when it is no JSON object."""
    given = checkpoint / TOKENIZER_CONFIG
    return read_json(given) if given.is_file() else {}


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """One JSON object, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
