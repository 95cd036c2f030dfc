"""A checkpoint to plan for: all of it, or its config and tokenizer without the weights."""

from __future__ import annotations

from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.model.checkpoint import INDEX, Checkpoint
from emo_export.model.config import EmoConfig


def open_source(path: Path) -> tuple[Checkpoint, int | None]:
    """The checkpoint of a folder, and bytes of its weights (None where nothing tells them).

    Without a safetensors file its config.json must do: no tensor can be read then, and which there
    are is not checked. Raises EmoExportError as `Checkpoint.open` does.
    """
    config = path / "config.json"
    if any(path.glob("*.safetensors")) or not config.is_file():
        checkpoint = Checkpoint.open(path)
        return checkpoint, checkpoint.nbytes
    raw = read_json(config)
    return Checkpoint(path, raw, EmoConfig.from_dict(raw, str(config)), {}), _total(path / INDEX)


def _total(index: Path) -> int | None:
    """What the index of a checkpoint in shards says of their size."""
    metadata = read_json(index).get("metadata") if index.is_file() else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return total if type(total) is int and total > 0 else None
