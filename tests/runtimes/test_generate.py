"""Texts token by token: what ends them, and how they are streamed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids
from emo_export.runtimes.generate import PREFILL_PIECE, Answer, End, generate
from emo_export.runtimes.llama.model import LlamaCpp
from emo_export.runtimes.ort.model import OnnxModel
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from emo_export.runtimes.sampling import GREEDY, Sampling
from tests.kit import tiny_onnx
from tests.kit.hand_gguf import write_gguf
from tests.kit.paths import NANO


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


def answer(
    runtime: Script, prompt: Sequence[int] = (1,), max_tokens: int = 20, stop: Sequence[str] = ()
) -> Answer:
    return generate(runtime, BYTES, prompt, GREEDY, max_tokens=max_tokens, stop=stop)


def run(
    runtime: Script, prompt: Sequence[int] = (1,), max_tokens: int = 20, stop: Sequence[str] = ()
) -> list[str]:
    return list(answer(runtime, prompt, max_tokens, stop).texts())


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
        generate(Script([0]), without, (), GREEDY, max_tokens=1)


def test_a_long_prompt_goes_in_pieces() -> None:
    runtime = Script([0, 9], context_length=3000)
    prompt = [1] * (2 * PREFILL_PIECE + 3)
    assert run(runtime, prompt) == ["a"]
    assert [len(ids) for ids in runtime.fed] == [PREFILL_PIECE, PREFILL_PIECE, 3, 1]


@pytest.mark.parametrize(("max_tokens", "seed"), [(-1, 0), (1, -1)])
def test_arguments_out_of_range_before_any_text(max_tokens: int, seed: int) -> None:
    with pytest.raises(EmoExportError, match="expected 0 or more"):
        generate(Script([0]), BYTES, [1], GREEDY, max_tokens=max_tokens, seed=seed)


def test_what_ended_a_text_is_known() -> None:
    for runtime, options, end, tokens in (
        (Script([0, 9]), {}, End.STOP_TOKEN, 1),
        (Script([0]), {"max_tokens": 2}, End.LENGTH, 2),
        (Script([0]), {"max_tokens": 0}, End.LENGTH, 0),
        (Script([0], context_length=3), {}, End.CONTEXT, 3),
        (Script([0, 1, 0]), {"stop": ["ba"]}, End.STOP_STRING, 3),
    ):
        said = answer(runtime, **options)
        assert said.end is None
        list(said)
        assert (said.end, said.tokens, said.prompt_tokens) == (end, tokens, 1)


@pytest.mark.parametrize(
    ("tokens", "stop", "texts"),
    [
        ([0, 1, 0, 9], ["ba"], ["a"]),
        ([0, 1, 1, 0, 9], ["ba"], ["a", "b"]),  # the first b was no stop string's
        ([0, 1, 9], ["bx"], ["a", "b"]),  # held back to the end
        ([0, 2, 3, 1, 9], ["ö"], ["a"]),  # across two tokens
        ([0, 1, 9], ["zz", "a"], []),
        ([0, 1, 0, 9], ["bax", "b"], ["a"]),
    ],
)
def test_a_stop_string_ends_it_and_is_not_shown(
    tokens: list[int], stop: list[str], texts: list[str]
) -> None:
    assert run(Script(tokens), stop=stop) == texts


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(EmoExportError, match="stop string is empty"):
        run(Script([0]), stop=[""])


def test_each_token_comes_with_its_probability() -> None:
    said = list(
        generate(Script([0, 2, 3, 9]), BYTES, [1], GREEDY, max_tokens=9, log_probabilities=True)
    )
    assert [(one.text, one.token) for one in said] == [("a", 0), ("", 2), ("ö", 3)]
    want = 5 - np.log(np.exp(5) + 15)
    assert all(one.log_probability == pytest.approx(want) for one in said)


def test_without_a_seed_texts_differ_and_tell_theirs() -> None:
    class Even(Script):
        def forward(self, ids: Ids, *, last: bool = False) -> F32:
            return super().forward(ids, last=last) * 0

    letters = Pieces([bytes([97 + i]) for i in range(16)], frozenset())
    wild = Sampling(temperature=1, top_p=1)
    one, two = (generate(Even([0]), letters, [1], wild, max_tokens=30) for _ in range(2))
    texts = ["".join(said.texts()) for said in (one, two)]
    assert texts[0] != texts[1]
    again = generate(Even([0]), letters, [1], wild, max_tokens=30, seed=one.seed)
    assert "".join(again.texts()) == texts[0]


def test_a_seed_gives_the_same_text_and_another_gives_another(tmp_path: Path) -> None:
    tiny_onnx.write_folder(tmp_path)
    model = OnnxModel(tmp_path, threads=1)
    letters = Pieces([bytes([97 + i]) for i in range(tiny_onnx.VOCAB)], frozenset({tiny_onnx.EOS}))
    warm = Sampling(temperature=2.0, top_p=0.9)
    texts = [
        "".join(generate(model, letters, [1, 2], warm, max_tokens=20, seed=seed).texts())
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
        text = "".join(generate(model, reader, prompt, GREEDY, max_tokens=len(greedy)).texts())
        assert text == b"".join(map(tokenizer.piece, greedy)).decode("utf-8", "replace")
    model.close()
