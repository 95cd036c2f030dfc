"""A Hugging Face tokenizer.json as GGUF tokenizer keys.

Only what llama.cpp reproduces id for id is accepted: byte-level BPE with a known split
(`converters/split.py`, with what llama.cpp still does otherwise). In a text where two added tokens
overlap, as in `|||A|||BCD|||`, llama.cpp takes the longer one and the tokenizers library the
first; AI2's tokenizers have such tokens (`|||IP_ADDRESS|||`), so they are accepted.
Source: llama.cpp `llama-vocab.cpp` (special tokens, merges), gguf-py `constants.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import pre_tokenizers

from emo_export.converters.split import split_of
from emo_export.errors import EmoExportError
from emo_export.model.chat_templates import DEFAULT, chat_templates
from emo_export.model.config import EmoConfig
from emo_export.model.stop_tokens import stop_tokens
from emo_export.text.splits import NOT_UTF8
from emo_export.text.tokenizer_file import open_library, read_tokenizer_json

# Texts that llama.cpp takes for special tokens whatever their type in the file says.
CLAIMED = frozenset(
    """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>
    <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance>
    <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[
    <|channel|> <|message|> <|start|> <|constrain|>
    <|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>
    <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>
    <|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>
    <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
    <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
    """.split()
)


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
    chat_templates: Mapping[str, str]
    """By name, as letters, digits and underscores; `default` is the one that engines take."""

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
        # Not gguf-py's own call for several: it lists them in the order of a set.
        named = [name for name in self.chat_templates if name != DEFAULT]
        for name in named:
            key = gguf.Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name)
            writer.add_string(key, self.chat_templates[name])
        if named:
            writer.add_array(gguf.Keys.Tokenizer.CHAT_TEMPLATES, named)
        if DEFAULT in self.chat_templates:
            writer.add_chat_template(self.chat_templates[DEFAULT])


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
    content = read_tokenizer_json(path)
    model = content["model"]
    pre = _check_kind(path, content, model)
    if not model.get("merges"):
        raise EmoExportError(f"{path}: a BPE without merges; llama.cpp does not load one")
    _check_alphabet(path, model)
    tokens, types = _tokens(path, content, model, config.vocab_size)
    _check_claimed(path, tokens, types)
    _check_added(path, content)
    _check_order(path, content.get("added_tokens", ()))
    stops = _stops(folder, config)
    return GgufTokenizer(
        tokens=tokens,
        types=types,
        merges=_merges(model),
        pre=pre,
        bos=config.bos_token_id if config.bos_token_id is not None else stops[0],
        stops=stops,
        pad=config.pad_token_id,
        chat_templates=_chat_templates(folder),
    )


def _check_kind(path: Path, content: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Refuse every feature that would change ids under llama.cpp; return the split's name."""
    if model.get("type") != "BPE":
        raise EmoExportError(f"{path}: tokenizer model {model.get('type')!r}; GGUF takes 'BPE'")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise EmoExportError(f"{path}: BPE option {key} = {model[key]!r} has no GGUF form")
    for key in ("byte_fallback", "fuse_unk"):
        if model.get(key):
            raise EmoExportError(f"{path}: BPE option {key} has no GGUF form")
    if content.get("normalizer"):
        raise EmoExportError(
            f"{path}: a normalizer ({content['normalizer'].get('type')}) is set, and llama.cpp "
            "applies none; export to ONNX (--to onnx:int4), which carries tokenizer.json itself"
        )
    for post in _post_processors(content.get("post_processor")):
        if post.get("type") != "ByteLevel":  # that one only moves offsets
            raise EmoExportError(f"{path}: post-processor {post.get('type')} would add tokens")
    return split_of(path, content.get("pre_tokenizer"), bool(model.get("ignore_merges"))).pre


def _post_processors(post: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if post and post.get("type") == "Sequence":
        for inner in post["processors"]:
            yield from _post_processors(inner)
    elif post:
        yield post


def _check_alphabet(path: Path, model: Mapping[str, Any]) -> None:
    """Without a token for a byte, the library closes the gap and merges over it."""
    missing = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - NOT_UTF8 - set(model["vocab"]))
    if missing:
        raise EmoExportError(
            f"{path}: the vocabulary lacks {len(missing)} of the bytes that texts are made of, "
            f"{missing[0]!r} first; llama.cpp drops such bytes in its own way"
        )


def _merges(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Each pair once: of a repeated one the library takes the last rank, llama.cpp the first."""
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return tuple(reversed(dict.fromkeys(reversed(pairs))))


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


def _check_claimed(path: Path, tokens: Sequence[str], types: Sequence[TokenType]) -> None:
    """An ordinary token with such a text would cut the text in llama.cpp alone."""
    for token, text in enumerate(tokens):
        if types[token] is TokenType.NORMAL and text in CLAIMED:
            raise EmoExportError(
                f"{path}: token {text!r} (id {token}) is not among added_tokens, but llama.cpp "
                "takes every token of that name for a special one"
            )


def _check_order(path: Path, added: Sequence[Mapping[str, Any]]) -> None:
    """The library looks for `normalized` tokens last, llama.cpp for short ones."""
    late = [entry["content"] for entry in added if entry.get("normalized")]
    early = [entry["content"] for entry in added if not entry.get("normalized")]
    for text in late:
        for inner in early:
            if inner in text:
                raise EmoExportError(
                    f"{path}: added token {text!r} is normalized and contains {inner!r}, which is "
                    "not; llama.cpp would find the longer one first"
                )


def _check_added(path: Path, content: Mapping[str, Any]) -> None:
    """The tokenizers library renumbers added tokens that leave a gap; GGUF could not follow."""
    tokenizer = open_library(path)
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


def _chat_templates(folder: Path) -> dict[str, str]:
    """By the names that they have in a GGUF: the key of one takes letters, digits and `_`."""
    found: dict[str, str] = {}
    for name, text in chat_templates(folder).items():
        key = re.sub(r"[^A-Za-z0-9]", "_", name)
        if key in found:
            raise EmoExportError(
                f"{folder}: two chat templates would have the name {key!r} in a GGUF, of which one "
                f"is {name!r}; rename it"
            )
        found[key] = text
    return found
