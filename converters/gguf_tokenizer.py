"""A Hugging Face tokenizer.json as GGUF tokenizer keys.

Only what llama.cpp reproduces id for id is accepted: byte-level BPE with a known split regex.
Source: llama.cpp `llama-vocab.cpp` (pre-tokenizers by name), gguf-py `constants.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import Tokenizer

from emo_export.config import EmoConfig
from emo_export.errors import EmoExportError
from emo_export.json_file import read_json
from emo_export.stop_tokens import stop_tokens

# The split regex of tiktoken's cl100k, as the two spellings found in tokenizer.json files;
# llama.cpp knows it as "dbrx".
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CL100K_POSSESSIVE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
SPLITS: Mapping[str, str] = {_CL100K: "dbrx", _CL100K_POSSESSIVE: "dbrx"}


@dataclass(frozen=True)
class GgufTokenizer:
    """Tokens by id, their types, merges, the name of the split and the special ids."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    pre: str
    bos: int
    stops: tuple[int, ...]
    pad: int | None
    chat_template: str | None

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write the tokenizer's keys."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        # Without these keys llama.cpp takes id 11 for both.
        writer.add_bos_token_id(self.bos)
        add = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
        for write, token in zip(add, self.stops, strict=False):
            write(token)
        if self.pad is not None:
            writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(False)
        writer.add_add_eos_token(False)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(folder: Path, config: EmoConfig) -> GgufTokenizer | None:
    """The tokenizer of a checkpoint folder, or None when it has no tokenizer.json.

    Raises EmoExportError naming what llama.cpp could not reproduce.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        return _parse(folder, path, config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EmoExportError(
            f"{path}: is not of the form of a tokenizer.json ({error!r})"
        ) from error


def _parse(folder: Path, path: Path, config: EmoConfig) -> GgufTokenizer:
    content = read_json(path)
    model = content.get("model") or {}
    pre = _check_kind(path, content, model)
    if not model.get("merges"):
        raise EmoExportError(f"{path}: a BPE without merges; llama.cpp does not load one")
    tokens, types = _tokens(path, content, model, config.vocab_size)
    _check_added(path, content)
    stops = _stops(folder, config)
    return GgufTokenizer(
        tokens=tokens,
        types=types,
        merges=tuple(m if isinstance(m, str) else " ".join(m) for m in model.get("merges", ())),
        pre=pre,
        bos=config.bos_token_id if config.bos_token_id is not None else stops[0],
        stops=stops,
        pad=config.pad_token_id,
        chat_template=_chat_template(folder),
    )


def _check_kind(path: Path, content: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Refuse every feature that would change ids under llama.cpp; return the split's name."""
    if model.get("type") != "BPE":
        raise EmoExportError(f"{path}: tokenizer model {model.get('type')!r}; GGUF takes 'BPE'")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise EmoExportError(f"{path}: BPE option {key} = {model[key]!r} has no GGUF form")
    for key in ("byte_fallback", "ignore_merges", "fuse_unk"):
        if model.get(key):
            raise EmoExportError(f"{path}: BPE option {key} has no GGUF form")
    if content.get("normalizer"):
        raise EmoExportError(f"{path}: a normalizer ({content['normalizer'].get('type')}) is set")
    post = content.get("post_processor")
    if post and post.get("type") != "ByteLevel":
        raise EmoExportError(f"{path}: post-processor {post.get('type')} would add tokens")
    parts = content.get("pre_tokenizer") or {}
    steps = parts.get("pretokenizers", [parts])
    kinds = [step.get("type") for step in steps]
    if kinds != ["Split", "ByteLevel"] or steps[1].get("add_prefix_space"):
        raise EmoExportError(f"{path}: pre-tokenizer {kinds}; expected Split, then ByteLevel")
    regex = str((steps[0].get("pattern") or {}).get("Regex"))
    plain = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
    if regex not in SPLITS or not plain or steps[1].get("use_regex"):
        raise EmoExportError(f"{path}: split regex {regex!r} is unknown; cl100k's is known")
    return SPLITS[regex]


def _tokens(
    path: Path, content: Mapping[str, Any], model: Mapping[str, Any], size: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [TokenType.UNUSED] * size
    for text, token in model.get("vocab", {}).items():
        if not 0 <= token < size:
            raise EmoExportError(f"{path}: token {text!r} has id {token}, vocab_size is {size}")
        tokens[token], types[token] = text, TokenType.NORMAL
    for added in content.get("added_tokens", ()):
        token, text = added["id"], added["content"]
        if not 0 <= token < size:
            raise EmoExportError(f"{path}: token {text!r} has id {token}, vocab_size is {size}")
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            raise EmoExportError(f"{path}: added token {text!r} strips text, which GGUF can't say")
        tokens[token] = text
        types[token] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    _check_unique(path, tokens)
    return tuple(tokens), tuple(types)


def _check_unique(path: Path, tokens: Sequence[str]) -> None:
    """llama.cpp aborts on two ids with one text."""
    seen: dict[str, int] = {}
    for token, text in enumerate(tokens):
        if seen.setdefault(text, token) != token:
            raise EmoExportError(f"{path}: ids {seen[text]} and {token} both are {text!r}")


def _check_added(path: Path, content: Mapping[str, Any]) -> None:
    """The tokenizers library renumbers added tokens that leave a gap; GGUF could not follow."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise EmoExportError(f"{path}: is not a tokenizer.json ({error})") from error
    for added in content.get("added_tokens", ()):
        found = tokenizer.token_to_id(added["content"])
        if found != added["id"]:
            raise EmoExportError(
                f"{path}: added token {added['content']!r} has id {added['id']} in the file but "
                f"{found} in the tokenizers library; number added tokens without gaps"
            )


def _stops(folder: Path, config: EmoConfig) -> tuple[int, ...]:
    """One to three ids: GGUF has keys for end of text, of turn and of message."""
    ids = stop_tokens(folder, config)
    if not ids:
        raise EmoExportError(
            f"{folder}: neither config.json nor generation_config.json has eos_token_id; "
            "add it, or llama.cpp would stop at token 11"
        )
    if len(ids) > 3:
        raise EmoExportError(f"{folder}: {len(ids)} eos tokens {ids}; GGUF has keys for three")
    return ids


def _chat_template(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    return template if isinstance(template, str) else None
