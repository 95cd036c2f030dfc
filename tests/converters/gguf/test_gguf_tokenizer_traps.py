"""Features of a tokenizer.json in which llama.cpp and the tokenizers library go apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emo_export.errors import EmoExportError
from tests.converters.gguf.test_gguf_split import FORMS, SPECIALS, Pair, tokenizer_json
from tests.converters.gguf.test_gguf_tokenizer import added, changed, read

Change = Callable[[dict[str, Any]], object]


def name_token(text: str) -> Change:
    """Give an ordinary token this text."""

    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab[text] = len(vocab) + len(content["added_tokens"])

    return change


def contained(content: dict[str, Any]) -> None:
    content["added_tokens"] += [added(512, "<<|pad|>>", normalized=True)]


def template(content: dict[str, Any]) -> None:
    single = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    inner = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    content["post_processor"] = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, inner]}


REFUSED: dict[str, tuple[Change, str]] = {
    "missing byte": (
        lambda c: c["model"]["vocab"].pop("\u0106"),
        "lacks 1 of the bytes that texts are made of, '\u0106' first",
    ),
    "end of text": (name_token("</s>"), r"'</s>' \(id \d+\) is not among added_tokens"),
    "middle": (name_token("<|fim_suffix|>"), r"'<\|fim_suffix\|>' \(id \d+\) is not among"),
    "contained": (contained, r"'<<\|pad\|>>' is normalized and contains '<\|pad\|>'"),
    "nested template": (template, "post-processor TemplateProcessing would add tokens"),
    "normalizer": (
        lambda c: c.update(normalizer={"type": "NFC"}),
        r"normalizer \(NFC\) is set, and llama.cpp applies none; export to ONNX",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    change, message = REFUSED[name]

    def with_free_ids(content: dict[str, Any]) -> None:
        if name == "middle":  # the shipped file has it among added_tokens
            content["added_tokens"] = []
        change(content)

    with pytest.raises(EmoExportError, match=message):
        read(changed(tmp_path, with_free_ids))


def test_bytes_that_utf_8_never_uses_may_be_missing(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab["no byte"] = vocab.pop("\u00ff")

    tokenizer = read(changed(tmp_path, rename))
    assert tokenizer is not None and "\u00ff" not in tokenizer.tokens


def test_a_post_processor_that_only_moves_offsets_is_accepted(tmp_path: Path) -> None:
    plain = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}
    post = {"type": "Sequence", "processors": [plain, plain]}
    assert read(changed(tmp_path, lambda c: c.update(post_processor=post))) is not None


def check(folder: Path, change: Change, texts: list[str]) -> Pair:
    content = tokenizer_json("trained", FORMS["cl100k"])
    change(content)
    both = Pair(folder, content)
    for text in texts:
        both.check(text)
    both.model.close()
    return both


def test_of_a_repeated_merge_the_last_counts(tmp_path: Path) -> None:
    def repeat(content: dict[str, Any]) -> None:
        content["added_tokens"] = content["added_tokens"][:2]  # which frees their ids
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = vocab | {"qz": len(vocab), "zq": len(vocab) + 1}
        content["model"]["merges"] += [["q", "z"], ["z", "q"], ["q", "z"]]

    both = check(tmp_path, repeat, ["qzq zqz", "qzqzqzq", "zqzqz qz zq"])
    assert both.library.encode("qzq").tokens == ["q", "zq"]


def test_added_tokens_within_each_other(tmp_path: Path) -> None:
    spaces = ["  ", "    ", "        "]  # as in gpt-neox and olmo, normalized
    plain = ["<x><x>", "x>y", "Ä Ö", " 日本語 ", "\n \n", "1.2"]
    texts = ["<x><x><x>y<x>yy", "x>y<x>y", " Ä ÖÜ  日本語  ", *(f"a{' ' * n}b" for n in range(20))]
    texts += ["\n\n \n\n \n \n 1.2 1.23 1.2", "".join(plain + spaces + SPECIALS), "    " * 9 + "\n"]

    def extend(content: dict[str, Any]) -> None:
        start = 1 + max(entry["id"] for entry in content["added_tokens"])
        start = max(start, len(content["model"]["vocab"]))
        entries = [(text, False) for text in plain] + [(text, True) for text in spaces]
        for index, (text, late) in enumerate(entries):
            content["added_tokens"].append(added(start + index, text, normalized=late))

    check(tmp_path, extend, texts)


@pytest.mark.parametrize("text", ["</s>", "<PRE>", "<|channel|>", "[EOS]"])
def test_a_claimed_name_among_added_tokens_is_the_same_in_both(text: str, tmp_path: Path) -> None:
    def extend(content: dict[str, Any]) -> None:
        last = content["added_tokens"][-1]["id"]
        content["added_tokens"].append(added(last + 1, text))

    check(tmp_path, extend, [text, f"a {text}b{text}{text}\n", text[:-1], f"<{text}>"])
