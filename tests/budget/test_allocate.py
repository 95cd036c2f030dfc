"""The allocation against trying every combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from emo_export.budget.allocate import CELLS, Option, allocate

Options = list[list[Option]]


def cost(options: Options, picks: list[int]) -> float:
    return sum(each[pick].cost for each, pick in zip(options, picks, strict=True))


def loss(options: Options, picks: list[int]) -> float:
    return sum(each[pick].loss for each, pick in zip(options, picks, strict=True))


def brute(options: Options, budget: float) -> float:
    every = itertools.product(*(range(len(each)) for each in options))
    fits = [list(picks) for picks in every if cost(options, list(picks)) <= budget]
    return min((loss(options, picks) for picks in fits), default=np.inf)


@pytest.mark.parametrize("seed", range(12))
def test_whole_costs_are_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = [
        [Option(int(rng.integers(1, 60)), float(rng.exponential())) for _ in range(n)]
        for n in rng.integers(1, 5, 5)
    ]
    low, high = (sum(f(o.cost for o in each) for each in options) for f in (min, max))
    for budget in {int(b) for b in np.linspace(low, high + 5, 9)}:
        picks = allocate(options, budget)
        assert picks is not None and cost(options, picks) <= budget
        assert loss(options, picks) == pytest.approx(brute(options, budget))


def test_large_costs_lose_at_most_a_cell_for_each_site() -> None:
    rng = np.random.default_rng(1)
    options = [
        [Option(float(rng.uniform(1e6, 1e9)), float(rng.exponential())) for _ in range(4)]
        for _ in range(6)
    ]
    for budget in (1e9, 2e9, 3e9):
        picks = allocate(options, budget)
        best = brute(options, budget)
        if picks is None:
            assert best == np.inf
            continue
        assert cost(options, picks) <= budget
        assert best <= loss(options, picks) <= brute(options, budget * (1 - 6 / CELLS)) + 1e-12


def test_nothing_fits() -> None:
    assert allocate([[Option(5, 0.1), Option(4, 0.2)], [Option(3, 0.1)]], 6.9) is None
    assert allocate([[Option(5, 0.1), Option(4, 0.2)], [Option(3, 0.1)]], 7) == [1, 0]
