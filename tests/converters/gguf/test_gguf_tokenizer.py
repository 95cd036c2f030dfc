"""The tokenizer inside a GGUF: id for id that of tokenizer.json, or refused by name."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from emo_export.converters.gguf.tokenizer import GgufTokenizer, read_tokenizer
from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.runtimes.llama.model import LlamaCpp
from tests.kit.exporting import TIGHT, assert_same, export_to, exported, prefill
from tests.kit.oracle import oracle_logits
from tests.kit.paths import GOLDEN, NANO
from tests.kit.synth import make_checkpoint

PIECES = [
    *["<|endoftext|>", "<|pad|>", "<|endoftext", "|>", "<|fim_prefix|>", "[PAD300]"],
    *["'s", "'S", "'LL", "'ſ", "don't", "I'VE", "''re"],
    *[" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n\n", " \n ", "\v\f", "\u00a0", "\u2028"],
    *["a", "Hello", " world", "ÄÖÜß", "naïve", "e\u0301", "Ωμέγα", "Привет", "日本語", "한국어"],
    *["العربية", "עברית", "हिन्दी", "ไทย", "\u200b", "\u200d", "\ufeff", "\x00", "\x7f"],
    *["0", "42", "12345", "1234567", "٣٤٥", "½", "²", "Ⅷ", "一二三"],
    *[
        "!",
        "...",
        " ...\n",
        "?!\r\n",
        "(",
        "_x",
        "$%^",
        "—",
        "🙂",
        "👩‍👩‍👧",
        "🇩🇪",
        "\U0001f9d1\U0001f3fd",
    ],
]
TEXTS = [
    "",
    " leading, and trailing ",
    "  two\n\n \tthree   \r\n\r\nend\t",
    "def f(x):\n\tif x>=10_000:  # ½\r\n        return x**2\n",
    "<|endoftext|><|endoftext|> a<|pad|>b <|endoftext|>\n",
    "x" * 5000,
    "9" * 1001,
    " " * 700 + "\n" * 300,
    "日本" * 800 + "🙂" * 300,
    "The quick brown fox; " * 400,
    "Zoë's 12345 日本語 🙂\t— <|pad|>" * 2700,  # a line of 100 kB
]

Tokenizers = tuple[Callable[[str], list[int]], Tokenizer]


@pytest.fixture(scope="module", params=[GOLDEN / "base", NANO], ids=["base", "nano"])
def both(request: pytest.FixtureRequest) -> Iterator[Tokenizers]:
    """llama.cpp's encoder of an exported file, and the tokenizers library on the checkpoint."""
    model = LlamaCpp(exported(request.param, "gguf:q8_0"), threads=1)
    library = Tokenizer.from_file(str(request.param / "tokenizer.json"))
    yield model.tokenizer().encode, library
    model.close()


def assert_same_ids(both: Tokenizers, text: str) -> None:
    encode, library = both
    assert encode(text) == library.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("index", range(len(TEXTS)))
def test_texts(both: Tokenizers, index: int) -> None:
    assert_same_ids(both, TEXTS[index])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join))
def test_any_mixture(both: Tokenizers, text: str) -> None:
    assert_same_ids(both, text)


def test_characters_of_every_category(both: Tokenizers) -> None:
    # The split regex asks for letters, numbers and spaces: unicode tables may differ.
    rng = np.random.default_rng(0)
    by_category: dict[str, list[str]] = {}
    for code in range(0x20000):
        by_category.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    for category in sorted(set(by_category) - {"Cs", "Cn"}):
        for char in rng.choice(by_category[category], 25):
            assert_same_ids(both, f"a{char}b1{char}s2 {char} {char}\n{char}!")


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A small checkpoint whose tokenizer.json went through `change`."""
    make_checkpoint(folder, vocab_size=640, num_hidden_layers=1)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    change(content)
    file.write_text(json.dumps(content), "utf-8")
    return folder


def read(folder: Path) -> GgufTokenizer | None:
    return read_tokenizer(folder, EmoConfig.from_json(folder / "config.json"))


def added(token: int, text: str, **options: Any) -> dict[str, Any]:
    """An entry of added_tokens."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token, "content": text} | plain | options


def split(content: dict[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = content["pre_tokenizer"]["pretokenizers"]
    return steps[0]


NEAR = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "regex": (
        lambda c: split(c).update(pattern={"Regex": NEAR}),
        "pre-tokenizer is Split by regex",
    ),
    "string": (lambda c: split(c).update(pattern={"String": " "}), "Split by string ' ', then"),
    "inverted": (lambda c: split(c).update(invert=True), r" \(inverted\), then ByteLevel, which"),
    "removed": (lambda c: split(c).update(behavior="Removed"), r" \(Removed\), then ByteLevel"),
    "no pre-tokenizer": (lambda c: c.update(pre_tokenizer=None), "pre-tokenizer"),
    "prefix space": (
        lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        "pre-tokenizer",
    ),
    "second regex": (
        lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
        "then ByteLevel with gpt-2's regex, which",
    ),
    "normalizer": (lambda c: c.update(normalizer={"type": "NFC"}), r"normalizer \(NFC\)"),
    "post": (
        lambda c: c.update(post_processor={"type": "TemplateProcessing"}),
        "post-processor TemplateProcessing would add tokens",
    ),
    "wordpiece": (lambda c: c["model"].update(type="WordPiece"), "'WordPiece'; GGUF takes 'BPE'"),
    "no model": (lambda c: c.pop("model"), "it has no model"),
    "dropout": (lambda c: c["model"].update(dropout=0.1), "dropout = 0.1"),
    "prefix": (lambda c: c["model"].update(continuing_subword_prefix="##"), "subword_prefix"),
    "suffix": (lambda c: c["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "bytes": (lambda c: c["model"].update(byte_fallback=True), "byte_fallback"),
    "large id": (
        lambda c: c["model"]["vocab"].update(zzz=640),
        "token 'zzz' has id 640, vocab_size is 640",
    ),
    "large added id": (
        lambda c: c["added_tokens"].append(added(700, "<x>")),
        "token '<x>' has id 700, vocab_size is 640",
    ),
    "stripping": (
        lambda c: c["added_tokens"].append(added(600, "<x>", lstrip=True)),
        "'<x>' strips text",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_llama_cpp_cannot_reproduce_is_refused(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    with pytest.raises(EmoExportError, match=rf"tokenizer\.json: .*{message}"):
        read(changed(tmp_path, change))


def test_tokens_types_and_padding(tmp_path: Path) -> None:
    def extend(content: dict[str, Any]) -> None:
        # The library numbers added tokens from the highest id on, so these follow it.
        content["added_tokens"] += [added(512, "|||IP|||"), added(513, "<x>", special=True)]

    folder = changed(tmp_path / "model", extend)
    path = export_to(tmp_path, folder, gguf=["f32"])["gguf:f32"]
    fields = GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    want = {i: (f"[PAD{i}]", TokenType.UNUSED) for i in range(640)}
    want |= {i: (text, TokenType.NORMAL) for text, i in content["model"]["vocab"].items()}
    for entry in content["added_tokens"]:
        kind = TokenType.CONTROL if entry["special"] else TokenType.USER_DEFINED
        want[entry["id"]] = (entry["content"], kind)
    assert list(zip(tokens, types, strict=True)) == [want[i] for i in range(640)]
    assert tokens[639] == "[PAD639]" and types[512] == TokenType.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    assert fields["tokenizer.ggml.merges"].contents() == merges
    model, library = LlamaCpp(path, threads=1), Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert_same_ids((model.tokenizer().encode, library), "a |||IP|||<x> [PAD639]b<|endoftext|>")
    model.close()


def test_special_ids_are_written_out() -> None:
    fields = GGUFReader(exported(GOLDEN / "base", "gguf:q8_0")).fields
    found = {k.removeprefix("tokenizer.ggml."): f.contents() for k, f in fields.items()}
    want = {"model": "gpt2", "pre": "dbrx", "bos_token_id": 491, "eos_token_id": 491}
    want |= {"padding_token_id": 511, "add_bos_token": False, "add_eos_token": False}
    assert {key: found[key] for key in want} == want
    assert "tokenizer.chat_template" not in found


def test_where_the_end_of_text_comes_from(tmp_path: Path) -> None:
    folder = changed(tmp_path, lambda content: None)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for named, generation, want in (
        (7, "{}", 7),
        (7, '{"eos_token_id": 8}', 8),  # as transformers' generate
        ([9, 7], '{"eos_token_id": [8, 9]}', 9),
        (None, '{"eos_token_id": 8}', 8),
        (None, '{"eos_token_id": [6, 8]}', 6),
    ):
        text = json.dumps(config | {"eos_token_id": named, "bos_token_id": None})
        (folder / "config.json").write_text(text, "utf-8")
        (folder / "generation_config.json").write_text(generation, "utf-8")
        tokenizer = read(folder)
        assert tokenizer is not None and (tokenizer.stops[0], tokenizer.bos) == (want, want)
    (folder / "generation_config.json").write_text("{}", "utf-8")
    with pytest.raises(EmoExportError, match=r"neither config\.json nor generation_config\.json"):
        read(folder)
    (folder / "generation_config.json").unlink()
    with pytest.raises(EmoExportError, match="would stop at token 11"):
        read(folder)


def test_a_checkpoint_without_tokenizer_still_gives_logits(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", tokenizer=False)
    assert read_tokenizer(folder, Checkpoint.open(folder).config) is None
    path = export_to(tmp_path, folder, gguf=["f32"])["gguf:f32"]
    assert GGUFReader(path).fields["tokenizer.ggml.model"].contents() == "none"
    ids = np.arange(3, 15)[None]
    model = LlamaCpp(path, threads=1, parity=True)
    assert model.vocab_size == 512
    assert_same(oracle_logits(folder, ids)[0], prefill(model, ids), TIGHT)
    model.close()
