"""A byte-level BPE tokenizer.json, through the `tokenizers` library."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from emo_export.base.install import install_command
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.text.tokenizer_file import library_errors, open_library


class HfTokenizer:
    """tokenizer.json of a folder; the end of text comes from its generation_config.json."""

    def __init__(self, folder: Path) -> None:
        """Raises EmoExportError for files that are missing, broken or not byte-level BPE."""
        tokenizers = _import_tokenizers()
        self._path = path = folder / "tokenizer.json"
        self._tokenizer = open_library(path)
        if not isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel):
            raise EmoExportError(f"{path} is not byte-level BPE, the only kind that EMO has")
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._stop_ids = _read_stop_ids(folder / "generation_config.json")

    def encode(self, text: str) -> list[int]:
        """Text -> token ids; special tokens are recognised in the text, none are added."""
        with library_errors(self._path):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for (empty for a special or unused token)."""
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else str(added.content).encode("utf-8")
        text = self._tokenizer.id_to_token(token) if token >= 0 else None
        if text is None:  # the vocabulary of EMO is padded beyond its tokens
            return b""
        table = bytes_of_characters()
        try:
            return bytes(table[character] for character in text)
        except KeyError as error:
            raise EmoExportError(
                f"token {token} ({text!r}) is not written in the byte-level alphabet"
            ) from error

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self._stop_ids


@cache
def bytes_of_characters() -> dict[str, int]:
    """Character -> byte of byte-level BPE.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and
    on (source: `bytes_to_unicode` of openai/gpt-2, encoder.py).
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {chr(byte): byte for byte in shown}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


def _read_stop_ids(path: Path) -> frozenset[int]:
    value = read_json(path).get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in values):
        raise EmoExportError(f"{path}: eos_token_id is {value!r}, expected a token id or a list")
    return frozenset(values)


def _import_tokenizers() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reading tokenizer.json needs the package tokenizers: {install_command('ort')}"
        ) from error
    return tokenizers
