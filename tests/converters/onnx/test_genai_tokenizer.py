"""onnxruntime-genai's tokenizer gives our ids, and a checkpoint whose ids would differ is told."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from emo_export.converters.onnx.genai_tokenizer import why_no_genai
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from tests.converters.gguf.test_gguf_split import (
    FORMS,
    LINES,
    PIECES,
    SPECIALS,
    TEXTS,
    WORDS,
    tokenizer_json,
)
from tests.kit.command import Emo
from tests.kit.exporting import export_to, exported
from tests.kit.paths import NANO
from tests.kit.synth import make_checkpoint
from tests.kit.tiers import slow_beyond

Change = Callable[[dict[str, Any]], object]
# What no file can mend: a text ends at a NUL, and U+0085 is no white space.
UNLIKE = {"\0", "\u0085"}


def texts(count: int, pieces: list[str] = PIECES) -> list[str]:
    """The adversarial texts of the GGUF tokenizer's tests, and mixtures of their pieces."""
    rng = random.Random(3)
    mixed = ["".join(rng.choices(pieces, k=rng.randrange(1, 9))) for _ in range(count)]
    return [text for text in TEXTS + mixed if not UNLIKE & set(text)]


def opened(folder: Path) -> og.Tokenizer:
    return og.Tokenizer(og.Model(str(folder)))


@functools.cache
def trained(name: str) -> str:
    """A tokenizer.json whose tokens were learnt behind one of the splits."""
    rng = random.Random(5)
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    start = Tokenizer.from_str(json.dumps(empty | {"pre_tokenizer": FORMS[name].step}))
    start.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Blank lines with spaces in them, more than any text has, would teach it "\n ".
    words = [word for word in WORDS if not word.isspace() or word in (" ", "\n", "\r\n", "   ")]
    start.train_from_iterator(["".join(rng.choices(words, k=6)) for _ in range(1500)], trainer)
    start.add_tokens([AddedToken(text, normalized=False) for text in SPECIALS[2:]])
    return str(start.to_str())


def export_with(folder: Path, tokenizer: dict[str, Any], settings: str | None = "{}") -> Path:
    """A small model with this tokenizer.json, exported."""
    library = Tokenizer.from_str(json.dumps(tokenizer))
    eos = library.token_to_id("<|endoftext|>")
    config: dict[str, Any] = {"num_hidden_layers": 1, "num_experts": 4, "eos_token_id": eos}
    config |= {"vocab_size": library.get_vocab_size(), "pad_token_id": eos}
    make_checkpoint(folder / "model", tokenizer=False, **config)
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    if settings is not None:
        (folder / "model" / "tokenizer_config.json").write_text(settings, "utf-8")
    return export_to(folder, folder / "model", onnx=["f32"])["onnx:f32"]


def assert_same_ids(folder: Path, library: Tokenizer, among: list[str]) -> None:
    found = opened(folder)
    for text in among:
        assert found.encode(text).tolist() == library.encode(text, add_special_tokens=False).ids


def test_the_trained_model_s_tokenizer() -> None:
    folder = exported(NANO, "onnx:int4")
    found, ours = opened(folder), HfTokenizer(folder)
    for text in [*texts(1000), *(line[:20_000] for line in LINES.values())]:
        ids = ours.encode(text)
        assert found.encode(text).tolist() == ids
        stream = found.create_stream()
        shown = b"".join(map(ours.piece, ids)).decode("utf-8", "replace")
        if not set("\ufffd\ufffe\uffff") & set(shown):  # its stream drops the last two
            assert "".join(stream.decode(token) for token in ids) == shown
    assert found.eos_token_ids.tolist() == [4075] and found.pad_token_id == 4095
    assert found.bos_token_id == 4075


@pytest.mark.parametrize("kind", slow_beyond(["probing"], ["trained", "probing"]))
@pytest.mark.parametrize("name", [n for n in FORMS if not n.startswith(("llama-3", "starcoder"))])
def test_splits_that_it_makes_alike(name: str, kind: str, tmp_path: Path) -> None:
    content = tokenizer_json(kind, FORMS[name]) if kind == "probing" else json.loads(trained(name))
    folder = export_with(tmp_path, content)
    assert (folder / "genai_config.json").is_file()
    library = Tokenizer.from_str(json.dumps(content))
    assert_same_ids(folder, library, texts(400))
    written = folder / "tokenizer.json"
    respelt = json.loads(written.read_text("utf-8")) != content
    assert respelt == name.endswith(("mixed", "tiktoken"))
    assert_same_ids(folder, Tokenizer.from_file(str(written)), texts(100))


def test_tokens_that_ai2_s_tokenizers_have(tmp_path: Path) -> None:
    content = json.loads((NANO / "tokenizer.json").read_text("utf-8"))
    names = ["|||IP_ADDRESS|||", "|||EMAIL_ADDRESS|||", "|||PHONE_NUMBER|||"]
    for entry, text in zip(content["added_tokens"][5:], names, strict=False):
        entry |= {"content": text, "special": False}
    folder = export_with(tmp_path, content)
    pieces = ["|||", "|", " ", "a", *names, *(name.strip("|") for name in names)]
    assert_same_ids(folder, Tokenizer.from_str(json.dumps(content)), texts(500, pieces))


@pytest.mark.parametrize(
    "settings",
    [
        None,
        "{}",
        *(json.dumps({"tokenizer_class": f"{n}"}) for n in ("GPT2Tokenizer", "TokenizersBackend")),
    ],
)
def test_it_opens_a_folder_whatever_the_settings_say(settings: str | None, tmp_path: Path) -> None:
    content = json.loads((NANO / "tokenizer.json").read_text("utf-8"))
    folder = export_with(tmp_path, content, settings)
    assert_same_ids(folder, Tokenizer.from_str(json.dumps(content)), texts(20))


def added(content: dict[str, Any], **options: bool) -> None:
    content["added_tokens"][1] |= {"content": "<x>"} | options


def steps(content: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = content["pre_tokenizer"]["pretokenizers"]
    return found


# Each changes ids in the tokenizers library, and onnxruntime-genai passes over it.
CHANGES: dict[str, tuple[Change, str]] = {
    "normalizer": (lambda c: c.update(normalizer={"type": "NFC"}), "a normalizer"),
    "prefix space": (lambda c: steps(c)[1].update(add_prefix_space=True), "a split other than"),
    "second regex": (lambda c: steps(c)[1].update(use_regex=True), "a split other than"),
    "lstrip": (lambda c: added(c, lstrip=True), "added token '<x>' with conditions"),
    "rstrip": (lambda c: added(c, rstrip=True), "added token '<x>' with conditions"),
    "single word": (lambda c: added(c, single_word=True), "added token '<x>' with conditions"),
    "tokens across cuts": (
        lambda c: c.update(tokenizer_json("trained", FORMS["cl100k"])),
        "is cut by the split",
    ),
    "digits": (lambda c: c.update(pre_tokenizer=FORMS["starcoder"].step), "a split other than"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_it_would_read_otherwise(name: str, tmp_path: Path, emo: Emo) -> None:
    change, reason = CHANGES[name]
    content = json.loads(trained("cl100k"))
    change(content)
    folder = export_with(tmp_path, content)
    assert not (folder / "genai_config.json").exists()
    # It does differ, in the folder of a model with another tokenizer.
    alike = export_with(tmp_path / "alike", json.loads(trained("cl100k")))
    (alike / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    found, library = opened(alike), Tokenizer.from_str(json.dumps(content))
    differing = [
        text
        for text in [*texts(200), "a  <x>  b", "<x>y", "<x>\u3000"]
        if found.encode(text).tolist() != library.encode(text, add_special_tokens=False).ids
    ]
    assert differing
    done = emo(
        "export", tmp_path / "model", "-o", tmp_path / "out", "--to", "onnx:f32", "--no-golden"
    )
    assert done.code == 0 and "warning: no genai_config.json is written" in done.err
    assert reason in " ".join(done.err.split())
    assert "onnxruntime-genai" not in (tmp_path / "out" / "README.md").read_text("utf-8")
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text("utf-8")


def test_whole_words_that_the_merges_do_not_make(tmp_path: Path) -> None:
    content = json.loads(trained("cl100k"))
    content["added_tokens"] = content["added_tokens"][:2]
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    free = max(vocab.values()) + 1
    content["model"]["vocab"] = vocab | {"zqxj": free}  # no merge leads there
    folder = export_with(tmp_path, content)
    assert not (folder / "genai_config.json").exists()
    reason = why_no_genai(tmp_path / "model", [0])
    assert f"token {free} is not what its merges make of its text" in reason
    content["model"]["merges"] = [*merges, ["z", "q"], ["x", "j"], ["zq", "xj"]]
    for text in ("zq", "xj"):
        content["model"]["vocab"][text] = len(content["model"]["vocab"])
    alike = export_with(tmp_path / "alike", content)
    assert opened(alike).encode("zqxj").tolist() == [free]
    content["model"]["merges"].pop()
    (alike / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert opened(alike).encode("zqxj").tolist() == [free]  # all the same
    assert len(Tokenizer.from_str(json.dumps(content)).encode("zqxj").ids) == 2
    content["model"]["ignore_merges"] = True
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert "BPE option ignore_merges" in why_no_genai(tmp_path / "model", [0])


def test_without_an_end_of_text_it_would_take_another(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=1, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    made = export_to(tmp_path, folder, onnx=["f32"])["onnx:f32"]
    assert not (made / "genai_config.json").exists()


@pytest.mark.parametrize(
    "content",
    ['{"model": 1}', "{}", '{"model": {"vocab": {}}, "pre_tokenizer": {"pretokenizers": 5}}'],
)
def test_a_tokenizer_of_another_form(content: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    (folder / "tokenizer.json").write_text(content, "utf-8")
    made = export_to(tmp_path, folder, onnx=["f32"])["onnx:f32"]
    assert not (made / "genai_config.json").exists()
    assert (made / "tokenizer.json").read_text("utf-8") == content


def test_merges_of_no_tokens(tmp_path: Path) -> None:
    content = json.loads(trained("cl100k"))
    content["model"]["merges"].append(["no", "token"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert "not of the form of a tokenizer.json" in why_no_genai(tmp_path, [0])


def test_an_unknown_token_that_is_no_token(tmp_path: Path) -> None:
    content = json.loads(trained("cl100k"))
    content["model"]["unk_token"] = "<unk>"
    outside = "\u65e5\u672c"  # of the alphabet of bytes
    content["model"]["vocab"][outside] = len(content["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    assert "<unk>` not found in the vocabulary" in why_no_genai(tmp_path, [0])
