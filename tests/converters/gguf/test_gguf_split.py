"""Every known split: ids in llama.cpp equal to those of the tokenizers library."""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gguf import GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from emo_export.runtimes.llama.model import LlamaCpp, LlamaTokenizer
from tests.kit.exporting import export_to
from tests.kit.synth import make_checkpoint
from tests.kit.tiers import slow_beyond
from tests.kit.workspace import workspace

Step = dict[str, Any]
BYTES: Step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PLAIN_BYTES: Step = BYTES | {"use_regex": False}


def isolated(regex: str) -> Step:
    """A Split step as tokenizer.json files have it."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def split(regex: str) -> Step:
    """The usual pre-tokenizer: a regex, then bytes."""
    return {"type": "Sequence", "pretokenizers": [isolated(regex), PLAIN_BYTES]}


# The regexes are written out as the files have them, apart from how split.py builds them.
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K_MIXED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS: Step = {"type": "Digits", "individual_digits": True}


class Form(NamedTuple):
    """A pre-tokenizer as found in files, and the `tokenizer.ggml.pre` that it is to become."""

    pre: str
    step: Step
    ignore_merges: bool = False


FAMILIES = {
    "cl100k": Form("dbrx", split(CL100K)),
    "llama-3": Form("llama-bpe", split(CL100K), ignore_merges=True),
    "gpt-2": Form("gpt-2", BYTES),
    "qwen2": Form("qwen2", split(CL100K.replace("{1,3}", ""))),
    "qwen3.5": Form("qwen35", split(QWEN35)),
    "starcoder": Form(
        "starcoder", {"type": "Sequence", "pretokenizers": [DIGITS, BYTES | {"use_regex": True}]}
    ),
}
FORMS = FAMILIES | {
    "cl100k mixed": Form("dbrx", split(CL100K_MIXED)),
    "cl100k tiktoken": Form("dbrx", split(TIKTOKEN)),
    "llama-3 tiktoken": Form("llama-bpe", split(TIKTOKEN), ignore_merges=True),
    "gpt-2 split": Form("gpt-2", split(GPT2)),
    "gpt-2 alone": Form("gpt-2", {"type": "Sequence", "pretokenizers": [BYTES]}),
    "qwen2 mixed": Form("qwen2", split(CL100K_MIXED.replace("{1,3}", ""))),
    "qwen2 tiktoken": Form("qwen2", split(TIKTOKEN.replace("{1,3}", ""))),
}

WORDS = [
    *["don't", "I'VE", "we'll", "'Re", "''s", "it'D", "l'été", "Hello", " world", "HTTPServer"],
    *["naïve", "e\u0301tude\u0301", "ÄÖÜß", " Ελληνικά", "ΑΒΓαβγ", "Привет", "日本語", "漢字かな"],
    *["한국어", "العربية", "עברית", "हिन्दी", "ไทย", "தமிழ்", "ǅ", "𝒳𝟗", "𠀀𠀁"],
    *["0", "42", " 123", "1234567", "٣٤٥", "½", "²", "Ⅷ", "一二三", "1_000.5e-3", "๑๒๓๔"],
    *[" ", "  ", "   ", "\t", "\t\t", "\n", "\r\n", "\r", "\n\n\n", " \n ", "\v\f", "\u00a0"],
    *["\u2028", "\u3000", "\u0085", "\u200b", "\u200d", "\ufeff", "\x00", "\x7f", "\x1c"],
    *[
        "!",
        "...",
        " ...\n",
        "?!\r\n",
        "(",
        "_x",
        "$%^",
        "—",
        "«»",
        "#",
        "//\n",
        "🙂",
        "👩‍👩‍👧",
        "🇩🇪",
        "🧑🏽",
    ],
    *["\ufffd", "Ã©", "â€™", "ï¿½", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\U000e0041"],
]
SPECIALS = ["<|endoftext|>", "<|pad|>", "<x>", "<x>y", "|||IP|||"]
PIECES = [*WORDS, *SPECIALS, "<|endoftext", "|>", "[PAD3000]", "<|fim_prefix|>", "|||", "<x"]
TEXTS = [
    *["", " ", "\n", " leading", "   leading", "trailing ", "trailing   ", "\r\n\r\nlines\r\n"],
    *[f"{a}{b}{a}" for a in WORDS[::3] for b in WORDS[1::3]],
    *[f"{special} {special}a{special}{special}\n " for special in SPECIALS],
    "def f(x):\n\tif x>=10_000:  # ½\r\n        return x**2\n\n\n",
    "12345678901234567890 1,234.50 0x1F ٣٤٥٦٧٨ 1a2b3c",
    "Mixed скрипты 日本語とEnglish العربية123 हिन्दी।\u200d🙂👩‍👩‍👧\ufe0f",
    "<x>y<x><x>yy <|endoftext|<|endoftext|>|> |||IP|||||IP||| <|pad|><|pad|>",
    b"caf\xc3 \xff\xfe \xed\xa0\x80 \xf0\x9f\x99".decode("utf-8", "replace"),
    b"\xc3\x83\xc2\xa9 \xef\xbf\xbd".decode("latin-1"),
]
SIZE = 100_000
LINES = {
    "letters": "x" * SIZE,
    "digits": "7" * SIZE,
    "spaces": " " * SIZE,
    "punctuation": "!" * SIZE,
    "marks": "हि" * (SIZE // 6),
}


# Blocks without a character that came with Unicode 16 or later.
OLD = [*range(0x80, 0x17F), *range(0x180, 0x897), *range(0x898, 0x1C89), *range(0x1C90, 0xA7CB)]
FAR = [*range(0xA800, 0xD7A4), *range(0xE000, 0x10000), *range(0x1D400, 0x1D800)]
FAR += [*range(0x1F300, 0x1F700), *range(0x20000, 0x2A6E0), *range(0xE0000, 0xE0200)]
CHARACTERS = st.characters(max_codepoint=0x896, exclude_characters="\u017f") | st.sampled_from(
    [chr(code) for code in FAR]
)


@functools.cache
def trained() -> str:
    """A tokenizer.json whose merges cross words, digits and spaces, so that every cut shows."""
    rng = random.Random(5)
    texts = ["".join(rng.choices(WORDS, k=6)) for _ in range(1500)]
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    result.train_from_iterator(texts, trainer)
    result.add_tokens([AddedToken(text, normalized=False) for text in SPECIALS[2:]])
    return str(result.to_str())


@functools.cache
def probing() -> str:
    """Merges join a, ! and 1 with any character's first and last byte: a cut there shows."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    first = [chr(byte) for byte in range(0xC2, 0xF5)]  # these stand for themselves
    last = [encode(chr(code))[0][0][-1] for code in range(0x80, 0xC0)]
    pairs = [(x, c) for x in "a!1'" for c in first] + [(c, x) for x in "a!1" for c in last]
    vocab = {text: token for token, text in enumerate(alphabet + [a + b for a, b in pairs])}
    result = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    result.add_special_tokens(["<|endoftext|>", "<|pad|>"])
    return str(result.to_str())


def tokenizer_json(kind: str, form: Form) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(trained() if kind == "trained" else probing())
    content["pre_tokenizer"] = form.step
    if form.ignore_merges:
        content["model"]["ignore_merges"] = True
        # Without these merges some tokens are only found as whole words.
        content["model"]["merges"] = content["model"]["merges"][::2]
    return content


class Pair:
    """One tokenizer in both programs."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.library = Tokenizer.from_str(json.dumps(content))
        size = self.library.get_vocab_size()
        eos = self.library.token_to_id("<|endoftext|>")
        config: dict[str, Any] = {"num_hidden_layers": 1, "num_experts": 4, "vocab_size": size}
        config |= {"hidden_size": 32, "eos_token_id": eos, "pad_token_id": eos}
        make_checkpoint(folder / "model", tokenizer=False, **config)
        (folder / "model" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
        self.file = export_to(folder, folder / "model", gguf=["f32"])["gguf:f32"]
        self.model = LlamaCpp(self.file, threads=1, context=8)
        self.llama: LlamaTokenizer = self.model.tokenizer()

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.library.encode(text, add_special_tokens=False).ids
        return found

    def check(self, text: str) -> None:
        # No comparison inside assert: pytest would take minutes to explain two long lists.
        same = self.llama.encode(text) == self.ids(text)
        assert same, text[:200]


@functools.cache
def pair(kind: str, name: str) -> Pair:
    """Kept for the process: llama.cpp opens each file once."""
    folder = workspace() / f"split-{os.getpid()}-{kind}-{name}".replace(" ", "-")
    return Pair(folder, tokenizer_json(kind, FORMS[name]))


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield pair("trained", request.param)


def test_every_form_is_recognised(form: Pair, request: pytest.FixtureRequest) -> None:
    want = FORMS[request.node.callspec.params["form"]].pre
    assert GGUFReader(form.file).fields["tokenizer.ggml.pre"].contents() == want


def test_adversarial_texts(form: Pair) -> None:
    for text in TEXTS:
        form.check(text)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES) | st.text(CHARACTERS, max_size=3), max_size=12))
def test_any_mixture(form: Pair, pieces: list[str]) -> None:
    form.check("".join(pieces))


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_line_of_100_kb(name: str, line: str) -> None:
    pair("trained", name).check(LINES[line])


@pytest.mark.slow
def test_a_mixed_line_of_100_kb(form: Pair) -> None:
    pieces = [piece for piece in PIECES if "\n" not in piece and "\r" not in piece]
    text = "".join(random.Random(3).choices(pieces, k=SIZE // 4))
    assert len(text.encode()) > SIZE
    form.check(text)


def test_bytes_come_back(form: Pair) -> None:
    for text in TEXTS:
        if not any(special in text for special in SPECIALS[:2]):  # those have no bytes
            pieces = map(form.llama.piece, form.llama.encode(text))
            assert b"".join(pieces) == text.encode()


@pytest.mark.parametrize("name", slow_beyond(["cl100k", "gpt-2"], FAMILIES))
def test_both_programs_class_characters_alike(name: str) -> None:
    codes = OLD[:0x1A00] + random.Random(4).sample(OLD[0x1A00:] + FAR, 1500)
    probe = pair("probing", name)
    for start in range(0, len(codes), 500):
        chars = map(chr, codes[start : start + 500])
        probe.check("".join(f"a{c}a\n!{c}!\n1{c}1\n{c}a '{c}a\n" for c in chars))


def test_the_texts_tell_the_splits_apart() -> None:
    ids = {name: [pair("trained", name).ids(text) for text in TEXTS] for name in FAMILIES}
    for name, other in itertools.combinations(FAMILIES, 2):
        assert ids[name] != ids[other], (name, other)
