"""What is wrong with the tokenizer of a GGUF, in particular of an EMO.

Source: llama.cpp `llama-vocab.cpp` (defaults, pre-tokenizers by name), allenai/dolma2-tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufArray, read_item
from emo_export.inspect.finding import Finding, Level, Subject
from emo_export.inspect.kin import END_OF_TEXT, TOKENS

DEFAULT_EOS = 11  # llama.cpp's, of byte-level BPE
NORMAL, CONTROL = 1, 3  # enum llama_token_type
# Names that llama.cpp gives to cl100k's split. llama-bpe splits alike, but ignores merges and adds
# a beginning token.
CL100K_SPLITS = ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe")
# Of other tokenizers whose ids llama.cpp reproduces (text/splits.py).
OTHER_SPLITS = ("llama-bpe", "gpt-2", "qwen2", "qwen35", "starcoder")
ENDS = re.compile(r"end[_ ]?of|im_end|eot|eos|</s>", re.IGNORECASE)
KEY = "tokenizer.ggml"


def token_findings(subject: Subject, emo: bool) -> Iterator[Finding]:
    """Findings about the tokenizer; those that hold for an EMO alone only when it is one."""
    model = subject.text(f"{KEY}.model")
    if model in (None, "none"):
        yield Finding("risk", "has no tokenizer", "it takes token ids, not text")
        return
    count, size = subject.token_count, subject.number("vocab_size")
    if count is not None and size is not None and count != size:
        yield Finding(
            "risk",
            f"the tokenizer has {count} tokens, vocab_size is {size}",
            "ids beyond the smaller of the two can't be read or written",
        )
    if model == "gpt2":
        yield from _defaults(subject, "wrong" if emo else "risk")
    if emo:
        yield from _end(subject)
        yield from _emo(subject)


def _defaults(subject: Subject, level: Level) -> Iterator[Finding]:
    """Keys that llama.cpp replaces by a guess when they are missing."""
    if subject.id_of("eos_token_id") is None:
        yield Finding(
            level,
            f"has no {KEY}.eos_token_id",
            f"llama.cpp takes id {DEFAULT_EOS}, so text stops at an ordinary token and runs on "
            "past its real end",
        )
    if subject.text(f"{KEY}.pre") is None:
        yield Finding(
            level,
            f"has no {KEY}.pre",
            "llama.cpp guesses how text is split (its default split), so the model may read other "
            "tokens than it learnt",
        )
    if f"{KEY}.token_type" not in subject.file.keys:
        yield Finding(
            "risk",
            f"has no {KEY}.token_type",
            "special tokens count as ordinary text: printed, and not recognised in prompts",
        )


def _end(subject: Subject) -> Iterator[Finding]:
    """Whether eos_token_id is a token that ends texts."""
    eos, count = subject.id_of("eos_token_id"), subject.token_count
    if eos is None or count is None:
        return
    what = f"{KEY}.eos_token_id is {eos}"
    if not 0 <= eos < count:
        yield Finding("wrong", f"{what}, beyond its {count} tokens", "text never ends")
        return
    text, kind = _item(subject, "tokens", eos), _item(subject, "token_type", eos)
    shown = f"{what}, which is {str(text)[:40]!r}"
    hint = f" (EMO's is {END_OF_TEXT}, '<|endoftext|>')" if count in TOKENS else ""
    if not ENDS.search(str(text)):
        yield Finding(
            "risk" if kind == CONTROL else "wrong",
            shown + hint,
            "text stops wherever this token would stand, and runs on past its real end",
            f"Set {KEY}.eos_token_id to the id of the end of text",
        )
    elif kind == NORMAL:
        yield Finding(
            "risk",
            f"{shown}, typed as ordinary text",
            "the end of a text is printed, and not recognised in prompts",
        )


def _item(subject: Subject, name: str, index: int) -> Any:
    array = subject.file.keys.get(f"{KEY}.{name}")
    if isinstance(array, GgufArray):
        try:
            return read_item(subject.path, array, index)
        except EmoExportError:
            return None
    return array[index] if isinstance(array, list) and index < len(array) else None


def _emo(subject: Subject) -> Iterator[Finding]:
    """What an EMO's tokenizer must say: cl100k's split, nothing added before or behind a text."""
    keys = subject.file.keys
    pre = subject.text(f"{KEY}.pre")
    if pre is not None and pre not in CL100K_SPLITS:
        # An EMO of somebody's own may have learnt another tokenizer; the released ones did not.
        yield Finding(
            "risk" if pre in OTHER_SPLITS and subject.token_count not in TOKENS else "wrong",
            f"{KEY}.pre is {pre[:40]!r}, EMO's split is 'dbrx' (cl100k)",
            "numbers, contractions and runs of spaces become other tokens than the model learnt, "
            "or llama.cpp does not open the file",
            f"Set {KEY}.pre to dbrx",
        )
    if keys.get(f"{KEY}.add_bos_token"):
        yield Finding(
            "wrong",
            f"{KEY}.add_bos_token is true, but EMO texts have no beginning token",
            "every prompt starts with a token that the model did not see there, and all that "
            "follows is computed from it",
            f"Set {KEY}.add_bos_token to false",
        )
    if keys.get(f"{KEY}.add_eos_token"):
        yield Finding(
            "wrong",
            f"{KEY}.add_eos_token is true",
            "the end of text is put behind every prompt: the model starts a new text instead of "
            "going on with yours",
            f"Set {KEY}.add_eos_token to false",
        )
