"""Sampling against the exact distribution, and streaming of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids
from emo_export.runtimes.generate import PREFILL_PIECE, generate, sample
from emo_export.runtimes.llama.model import LlamaCpp
from emo_export.runtimes.ort.model import OnnxModel
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from tests.kit import tiny_onnx
from tests.kit.hand_gguf import write_gguf
from tests.kit.paths import NANO

DRAWS = 8_000
LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


def frequencies(logits: F32, temperature: float, top_p: float) -> np.ndarray:
    rng = np.random.default_rng(11)
    draws = [sample(logits, temperature=temperature, top_p=top_p, rng=rng) for _ in range(DRAWS)]
    return np.bincount(draws, minlength=len(logits)) / DRAWS


@pytest.mark.parametrize(
    ("top_p", "want"),
    [
        (1.0, [0.05, 0.4, 0.1, 0.25, 0.2]),
        (0.951, [0.05, 0.4, 0.1, 0.25, 0.2]),
        (0.949, [0, 0.4, 0.1, 0.25, 0.2]),
        (0.9, [0, 0.4, 0.1, 0.25, 0.2]),
        (0.84, [0, 0.4, 0, 0.25, 0.2]),
        (0.5, [0, 0.4, 0, 0.25, 0]),
        (0.39, [0, 1, 0, 0, 0]),
        (1e-9, [0, 1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_nucleus(top_p: float, want: list[float]) -> None:
    expected = np.array(want) / np.sum(want)
    got = frequencies(LOGITS, 1.0, top_p)
    # Four standard deviations of each frequency; what is cut off never comes.
    limit = 4 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert np.all(np.abs(got - expected) <= limit)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_temperature(temperature: float) -> None:
    expected = np.exp(LOGITS.astype(np.float64) / temperature)
    expected /= expected.sum()
    got = frequencies(LOGITS, temperature, 1.0)
    assert np.all(np.abs(got - expected) <= 4 * np.sqrt(expected * (1 - expected) / DRAWS))


def test_the_shortcut_in_the_nucleus_is_exact() -> None:
    rng = np.random.default_rng(5)
    for top_p in (0.01, 0.3, 0.9, 0.999):
        logits = rng.standard_normal(500).astype(np.float32) * 3
        p = np.exp(logits.astype(np.float64))
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        nucleus = order[: int(np.argmax(np.cumsum(p[order]) >= top_p)) + 1]
        seen = {sample(logits, temperature=1, top_p=top_p, rng=rng) for _ in range(3000)}
        assert seen <= set(nucleus.tolist())
        likely = set(np.flatnonzero(p > 0.005).tolist()) & set(nucleus.tolist())
        assert likely <= seen


def test_greedy_takes_the_lowest_of_ties() -> None:
    logits = np.array([1, 3, 2, 3], np.float32)
    assert sample(logits, temperature=0, top_p=1, rng=np.random.default_rng(0)) == 1


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0])
@pytest.mark.parametrize("top_p", [1e-6, 0.5, 1.0])
def test_extreme_logits(temperature: float, top_p: float) -> None:
    logits = np.array([-np.inf, 3e38, -3e38, -np.inf], np.float32)
    rng = np.random.default_rng(0)
    assert sample(logits, temperature=temperature, top_p=top_p, rng=rng) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_refused(bad: float) -> None:
    logits = np.array([0, bad, 1], np.float32)
    with pytest.raises(EmoExportError, match="logits have the maximum"):
        sample(logits, temperature=0, top_p=1, rng=np.random.default_rng(0))


class Script:
    """A Runtime that says the given tokens, whatever it is asked, and records what it was fed."""

    name = "script"
    vocab_size = 16

    def __init__(self, tokens: Sequence[int], context_length: int = 100) -> None:
        self.tokens, self.context_length = list(tokens), context_length
        self.fed: list[list[int]] = []
        self.length = self.said = 0

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        self.length += len(ids)
        if self.length > self.context_length:
            raise EmoExportError("beyond the context")
        self.fed.append(ids.tolist())
        logits = np.zeros((len(ids), self.vocab_size), np.float32)
        logits[-1, self.tokens[self.said % len(self.tokens)]] = 5
        self.said += int(len(ids) < PREFILL_PIECE)
        return logits[-1:] if last else logits

    def reset(self) -> None:
        self.length = 0

    def close(self) -> None:
        pass

    def describe(self) -> Mapping[str, str]:
        return {}


class Pieces:
    """A Tokenizer whose token i stands for the i-th of the given bytes; 9 ends a text."""

    def __init__(self, pieces: Sequence[bytes], stop_ids: frozenset[int] = frozenset({9})) -> None:
        self._pieces, self._stop_ids = pieces, stop_ids

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    @property
    def stop_ids(self) -> frozenset[int]:
        return self._stop_ids


BYTES = Pieces([b"a", b"b", "ö".encode()[:1], "ö".encode()[1:], "🙂".encode()[:3], b"\x82", b""])


def run(runtime: Script, prompt: Sequence[int] = (1,), max_tokens: int = 20) -> list[str]:
    return list(
        generate(runtime, BYTES, prompt, max_tokens=max_tokens, temperature=0, top_p=1.0, seed=0)
    )


def test_it_stops_at_a_stop_token() -> None:
    runtime = Script([0, 1, 9, 0])
    assert run(runtime, (7, 8)) == ["a", "b"]
    assert runtime.fed == [[7, 8], [0], [1]]


def test_it_stops_after_max_tokens_and_does_not_run_one_more() -> None:
    runtime = Script([0, 1])
    assert run(runtime, max_tokens=3) == ["a", "b", "a"]
    assert runtime.fed == [[1], [0], [1]]
    untouched = Script([0])
    assert run(untouched, max_tokens=0) == [] and untouched.fed == []


def test_it_stops_at_the_end_of_the_context() -> None:
    runtime = Script([0], context_length=5)
    assert run(runtime, (1, 1, 1)) == ["a"] * 3  # two are fed back, the third needs no room
    assert runtime.length == 5
    assert run(Script([0], context_length=3), (1, 1, 1)) == ["a"]
    with pytest.raises(EmoExportError, match="prompt has 4 tokens, the context 3"):
        run(Script([0], context_length=3), (1, 1, 1, 1))


def test_utf8_waits_for_its_last_byte() -> None:
    assert run(Script([0, 2, 3, 4, 5, 1, 9])) == ["a", "ö", "🙂", "b"]
    assert run(Script([0, 2, 9])) == ["a", "\ufffd"]  # never completed
    assert run(Script([3, 0, 9])) == ["\ufffd", "a"]
    assert run(Script([6, 6, 0, 9])) == ["a"]


def test_an_empty_prompt_begins_with_a_stop_token() -> None:
    runtime = Script([0, 9])
    assert run(runtime, ()) == ["a"]
    assert runtime.fed[0] == [9]
    without = Pieces([b"a"], frozenset())
    with pytest.raises(EmoExportError, match="prompt is empty"):
        generate(Script([0]), without, (), max_tokens=1, temperature=0, top_p=1, seed=0)


def test_a_long_prompt_goes_in_pieces() -> None:
    runtime = Script([0, 9], context_length=3000)
    prompt = [1] * (2 * PREFILL_PIECE + 3)
    assert run(runtime, prompt) == ["a"]
    assert [len(ids) for ids in runtime.fed] == [PREFILL_PIECE, PREFILL_PIECE, 3, 1]


@pytest.mark.parametrize(
    ("temperature", "top_p", "max_tokens", "seed"),
    [
        (-0.1, 1.0, 1, 0),
        (float("nan"), 1.0, 1, 0),
        (float("inf"), 1.0, 1, 0),
        (1.0, 0.0, 1, 0),
        (1.0, 1.1, 1, 0),
        (1.0, float("nan"), 1, 0),
        (1.0, 1.0, -1, 0),
        (1.0, 1.0, 1, -1),
    ],
)
def test_arguments_out_of_range_before_any_text(
    temperature: float, top_p: float, max_tokens: int, seed: int
) -> None:
    with pytest.raises(EmoExportError, match="expected"):
        generate(
            Script([0]),
            BYTES,
            [1],
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )


def test_a_seed_gives_the_same_text_and_another_gives_another(tmp_path: Path) -> None:
    tiny_onnx.write_folder(tmp_path)
    model = OnnxModel(tmp_path, threads=1)
    letters = Pieces([bytes([97 + i]) for i in range(tiny_onnx.VOCAB)], frozenset({tiny_onnx.EOS}))
    texts = [
        "".join(
            generate(model, letters, [1, 2], max_tokens=20, temperature=2.0, top_p=0.9, seed=seed)
        )
        for seed in (0, 0, 1, 2)
    ]
    assert texts[0] == texts[1]
    assert all(a != b for a, b in pairwise(texts[1:]))


def test_greedy_text_of_the_trained_model(tmp_path: Path) -> None:
    write_gguf(NANO, tmp_path / "nano.gguf")
    golden = np.load(NANO / "golden.npz")
    model = LlamaCpp(tmp_path / "nano.gguf", threads=1)
    tokenizer = HfTokenizer(NANO)
    prompt, greedy = golden["greedy_prompt"].tolist(), golden["greedy"].tolist()
    for reader in (tokenizer, model.tokenizer()):
        text = "".join(
            generate(model, reader, prompt, max_tokens=len(greedy), temperature=0, top_p=1, seed=0)
        )
        assert text == b"".join(map(tokenizer.piece, greedy)).decode("utf-8", "replace")
    model.close()
