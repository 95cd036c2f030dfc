"""Which splits of a tokenizer.json llama.cpp makes alike.

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
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.text.splits import SPLITS, Split, shape


def split_of(path: Path, pre_tokenizer: Mapping[str, Any] | None, ignore_merges: bool) -> Split:
    """The split that a tokenizer.json's `pre_tokenizer` makes.

    Raises EmoExportError for one that is not listed, and for `ignore_merges` (the BPE's option)
    where llama.cpp would apply the merges; `path` is for the message.
    """
    found = shape(pre_tokenizer or {})
    known = [split for split in SPLITS if found in split.shapes]
    if not known:
        steps = ", then ".join(step.words for step in found)
        raise EmoExportError(
            f"{path}: the pre-tokenizer is {steps}, which is none of the splits that llama.cpp "
            f"makes alike ({', '.join(s.name for s in SPLITS)}); export to ONNX "
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
