"""Our own byte-level BPE: id for id that of the tokenizers library, or refused."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from emo_export.text.bpe import Bpe, NotPlainBpeError
from emo_export.text.character_kinds import SPACES
from tests.converters.gguf.test_gguf_split import FORMS, LINES, PIECES, TEXTS, Form, tokenizer_json
from tests.converters.gguf.test_gguf_tokenizer import added
from tests.kit.paths import GOLDEN, NANO
from tests.text.character_kinds import CODES, FILE, UNICODE, matching, runs

# Beyond Unicode 16 the library's two tables of numbers differ: Digits has Rust's newer one.
CHARACTERS = [chr(code) for code in CODES]
FILES = {"base": GOLDEN / "base", "nano": NANO}
KINDS = [f"{kind} {name}" for kind in ("trained", "probing") for name in FORMS] + list(FILES)


def content_of(name: str) -> dict[str, Any]:
    if name in FILES:
        content: dict[str, Any] = json.loads((FILES[name] / "tokenizer.json").read_text("utf-8"))
        return content
    kind, _, form = name.partition(" ")
    return tokenizer_json(kind, FORMS[form])


@functools.cache
def both(name: str) -> tuple[Bpe, Tokenizer]:
    content = content_of(name)
    return Bpe(content), Tokenizer.from_str(json.dumps(content))


def check(pair: tuple[Bpe, Tokenizer], text: str) -> None:
    ours, library = pair
    same = ours.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert same, repr(text[:200])  # pytest would take minutes to explain two long lists


@pytest.mark.parametrize("name", ["trained cl100k", "trained llama-3", "trained starcoder", "nano"])
def test_adversarial_texts(name: str) -> None:
    for text in TEXTS:
        check(both(name), text)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_texts_of_any_characters(name: str) -> None:
    rng = random.Random(name)
    for text in TEXTS:
        check(both(name), text)
    for _ in range(1500):
        check(both(name), "".join(rng.choices(PIECES + rng.sample(CHARACTERS, 9), k=12)))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=9))
def test_any_mixture(name: str, pieces: list[str]) -> None:
    check(both(name), "".join(pieces))


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("name", ["trained cl100k", "trained starcoder", "trained llama-3"])
def test_a_line_of_100_kb(name: str, line: str) -> None:
    check(both(name), LINES[line])


@pytest.mark.slow
def test_kinds_of_all_characters_are_the_library_s() -> None:
    stored = json.loads(FILE.read_text("utf-8"))
    assert stored["unicode"] == UNICODE
    assert [tuple(run) for run in stored["runs"]] == runs()
    assert matching(r"\s") - set(range(128)) == set(map(ord, SPACES))
    cut = pre_tokenizers.Digits(individual_digits=True)
    numbers = {code for code in CODES if len(cut.pre_tokenize_str(f"x{chr(code)}")) > 1}
    newer = {*range(0x11DE0, 0x11DEA), *range(0x16FF4, 0x16FF7)}  # of Unicode 17
    assert matching(r"\p{N}") <= numbers <= matching(r"\p{N}") | newer


def add(text: str, token: int | None = None, **options: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        following = 1 + max(*(e["id"] for e in content["added_tokens"]), *vocab(content).values())
        content["added_tokens"].append(added(token or following, text, **options))

    return change


def vocab(content: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = content["model"]["vocab"]
    return found


def rename(content: dict[str, Any]) -> None:
    vocab(content)["no byte"] = vocab(content).pop("\u0106")


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "normalizer": (lambda c: c.update(normalizer={"type": "NFC"}), "the normalizer NFC"),
    "split": (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "the split Whitespace"),
    "model": (lambda c: c["model"].update(type="WordPiece"), "the model WordPiece"),
    "option": (lambda c: c["model"].update(byte_fallback=True), "BPE option byte_fallback"),
    "two names": (lambda c: vocab(c).update(zz=5), "one id for two tokens"),
    "byte": (rename, "no token for the byte"),
    "merge": (lambda c: c["model"]["merges"].append(["zz", "zz"]), "a merge with 'zz"),
    "strips": (add("<s>", lstrip=True), "added token '<s>', which is empty or strips"),
    "gap": (add("<s>", 9000), "added token '<s>' with an id of its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_the_library_does_is_named(name: str) -> None:
    content = content_of("trained cl100k")
    change, message = REFUSED[name]
    change(content)
    with pytest.raises(NotPlainBpeError, match=message):
        Bpe(content)


def test_added_tokens_within_each_other() -> None:
    content = content_of("trained cl100k")
    for text in ("<x><x>", "x>y", " 日本語 ", "1.2"):
        add(text)(content)
    for text in ("  ", "    ", "<x> "):
        add(text, normalized=True)(content)
    pair = Bpe(content), Tokenizer.from_str(json.dumps(content))
    for text in (
        "<x><x><x>y<x>yy",
        "x>y<x>y",
        "a 日本語  日本語  ",
        "1.2 1.23",
        "<x>   <x> y     ",
    ):
        check(pair, text)


def test_of_a_repeated_merge_the_last_counts() -> None:
    content = content_of("trained cl100k")
    content["added_tokens"] = []
    size = len(vocab(content))
    vocab(content).update(qz=size, zq=size + 1)
    content["model"]["merges"] += [["q", "z"], ["z", "q"], ["q", "z"]]
    pair = Bpe(content), Tokenizer.from_str(json.dumps(content))
    for text in ("qzq zqz", "qzqzqzq", "zqzqz qz zq"):
        check(pair, text)


def test_forms_are_the_known_ones() -> None:
    for form in FORMS.values():
        assert isinstance(form, Form)
        Bpe(tokenizer_json("trained", form))
