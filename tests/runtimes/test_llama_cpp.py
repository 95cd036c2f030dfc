"""llama.cpp on GGUF files written by hand (tests/kit/hand_gguf.py), against the goldens."""

from __future__ import annotations

import ctypes
import importlib.util
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.llama import abi as llama_abi
from emo_export.runtimes.llama.model import LlamaCpp
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from tests.kit.hand_gguf import write_gguf
from tests.kit.paths import GOLDEN, NANO
from tests.kit.synth import make_checkpoint

GgufOf = Callable[[Path], Path]
Array = npt.NDArray[np.floating]


@pytest.fixture(scope="module")
def gguf_of(tmp_path_factory: pytest.TempPathFactory) -> GgufOf:
    """Checkpoint folder -> its hand-made float32 GGUF, written once."""
    made: dict[Path, Path] = {}

    def make(folder: Path) -> Path:
        if folder not in made:
            made[folder] = tmp_path_factory.mktemp("gguf") / f"{folder.name}.gguf"
            write_gguf(folder, made[folder])
        return made[folder]

    return make


@pytest.fixture
def base(gguf_of: GgufOf) -> Iterator[LlamaCpp]:
    model = LlamaCpp(gguf_of(GOLDEN / "base"), threads=1, parity=True)
    yield model
    model.close()


def kl(reference: Array, logits: Array) -> npt.NDArray[np.float64]:
    """KL(reference || logits) of each row (T, V) -> (T,)."""
    p, q = (
        x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
        for x in (reference.astype(np.float64), logits.astype(np.float64))
    )
    result: npt.NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return result


FOLDERS = [GOLDEN / "base", GOLDEN / "pruned", GOLDEN / "densefirst", GOLDEN / "sharded", NANO]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_float32_is_the_published_model(folder: Path, gguf_of: GgufOf) -> None:
    golden = np.load(folder / "golden.npz")
    model = LlamaCpp(gguf_of(folder), threads=1, parity=True)
    for ids, want in zip(golden["input_ids"], golden["logits"], strict=True):
        model.reset()
        prefill = model.forward(ids)
        model.reset()
        stepped = np.concatenate([model.forward(ids[i : i + 1]) for i in range(len(ids))])
        assert kl(want, prefill).mean() < 1e-10
        assert kl(want, stepped).mean() < 1e-10
        assert np.array_equal(prefill.argmax(-1), want.argmax(-1))
    model.reset()
    prompt = golden["greedy_prompt"] if "greedy_prompt" in golden else golden["input_ids"][0, :16]
    logits = model.forward(prompt)[-1]
    tokens: list[int] = []
    while len(tokens) < len(golden["greedy"]):
        tokens.append(int(logits.argmax()))
        logits = model.forward(np.array(tokens[-1:]))[-1]
    assert tokens == golden["greedy"].tolist()
    model.close()


def test_the_usual_settings_are_close_and_say_so(gguf_of: GgufOf) -> None:
    golden = np.load(GOLDEN / "base" / "golden.npz")
    model = LlamaCpp(gguf_of(GOLDEN / "base"), threads=1)
    divergence = kl(golden["logits"][0], model.forward(golden["input_ids"][0])).mean()
    assert 1e-9 < divergence < 1e-3  # float16 somewhere: `parity` did switch something off
    facts = model.describe()
    assert facts["flash attention"] == "auto" and facts["KV cache"] == "f16"
    model.close()


def test_describe_in_parity(base: LlamaCpp) -> None:
    facts = base.describe()
    assert facts["flash attention"] == "off" and facts["KV cache"] == "f32"
    assert facts["version"].startswith("xllamacpp 20") and "CPU" in facts["system"]
    assert facts["threads"] == "1" and facts["context"] == "512"
    assert (base.vocab_size, base.context_length) == (512, 512)


def test_a_prompt_longer_than_a_micro_batch(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    write_gguf(make_checkpoint(tmp_path / "long", max_position_embeddings=700), path)
    model = LlamaCpp(path, threads=1, parity=True)
    ids = np.random.default_rng(3).integers(0, 500, 700)
    whole = model.forward(ids)
    model.reset()
    parts = np.concatenate([model.forward(ids[:300]), model.forward(ids[300:])])
    assert kl(whole, parts).max() < 1e-8
    model.reset()
    for start, end in (
        (0, 650),
        (650, 700),
    ):  # the logits of the last position alone, after one and two pieces
        last = model.forward(ids[start:end], last=True)
        assert last.shape == (1, model.vocab_size)
        assert kl(whole[end - 1 : end], last).max() < 1e-8
    model.close()


def test_the_context_is_a_limit_and_the_sequence_stays_usable(gguf_of: GgufOf) -> None:
    golden = np.load(GOLDEN / "base" / "golden.npz")
    ids = golden["input_ids"][0]
    model = LlamaCpp(gguf_of(GOLDEN / "base"), threads=1, context=10, parity=True)
    assert model.context_length == 10
    model.forward(ids[:9])
    with pytest.raises(EmoExportError, match="2 tokens after 9 exceed the context of 10"):
        model.forward(ids[9:11])
    assert kl(golden["logits"][0, 9:10], model.forward(ids[9:10])).max() < 1e-9
    with pytest.raises(EmoExportError, match="exceed"):
        model.forward(ids[:1])
    model.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 513}, "context is 513, .* allows 1 to 512"),
        ({"context": 0}, "context is 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_settings_out_of_range(gguf_of: GgufOf, settings: dict[str, int], message: str) -> None:
    path = gguf_of(GOLDEN / "base")
    with pytest.raises(EmoExportError, match=message):
        LlamaCpp(path, threads=settings.get("threads"), context=settings.get("context"))


def test_wrong_ids_and_a_closed_model(base: LlamaCpp) -> None:
    with pytest.raises(EmoExportError, match="token 512 is not in a vocabulary of 512"):
        base.forward(np.array([1, 512]))
    with pytest.raises(EmoExportError, match="expected int64"):
        base.forward(np.array([], np.int64))
    tokenizer = base.tokenizer()
    base.close()
    base.close()
    for use in (lambda: base.forward(np.array([1])), base.reset, lambda: tokenizer.encode("a")):
        with pytest.raises(EmoExportError, match="closed"):
            use()


def test_files_that_are_not_models(tmp_path: Path, gguf_of: GgufOf) -> None:
    with pytest.raises(EmoExportError, match="there is no file"):
        LlamaCpp(tmp_path / "none.gguf")
    path = tmp_path / "bad.gguf"
    data = gguf_of(GOLDEN / "base").read_bytes()
    for content, message in (
        (b"", r"is not a GGUF file: it begins with b''"),
        (b"PK\x03\x04zip", "is not a GGUF file"),
        (b"GGUF" + bytes(60), r"llama\.cpp cannot load .*bad\.gguf: ."),
        (data[:20000], r"llama\.cpp cannot load .*bad\.gguf: ."),
        (data[:-4096], r"llama\.cpp cannot load .*bad\.gguf: .*(bounds|incomplete|corrupted)"),
    ):
        path.write_bytes(content)
        with pytest.raises(EmoExportError, match=message):
            LlamaCpp(path)


def test_an_unknown_architecture_gives_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "emo.gguf"
    write_gguf(GOLDEN / "base", path, arch="emo")
    with pytest.raises(EmoExportError, match="unknown model architecture: 'emo'"):
        LlamaCpp(path)


def test_nothing_is_printed(gguf_of: GgufOf) -> None:
    code = (
        "import sys, pathlib, numpy\n"
        "from emo_export.runtimes.llama.model import LlamaCpp\n"
        "LlamaCpp(pathlib.Path(sys.argv[1])).forward(numpy.array([1, 2]))\n"
    )
    command = [sys.executable, "-c", code, str(gguf_of(GOLDEN / "base"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""  # also when the model is never closed


@pytest.mark.parametrize("folder", [GOLDEN / "base", NANO], ids=["base", "nano"])
def test_the_tokenizer_agrees_with_tokenizer_json(folder: Path, gguf_of: GgufOf) -> None:
    model = LlamaCpp(gguf_of(folder), threads=1)
    ours, theirs = model.tokenizer(), HfTokenizer(folder)
    texts = ["", "Hello, wörld! Don't  stop\n\n\tat 12345 — 日本語 🙂", "x<|endoftext|>y", "  \n a"]
    for name in ("c", "man", "python"):
        texts.append((NANO / "heldout" / f"{name}.jsonl").read_text("utf-8")[:3000])
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert b"".join(map(ours.piece, ids)).decode("utf-8") == text.replace("<|endoftext|>", "")
    for token in range(model.vocab_size):
        assert ours.piece(token) == theirs.piece(token)
    assert ours.stop_ids == theirs.stop_ids
    for token in (-1, model.vocab_size):
        with pytest.raises(EmoExportError, match="is not in a vocabulary"):
            ours.piece(token)
    model.close()


def test_without_xllamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install ".*\[llama\]"'):
        llama_abi.load_library.__wrapped__()


def test_context_fields_are_found_or_refused() -> None:
    library = llama_abi.load_library()
    raw = bytes(library.api.llama_context_default_params().raw)
    found = llama_abi.find_context_fields(raw, "xllamacpp 1")
    assert found == library.fields and found.n_ctx == 0
    # Two more integer fields before the pattern, as another version may have.
    moved = llama_abi.find_context_fields(raw[:16] + bytes(8) + raw[16:], "xllamacpp 1")
    assert moved.flash_attn == found.flash_attn + 8 and moved.type_v == found.type_v + 8
    changed = [
        bytes(1024),
        struct.pack("<i", 1024) + raw[4:],
        raw[: found.flash_attn] + bytes(4) + raw[found.flash_attn + 4 :],
        raw[: found.type_k] + bytes(8) + raw[found.type_v + 4 :],
    ]
    for other in changed:
        with pytest.raises(EmoExportError, match=r"layout .* xllamacpp 7 is unknown"):
            llama_abi.find_context_fields(other, "xllamacpp 7")


def test_the_log_keeps_errors_and_drops_debug() -> None:
    log = llama_abi.Log()
    assert log.reason() == "it gave no reason"
    for level, text in ((2, b"info\n"), (4, b"bad "), (5, b"thing\n"), (1, b"noise"), (5, b"!\n")):
        log.add(level, text)
    assert log.reason() == "bad thing"
    log.clear()
    for number in range(100):
        log.add(2, f"line {number}\n".encode())
    assert log.reason() == "line 97; line 98; line 99"


def test_params_set_int() -> None:
    params = llama_abi.Params()
    params.set_int(8, -5)
    assert struct.unpack_from("<4i", bytes(params.raw)) == (0, 0, -5, 0)
    assert ctypes.sizeof(params) == 1024
