"""Texts that go on from what the KV cache has: the same as from nothing, with less read."""

from __future__ import annotations

import numpy as np
import pytest

from emo_export.interfaces import Rewinding
from emo_export.runtimes.generate import generate
from emo_export.runtimes.opening import open_runtime
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from emo_export.runtimes.remembering import Interrupted, Remembering
from emo_export.runtimes.sampling import GREEDY
from tests.kit.exporting import exported
from tests.kit.paths import NANO

TARGETS = ["gguf:q4_0", "onnx:int4", "onnx:int4@if"]
IDS = (np.arange(40) * 37 % 4096).tolist()
CLOSE = {"rtol": 0, "atol": 2e-3}  # one token at a time or many: other kernels


@pytest.fixture(params=[*TARGETS[:2], pytest.param(TARGETS[2], marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> Rewinding:
    return open_runtime(exported(NANO, request.param), 1)


def test_a_cache_that_was_cut_computes_the_same(model: Rewinding) -> None:
    want = model.forward(np.array(IDS), last=True)
    model.rewind(25)
    model.forward(np.array([5, 6, 7]), last=True)
    model.rewind(25)
    np.testing.assert_allclose(model.forward(np.array(IDS[25:]), last=True), want, **CLOSE)
    model.close()


def test_only_what_is_new_is_read(model: Rewinding) -> None:
    memory, tokenizer = Remembering(model), HfTokenizer(NANO)

    def said(prompt: list[int]) -> tuple[list[int], int]:
        answer = generate(memory, tokenizer, prompt, GREEDY, max_tokens=6, unread=memory.unread)
        return [one.token for one in answer if one.token is not None], answer.read_tokens

    first, read = said(IDS)
    assert read == 40 and memory.ids == IDS + first[:-1]
    assert said(IDS + first) == (said(IDS + first)[0], 1)
    longer, read = said([*IDS[:30], 9, 10])
    assert read == 2
    memory.reset()
    assert said([*IDS[:30], 9, 10]) == (longer, 32) and said(IDS)[0] == first
    model.close()


def test_it_ends_where_it_is_interrupted(model: Rewinding) -> None:
    asked = iter([False, False, True])
    memory = Remembering(model, lambda: next(asked))
    answer = iter(generate(memory, HfTokenizer(NANO), IDS, GREEDY, max_tokens=50))
    next(answer), next(answer)
    with pytest.raises(Interrupted):
        next(answer)
    assert len(memory.ids) == 41  # what was read stays
    model.close()
