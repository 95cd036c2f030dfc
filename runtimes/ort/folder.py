"""What a runtime reads of an exported ONNX folder before it loads anything large."""

from __future__ import annotations

from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError

CONFIG_KEYS = (
    "vocab_size",
    "num_hidden_layers",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def read_config(folder: Path) -> dict[str, int]:
    """The numbers of config.json that a runtime needs; raises EmoExportError without one."""
    config = read_json(folder / "config.json")
    for key in CONFIG_KEYS:
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise EmoExportError(
                f"{folder / 'config.json'}: {key} is {value!r}, expected an integer above 0"
            )
    return {key: config[key] for key in CONFIG_KEYS}
