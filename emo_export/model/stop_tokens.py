"""Which tokens end a text: one rule for every target."""

from __future__ import annotations

from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig

GENERATION = "generation_config.json"


def stop_tokens(folder: Path, config: EmoConfig) -> tuple[int, ...]:
    """The eos ids of a checkpoint, the main one first.

    generation_config.json decides where it has eos_token_id, as in transformers' generate; else
    config.json. Empty when neither says. Raises EmoExportError for ids that are none.
    """
    path = folder / GENERATION
    value = read_json(path).get("eos_token_id") if path.is_file() else None
    if value is None:
        return config.eos_token_ids
    ids = value if isinstance(value, list) else [value]
    if not ids or not all(type(i) is int and 0 <= i < config.vocab_size for i in ids):
        raise EmoExportError(
            f"{path}: eos_token_id is {value!r}, expected ids below {config.vocab_size}"
        )
    # config.json's own id leads, where both have it: older runtimes know a single one.
    first = [i for i in config.eos_token_ids if i in ids][:1]
    return tuple(dict.fromkeys([*first, *ids]))
