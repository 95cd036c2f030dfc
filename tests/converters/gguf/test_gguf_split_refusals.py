"""Splits that are refused, and the differences that no refusal can prevent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emo_export.errors import EmoExportError
from tests.converters.gguf.test_gguf_split import (
    BYTES,
    CL100K,
    DIGITS,
    FORMS,
    PLAIN_BYTES,
    TIKTOKEN,
    Pair,
    Step,
    isolated,
    pair,
    split,
    tokenizer_json,
)


def test_what_still_differs(tmp_path: Path) -> None:
    """When one of these fails, take its sentence out of the modules' docstrings."""
    probe, words = pair("probing", "cl100k"), pair("trained", "cl100k")
    for char in ("\u1c89", "\U00016d40", "\U00013460"):  # letters since Unicode 16
        assert probe.llama.encode(f"!{char}a") != probe.ids(f"!{char}a")
    assert probe.llama.encode("'\u017fa") != probe.ids("'\u017fa")
    text = "<|pad|><|endoftext|>|||IP|||LONGER|||"
    content = json.loads(words.library.to_str())
    entry = content["added_tokens"][-1]
    content["added_tokens"].append(entry | {"id": entry["id"] + 1, "content": "|||LONGER|||"})
    both = Pair(tmp_path, content)
    assert both.llama.encode(text) != both.ids(text)
    both.check(text.replace("IP|||", "IP||| |||"))
    both.model.close()


def refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> str:
    content = tokenizer_json("trained", FORMS["cl100k"])
    change(content)
    with pytest.raises(EmoExportError) as caught:
        Pair(tmp_path, content).model.close()
    return str(caught.value)


UNKNOWN: dict[str, tuple[Step | None, str]] = {
    "tiktoken of today": (
        split(TIKTOKEN.replace("{1,3}", "{1,3}+")),  # Oniguruma reads that as any number
        r"Split by regex \"'\(\?i:.*\{1,3\}\+.*, then ByteLevel, which",
    ),
    "prefix space": (BYTES | {"add_prefix_space": True}, "and a prefix space, which"),
    "missing use_regex": (
        {"type": "Sequence", "pretokenizers": [isolated(CL100K), BYTES]},
        "then ByteLevel with gpt-2's regex, which",
    ),
    "digits together": (
        {
            "type": "Sequence",
            "pretokenizers": [DIGITS | {"individual_digits": False}, BYTES],
        },
        "is Digits, then ByteLevel with gpt-2's regex, which",
    ),
    "deepseek-v3": (
        {
            "type": "Sequence",
            "pretokenizers": [isolated(r"\p{N}{1,3}"), isolated("[一-龥]+"), PLAIN_BYTES],
        },
        "then Split by regex '.一-龥.+', then ByteLevel, which",
    ),
    "whitespace": ({"type": "Whitespace"}, "is Whitespace, which"),
    "none": (None, "is None, which"),
    "empty": ({"type": "Sequence", "pretokenizers": []}, "is empty, which"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_split_is_refused_with_the_list(name: str, tmp_path: Path) -> None:
    step, found = UNKNOWN[name]
    message = refused(tmp_path, lambda content: content.update(pre_tokenizer=step))
    known = r"cl100k, llama-3, gpt-2, qwen2, qwen3\.5, starcoder"
    assert re.search(rf"{found} is none of the splits .*\({known}\); export to ONNX", message)


def test_ignore_merges_only_where_llama_cpp_does_so(tmp_path: Path) -> None:
    def gpt2(content: dict[str, Any]) -> None:
        content["pre_tokenizer"] = BYTES
        content["model"]["ignore_merges"] = True

    assert re.search("ignore_merges .* llama-3 and not with gpt-2;", refused(tmp_path, gpt2))
