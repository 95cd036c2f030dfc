"""How a tokenizer.json splits text before BPE, recognised and named as llama.cpp names it.

Only splits that llama.cpp makes alike and in linear time are listed. Where it has no splitter of
its own it uses std::regex, which overflows the stack on a line of 100 kB (deepseek, falcon, bloom)
or knows no upper case beyond ASCII (gpt-4o, tekken); such splits are refused.

What no file can mend (xllamacpp 2026.10.11549, tokenizers 0.23.3): characters that came with
Unicode 16 or later are letters to llama.cpp only, and U+017F is the s of a contraction ('s) to the
tokenizers library only.
Source: llama.cpp `llama-vocab.cpp` (names, ignore_merges) and `unicode.cpp` (the splitters).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError

# Byte-level BPE's characters for the bytes C0, C1 and F5 to FF, which UTF-8 never uses.
NOT_UTF8 = frozenset(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))
_BYTES = "ByteLevel"
_GPT2_BYTES = "ByteLevel with gpt-2's regex"
_DIGITS = "Digits one by one"

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TIKTOKEN_CONTRACTIONS = r"'(?i:[sdmt]|ll|ve|re)"
# What follows the contractions: greedy as in llama-3's file, and possessive as in tiktoken.
# The last branches differ in a + only: \s* has taken the line breaks before the last one.
_GREEDY = (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_POSSESSIVE = (
    r"|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_MARKS = (
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Shape = tuple[str, ...]


def _regex(regex: str) -> Shape:
    return (f"Split by regex {regex!r}", _BYTES)


def spellings(digits: str) -> tuple[str, ...]:
    """The three spellings of cl100k's regex, with `digits` for how many go together."""
    return tuple(
        contractions + rest.replace("DIGITS", digits)
        for contractions, rest in (
            (_CONTRACTIONS, _GREEDY),
            (_CONTRACTIONS, _POSSESSIVE),
            (_TIKTOKEN_CONTRACTIONS, _POSSESSIVE),
        )
    )


def _shapes(digits: str) -> tuple[Shape, ...]:
    return tuple(map(_regex, spellings(digits)))


@dataclass(frozen=True)
class Split:
    """A split by its common name, llama.cpp's `tokenizer.ggml.pre`, and the forms it is found in.

    `ignore_merges`: a word that is a token stays whole, which llama.cpp ties to the name.
    """

    name: str
    pre: str
    shapes: tuple[Shape, ...]
    ignore_merges: bool = False


SPLITS = (
    Split("cl100k", "dbrx", _shapes("{1,3}")),
    Split("llama-3", "llama-bpe", _shapes("{1,3}"), ignore_merges=True),
    Split("gpt-2", "gpt-2", ((_GPT2_BYTES,), _regex(_GPT2))),  # olmo and phi-2 too
    Split("qwen2", "qwen2", _shapes("")),
    Split("qwen3.5", "qwen35", (_regex(_CONTRACTIONS + _MARKS),)),
    Split("starcoder", "starcoder", ((_DIGITS, _GPT2_BYTES),)),  # refact and smollm too
)
"""Each is held against the tokenizers library by tests/converters/gguf/test_gguf_split.py."""


def split_of(path: Path, pre_tokenizer: Mapping[str, Any] | None, ignore_merges: bool) -> Split:
    """The split that a tokenizer.json's `pre_tokenizer` makes.

    Raises EmoExportError for one that is not listed, and for `ignore_merges` (the BPE's option)
    where llama.cpp would apply the merges; `path` is for the message.
    """
    shape = _shape(pre_tokenizer or {})
    known = [split for split in SPLITS if shape in split.shapes]
    if not known:
        raise EmoExportError(
            f"{path}: the pre-tokenizer is {', then '.join(shape)}, which is none of the splits "
            f"that llama.cpp makes alike ({', '.join(s.name for s in SPLITS)}); export to ONNX "
            "(--to onnx:int4), which carries tokenizer.json itself"
        )
    for split in known:
        if split.ignore_merges == ignore_merges:
            return split
    able = ", ".join(split.name for split in SPLITS if split.ignore_merges)
    raise EmoExportError(
        f"{path}: BPE option ignore_merges is set, which llama.cpp does with the split {able} "
        f"and not with {known[0].name}; export to ONNX (--to onnx:int4) instead"
    )


def _shape(pre_tokenizer: Mapping[str, Any]) -> Shape:
    """Its steps in words, everything said that changes ids."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return tuple(_step(step) for step in steps) or ("empty",)


def _step(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "Split":
        ((form, pattern),) = step["pattern"].items()
        words = f"Split by {form.lower()} {pattern!r}"
        if step.get("behavior") != "Isolated":
            words += f" ({step.get('behavior')})"
        return words + (" (inverted)" if step.get("invert") else "")
    if kind == "ByteLevel":
        # The library's default when the key is missing, as in gpt-2's own file.
        words = _GPT2_BYTES if step.get("use_regex", True) else _BYTES
        return words + (" and a prefix space" if step.get("add_prefix_space") else "")
    if kind == "Digits" and step.get("individual_digits"):
        return _DIGITS
    return str(kind)
