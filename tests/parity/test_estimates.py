"""Intervals against textbook values and simulated text, and the three verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emo_export.parity.estimates import (
    SEQUENCES,
    TOKENS,
    Interval,
    mean_interval,
    ratio_interval,
    share_interval,
    student,
)
from emo_export.parity.golden import ORIGINAL, Golden, Measured
from emo_export.parity.judge import beyond, judged, validate_target
from emo_export.parity.result import Doubt, Failure, Row
from emo_export.runtimes.llama.model import LlamaCpp
from emo_export.spec import Spec
from tests.kit.exporting import export_to
from tests.kit.paths import GOLDEN
from tests.parity.test_by_position import Words

# Tables of Student's t at 0.975.
STUDENT = {3: 3.182, 4: 2.776, 9: 2.262, 17: 2.110, 30: 2.042, 120: 1.980}
WORDS = Words()


def test_student_is_the_tables() -> None:
    for freedom, value in STUDENT.items():
        assert student(freedom) == pytest.approx(value, rel=0.01 if freedom < 5 else 3e-4)


def test_a_share_is_as_newcombe_has_it() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for count, of, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        found = share_interval(count, of)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert share_interval(20, 20).high == 1 and 0.8 < share_interval(20, 20).low < 0.9


def test_a_mean_by_token_and_by_sequence() -> None:
    values = np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]])
    found = mean_interval(values)
    assert found is not None and (found.tokens, found.independent) == (5, TOKENS)
    some = np.array([1.0, 2, 4, 5, 6])
    reach = 2.776 * some.std(ddof=1) / math.sqrt(5)
    assert (found.low, found.high) == pytest.approx((3.6 - reach, 3.6 + reach), rel=0.01)
    # Every token twice in its sequence says nothing new.
    once = np.random.default_rng(0).standard_normal((12, 1))
    one, twice = mean_interval(once), mean_interval(once.repeat(2, axis=1))
    assert one is not None and twice is not None and twice.independent == SEQUENCES
    assert (twice.low, twice.high) == pytest.approx((one.low, one.high))
    assert mean_interval(np.array([[1.0, np.nan]])) is None
    assert mean_interval(np.array([[1.0, np.inf]])) is None


def test_19_of_20_intervals_hold_the_truth() -> None:
    """Differences of log-likelihoods that hang together within a sequence."""
    rng, held, rounds = np.random.default_rng(1), {"few": 0, "many": 0}, 600
    for _ in range(rounds):
        for name, sequences, together in (("few", 4, 0.0), ("many", 16, 0.3)):
            noise = rng.standard_t(4, (sequences, 40)) + together * rng.standard_normal(
                (sequences, 1)
            )
            original = rng.exponential(3, noise.shape)
            nll = (original + 0.02 * (1 + noise)).astype(np.float32)
            found = ratio_interval(nll, original.astype(np.float32))
            assert found is not None
            held[name] += found.low <= math.exp(0.02) <= found.high
    assert all(0.925 <= count / rounds <= 0.975 for count in held.values()), held


def within(low: float, high: float, tokens: int = 400) -> Interval:
    return Interval(low, high, tokens, TOKENS)


@pytest.mark.parametrize(
    ("figure", "limit", "inside", "across", "outside"),
    [
        ("kl_mean", 0.02, (0.01, 0.02), (0.01, 0.021), (0.0201, 0.03)),
        ("top1", 0.8, (0.8, 0.9), (0.79, 0.9), (0.7, 0.79)),
        ("perplexity_ratio", 1.005, (0.996, 1.004), (0.998, 1.006), (1.0051, 1.02)),
        ("perplexity_ratio", 1.005, (1, 1.001), (0.988, 1.0), (0.9, 0.995)),
        ("perplexity_ratio", 1.005, (1, 1.001), (0.9, 1.1), (0.9, 0.995)),
    ],
)
def test_three_verdicts(
    figure: str,
    limit: float,
    inside: tuple[float, float],
    across: tuple[float, float],
    outside: tuple[float, float],
) -> None:
    def verdict(ends: tuple[float, float], tokens: int = 400) -> Failure | Doubt | None:
        return judged(figure, sum(ends) / 2, limit, within(*ends, tokens))

    assert verdict(inside) is None
    assert isinstance(verdict(outside), Failure)
    doubt = verdict(across)
    assert isinstance(doubt, Doubt) and doubt.tokens == 400 < doubt.enough
    # With so many tokens the interval is so much narrower, and there is a verdict; no sooner.
    middle, half = sum(across) / 2, (across[1] - across[0]) / 2
    for times, told in ((1.05, True), (0.9, False)):
        reach = half / math.sqrt(times * doubt.enough / doubt.tokens)
        found = verdict((middle - reach, middle + reach), int(times * doubt.enough))
        assert isinstance(found, Doubt) is not told


def test_what_no_interval_can_tell() -> None:
    assert isinstance(judged("kl_mean", math.nan, 0.1, None), Failure)
    assert isinstance(judged("perplexity_ratio", math.inf, 1.1, None), Failure)
    assert judged("kl_mean", 0.01, 0.1, None) == Doubt("kl_mean", 0.01, 0.1, 1, 0)
    assert judged("top1", 1.0, 1.0, share_interval(9, 9)) is None
    assert isinstance(judged("top1", 0.99, 1.0, share_interval(99, 100)), Failure)
    same = judged("kl_mean", 0.1, 0.1, within(0.09, 0.11))  # as near as can be
    assert isinstance(same, Doubt) and same.enough == 400 * 10_000
    with pytest.raises(ValueError, match="no figure"):
        judged("kl_max", 0.1, 0.1, within(0, 1))


def test_a_bad_artifact_fails_on_a_short_text(package: Path, tmp_path: Path) -> None:
    """What its own weights can't tell: a dropped expert, other rows, rounding down, garbage."""
    golden = Golden.load(package / "golden.npz")
    assert (golden.heldout_ids[:, 1:] >= 0).sum() < 2000
    source = load_file(GOLDEN / "base" / "model.safetensors")
    counts = golden.usage.sum(axis=0)
    layer, expert = np.unravel_index(counts.argmax(), counts.shape)

    def row(name: str, changed: Mapping[str, torch.Tensor], target: str = "gguf:q8_0") -> Row:
        folder = tmp_path / name
        folder.mkdir()
        for file in (GOLDEN / "base").glob("*.json"):
            (folder / file.name).symlink_to(file)
        save_file({**source, **changed}, folder / "model.safetensors")
        (file,) = export_to(folder / "made", folder, gguf=("f32",)).values()
        result = validate_target(
            Spec.parse(target),
            golden,
            lambda: LlamaCpp(file, threads=1, parity=True),
            lambda runtime: WORDS,
        )
        return next(row for row in result.rows if row.against == ORIGINAL)

    assert row("good", {}).verdict == "pass"
    down = f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    router = f"model.layers.{layer}.mlp.gate.weight"
    every = {key for key in source if key.endswith("proj.weight")}
    step = {key: source[key].abs().amax(dim=1, keepdim=True) / 7 for key in every}
    bad = {
        "dropped": {down: torch.zeros_like(source[down])},
        "routed": {router: source[router].roll(1, 0)},
        "garbage": {key: source[key].roll(1, 0) for key in every if "o_proj" in key},
    }
    for name, changed in bad.items():
        assert row(name, changed).verdict == "FAIL"
    floored = {key: torch.floor(source[key] / step[key]) * step[key] for key in every}
    assert row("floored", floored, "gguf:q4_0").verdict == "FAIL"


def test_a_bug_at_one_position_is_no_matter_of_spread(package: Path) -> None:
    golden = Golden.load(package / "golden.npz")
    original = golden.variants[ORIGINAL]
    wrong = original.logits.copy()
    wrong[0, 7] = wrong[0, 7, ::-1]
    variants = {ORIGINAL: original, "gguf:f32": replace(original, logits=wrong)}
    result = validate_target(
        Spec("gguf", "f32"),
        replace(golden, variants=variants),
        lambda: LlamaCpp(package / "model-F32.gguf", threads=1, parity=True),
        lambda runtime: WORDS,
    )
    assert [row.verdict for row in result.rows] == ["FAIL", "FAIL", "pass"]


def test_a_top1_of_few_positions_is_no_bug() -> None:
    limit = {"kl_mean": 8e-3, "top1": 0.85}

    def found(agreeing: int, scored: int, ties: int = 3, kl: float = 1e-3) -> list[Failure | Doubt]:
        share = agreeing / scored
        verdicts, interval = beyond(Measured(scored + ties, kl, 0.1, share, 1.0, ties, 0.1), limit)
        assert (interval is None) == (share >= 0.85)
        return verdicts

    (doubt,) = found(7, 9)  # what 12 positions on a pi4 gave
    assert isinstance(doubt, Doubt) and doubt.tokens == 9 < doubt.enough
    assert found(8, 9) == found(246, 288) == []  # within the limit: a pass, however wide
    assert found(3, 9) == [Failure("top1", 3 / 9, 0.85)]
    assert found(220, 288) == [Failure("top1", 220 / 288, 0.85)]
    assert isinstance(found(7, 9, kl=9e-3)[0], Failure)  # KL finds bugs: by the figure
    exact, _ = beyond(Measured(288, 0.0, 0.0, 287 / 288, 0.0, 0, 0.0), {"kl_mean": 1, "top1": 1.0})
    assert exact == [Failure("top1", 287 / 288, 1.0)]
    nan = math.nan
    lost, _ = beyond(Measured(12, nan, nan, 0.0, nan, 0, nan), limit)
    assert [type(one) for one in lost] == [Failure, Failure]
