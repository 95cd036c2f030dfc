"""The choice of a token against the exact distribution."""

from __future__ import annotations

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32
from emo_export.runtimes.sampling import GREEDY, Sampling, log_probability, sample

DRAWS = 3_000
LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


def frequencies(logits: F32, temperature: float, top_p: float) -> np.ndarray:
    rng = np.random.default_rng(11)
    draws = [
        sample(logits, Sampling(temperature=temperature, top_p=top_p), rng) for _ in range(DRAWS)
    ]
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
        seen = {sample(logits, Sampling(temperature=1, top_p=top_p), rng) for _ in range(3000)}
        assert seen <= set(nucleus.tolist())
        likely = set(np.flatnonzero(p > 0.005).tolist()) & set(nucleus.tolist())
        assert likely <= seen


def test_greedy_takes_the_lowest_of_ties() -> None:
    logits = np.array([1, 3, 2, 3], np.float32)
    assert sample(logits, GREEDY, np.random.default_rng(0)) == 1


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0])
@pytest.mark.parametrize("top_p", [1e-6, 0.5, 1.0])
def test_extreme_logits(temperature: float, top_p: float) -> None:
    logits = np.array([-np.inf, 3e38, -3e38, -np.inf], np.float32)
    rng = np.random.default_rng(0)
    assert sample(logits, Sampling(temperature=temperature, top_p=top_p), rng) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_refused(bad: float) -> None:
    logits = np.array([0, bad, 1], np.float32)
    with pytest.raises(EmoExportError, match="logits have the maximum"):
        sample(logits, GREEDY, np.random.default_rng(0))


def drawn(logits: F32, sampling: Sampling, seen: tuple[int, ...] = ()) -> set[int]:
    rng = np.random.default_rng(3)
    return {sample(logits, sampling, rng, seen) for _ in range(400)}


def test_top_k_and_min_p_cut_what_is_less_likely() -> None:
    plain = {"temperature": 1.0, "top_p": 1.0}
    assert drawn(LOGITS, Sampling(**plain)) == {0, 1, 2, 3, 4}
    assert drawn(LOGITS, Sampling(**plain, top_k=2)) == {1, 3}
    assert drawn(LOGITS, Sampling(**plain, top_k=9)) == {0, 1, 2, 3, 4}
    assert drawn(LOGITS, Sampling(**plain, min_p=0.49)) == {1, 3, 4}
    assert drawn(LOGITS, Sampling(**plain, min_p=0.51)) == {1, 3}
    assert drawn(LOGITS, Sampling(temperature=1.0, top_p=0.6, top_k=3)) == {1, 3}  # of 0.85


def test_what_was_said_is_less_likely() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    penalty = Sampling(repetition_penalty=1.5, temperature=0)
    rng = np.random.default_rng(0)
    assert sample(logits, penalty, rng) == 0
    assert sample(logits, penalty, rng, [0, 0]) == 1  # 2 / 1.5, once
    below = np.array([-1.0, -1.1], np.float32)
    assert sample(below, penalty, rng, [0]) == 1  # -1 * 1.5
    assert logits.tolist() == pytest.approx([2.0, 1.9, -1.0, -1.1])  # untouched


def test_log_probability_is_that_of_the_softmax() -> None:
    assert log_probability(LOGITS + 7, 3) == pytest.approx(np.log(0.25))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"repetition_penalty": float("nan")},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(EmoExportError, match="expected"):
        Sampling(**wrong)  # type: ignore[arg-type]


def test_a_penalty_that_makes_logits_infinite_is_refused() -> None:
    penalty = Sampling(repetition_penalty=1e-320)
    with pytest.raises(EmoExportError, match="repetition_penalty is 1e-320, with which logits are"):
        sample(np.array([2.0, 1.0], np.float32), penalty, np.random.default_rng(0), [0])
