"""A byte-level BPE tokenizer.json: read here, or by the `tokenizers` library where it takes that.

The library depends on a client of Hugging Face's hub, some 40 MB that a device has no use for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.text.bpe import BYTE_OF, Bpe, NotPlainBpeError
from emo_export.text.tokenizer_file import library_errors, open_library, read_tokenizer_json


class HfTokenizer:
    """tokenizer.json of a folder; the end of text comes from its generation_config.json."""

    def __init__(self, folder: Path) -> None:
        """Raises EmoExportError for files that are missing, broken or not byte-level BPE.

        Raises MissingDependencyError for what takes the tokenizers library, where there is none.
        """
        self._tokenizer = open_bpe(folder / "tokenizer.json")
        self._stop_ids = _read_stop_ids(folder / "generation_config.json")

    def encode(self, text: str) -> list[int]:
        """Text -> token ids; special tokens are recognised in the text, none are added."""
        return self._tokenizer.encode(text)

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for (empty for a special or unused token)."""
        added = self._tokenizer.added.get(token)
        if added is not None:
            return b"" if added.get("special") else str(added["content"]).encode("utf-8")
        text = self._tokenizer.text_of(token) if token >= 0 else None
        if text is None:  # the vocabulary of EMO is padded beyond its tokens
            return b""
        try:
            return bytes(BYTE_OF[character] for character in text)
        except KeyError as error:
            raise EmoExportError(
                f"token {token} ({text!r}) is not written in the byte-level alphabet"
            ) from error

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return self._stop_ids


class _Library:
    """What the library makes of a file, with the methods of Bpe."""

    def __init__(self, path: Path, why: str) -> None:
        """`why`: what of the file takes it."""
        self._path = path
        try:
            self._tokenizer = open_library(path)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"{path}: {why} takes the package tokenizers: pip install tokenizers"
            ) from error
        self.added: dict[int, dict[str, Any]] = {
            token: {"content": entry.content, "special": entry.special}
            for token, entry in self._tokenizer.get_added_tokens_decoder().items()
        }

    def encode(self, text: str) -> list[int]:
        with library_errors(self._path):
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text_of(self, token: int) -> str | None:
        text: str | None = self._tokenizer.id_to_token(token)
        return text


def open_bpe(path: Path) -> Bpe | _Library:
    """The tokenizer of a file, by our own reading where that gives the same ids.

    Raises as HfTokenizer does.
    """
    content = read_tokenizer_json(path)
    decoder = content.get("decoder")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise EmoExportError(f"{path} is not byte-level BPE, the only kind that EMO has")
    try:
        return Bpe(content)
    except NotPlainBpeError as found:
        return _Library(path, str(found))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EmoExportError(
            f"{path}: is not of the form of a tokenizer.json ({error!r})"
        ) from error


def _read_stop_ids(path: Path) -> frozenset[int]:
    value = read_json(path).get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in values):
        raise EmoExportError(f"{path}: eos_token_id is {value!r}, expected a token id or a list")
    return frozenset(values)
