"""How a tokenizer.json splits text before BPE: the splits that are known, and their forms in files.

Source: the files of the models named, and `tokenizer.ggml.pre` in llama.cpp's `llama-vocab.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Byte-level BPE's characters for the bytes C0, C1 and F5 to FF, which UTF-8 never uses.
NOT_UTF8 = frozenset(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))

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


@dataclass(frozen=True)
class Step:
    """One step in words, everything said that changes ids.

    `regex`: it cuts before and after each match. None: it cuts nothing, or is none of the known.
    """

    words: str
    regex: str | None = None


Shape = tuple[Step, ...]

_BYTES = Step("ByteLevel")
_GPT2_BYTES = Step("ByteLevel with gpt-2's regex", _GPT2)
_DIGITS = Step("Digits one by one", r"\p{N}")


def _regex(regex: str) -> Shape:
    return (Step(f"Split by regex {regex!r}", regex), _BYTES)


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


def shape(pre_tokenizer: Mapping[str, Any]) -> Shape:
    """Its steps."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    return tuple(map(_step, steps)) or (Step("empty"),)


def _step(step: Mapping[str, Any]) -> Step:
    kind = step.get("type")
    if kind == "Split":
        return _split(step)
    if kind == "ByteLevel":
        # The library's default when the key is missing, as in gpt-2's own file.
        found = _GPT2_BYTES if step.get("use_regex", True) else _BYTES
        if step.get("add_prefix_space"):
            return Step(f"{found.words} and a prefix space")
        return found
    if kind == "Digits" and step.get("individual_digits"):
        return _DIGITS
    return Step(str(kind))


def _split(step: Mapping[str, Any]) -> Step:
    ((form, pattern),) = step["pattern"].items()
    words = f"Split by {form.lower()} {pattern!r}"
    if step.get("behavior") != "Isolated":
        return Step(f"{words} ({step.get('behavior')})")
    if step.get("invert"):
        return Step(f"{words} (inverted)")
    return Step(words, pattern if form == "Regex" else None)
