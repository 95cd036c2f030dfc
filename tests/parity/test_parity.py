"""Figures of the parity stage against arithmetic by hand, and golden.npz against damage."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids
from emo_export.model import names
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.parity import golden as parity
from emo_export.parity.golden import Golden, Variant, measure, perplexity, run_nll
from emo_export.reference.probes import Probes, VariantSink
from tests.kit.exporting import Array, case
from tests.kit.oracle import oracle_logits, route

LOG = math.log
CLEAR = np.full((1, 3), np.inf, np.float32)


def logs(*rows: list[float]) -> F32:
    """Probabilities of each position -> logits (1, T, V), shifted: a softmax ignores that."""
    return (np.log(np.array([rows])) + 5).astype(np.float32)


EVEN, LEFT, RIGHT = [0.5, 0.5], [0.8, 0.2], [0.2, 0.8]


def test_figures_by_hand() -> None:
    found = measure(logs(LEFT, EVEN, RIGHT), logs(LEFT, LEFT, LEFT), CLEAR, 0.1)
    first = 0.5 * LOG(0.5 / 0.8) + 0.5 * LOG(0.5 / 0.2)
    second = 0.2 * LOG(0.2 / 0.8) + 0.8 * LOG(0.8 / 0.2)
    assert found.positions == 3
    assert found.kl_mean == pytest.approx((first + second) / 3, rel=1e-6)
    assert found.kl_max == pytest.approx(second, rel=1e-6)
    assert found.top1 == pytest.approx(2 / 3)  # of equal ones the first is the top
    assert found.max_abs == pytest.approx(LOG(0.8 / 0.2), rel=1e-6)
    assert (found.near_ties, found.near_ties_kl_mean) == (0, 0.0)


def test_the_reference_comes_first() -> None:
    p, q = logs([0.9, 0.1]), logs(EVEN)
    forwards = measure(p, q, CLEAR[:, :1], 0).kl_mean
    assert forwards == pytest.approx(0.9 * LOG(1.8) + 0.1 * LOG(0.2), rel=1e-6)
    assert measure(q, p, CLEAR[:, :1], 0).kl_mean > forwards + 0.1


def test_equal_logits_have_no_divergence() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 9, 50)).astype(np.float32) * 30
    found = measure(logits, logits.copy(), np.ones((2, 9), np.float32), 1e-5)
    assert (found.kl_mean, found.kl_max, found.top1, found.max_abs) == (0, 0, 1, 0)
    # One logit shifts every probability; large logits must not overflow.
    shifted = measure(logits * 1e4, logits * 1e4 + 1, np.ones((2, 9), np.float32), 1e-5)
    assert shifted.kl_max < 1e-6 and shifted.max_abs > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_engine_that_is_not_finite_fails(bad: float) -> None:
    engine = logs(LEFT, EVEN, RIGHT)
    engine[0, 1, 0] = bad
    found = measure(logs(LEFT, EVEN, RIGHT), engine, CLEAR, 0.1)
    assert found.positions == 3 and found.top1 == 0
    assert not found.kl_mean <= 1e30 and not found.kl_max <= 1e30 and not found.max_abs <= 1e30


def test_near_ties_are_scored_apart() -> None:
    margin = np.array([[0.1, 0.09, np.inf]], np.float32)  # a margin of the limit itself is clear
    found = measure(logs(LEFT, RIGHT, LEFT), logs(LEFT, LEFT, LEFT), margin, np.float32(0.1))
    assert (found.kl_mean, found.kl_max, found.top1, found.max_abs) == (0, 0, 1, 0)
    assert (found.positions, found.near_ties) == (3, 1)
    assert found.near_ties_kl_mean == pytest.approx(0.6 * LOG(4), rel=1e-6)


def test_mostly_near_ties_leave_nothing_out() -> None:
    margin = np.array([[0.0, 0.0, np.inf]], np.float32)
    found = measure(logs(LEFT, RIGHT, LEFT), logs(LEFT, LEFT, LEFT), margin, 0.1)
    assert found.near_ties == 0 and found.top1 == pytest.approx(2 / 3)
    assert found.kl_mean == pytest.approx(0.2 * LOG(4), rel=1e-6)
    half = measure(logs(LEFT, RIGHT), logs(LEFT, LEFT), np.array([[1, 0]], np.float32), 0.1)
    assert half.near_ties == 1 and half.kl_mean == 0


class Table:
    """A runtime whose logits after a token are a row of a table; it counts what it is given."""

    name, context_length = "table", 100

    def __init__(self, table: F32) -> None:
        self._table, self.vocab_size = table, table.shape[1]
        self.calls: list[list[int]] = []

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        self.calls[-1].append(len(ids))
        return self._table[ids[-1:] if last else ids]

    def reset(self) -> None:
        self.calls.append([])

    def close(self) -> None:
        pass

    def describe(self) -> Mapping[str, str]:
        return {}


@pytest.fixture
def table() -> Table:
    return Table(np.random.default_rng(4).standard_normal((6, 6)).astype(np.float32) * 3)


@pytest.mark.parametrize(("step", "calls"), [(0, [5]), (1, [1] * 5), (2, [2, 2, 1])])
def test_logits_are_run_in_steps(table: Table, step: int, calls: list[int]) -> None:
    ids = np.array([[0, 1, 2, 3, 4], [5, 5, 0, 0, 1]])
    found = parity.run_logits(table, ids, step)
    assert table.calls == [calls, calls]
    np.testing.assert_array_equal(found, table._table[ids])


def test_likelihoods_of_padded_texts(table: Table) -> None:
    ids = np.array([[3, 1, 4, 1], [5, 2, parity.PAD, parity.PAD]])
    found = parity.run_nll(table, ids)
    weights = np.exp(table._table.astype(np.float64))
    share = weights / weights.sum(1, keepdims=True)
    want = [[np.nan, share[3, 1], share[1, 4], share[4, 1]], [np.nan, share[5, 2], np.nan, np.nan]]
    np.testing.assert_allclose(found, -np.log(want), rtol=1e-5)
    mean = -np.log(np.array([share[3, 1], share[1, 4], share[4, 1], share[5, 2]])).mean()
    assert parity.perplexity(found) == pytest.approx(math.exp(mean), rel=1e-5)
    assert [sum(call) for call in table.calls] == [4, 2]


def test_greedy_text_and_where_it_differs(table: Table) -> None:
    want = [int(table._table[2].argmax())]
    while len(want) < 4:
        want.append(int(table._table[want[-1]].argmax()))
    assert parity.run_greedy(table, np.array([0, 2]), 4) == want
    assert table.calls == [[2, 1, 1, 1]]
    assert parity.first_difference(np.array(want), want) is None
    assert parity.first_difference(np.array(want), [*want[:2], want[2] + 1, want[3]]) == 2


def small_golden() -> Golden:
    rng = np.random.default_rng(8)

    def variant() -> Variant:
        logits, margin, nll = rng.random((1, 3, 7)), rng.random((1, 3)), rng.random((2, 4))
        arrays = (a.astype(np.float32) for a in (logits, margin, nll))
        return Variant(*arrays, np.array([3, 4]))

    ids, held = rng.integers(0, 7, (1, 3)), np.array([[1, 2, 3, 4], [5, 6, parity.PAD, parity.PAD]])
    variants = {"original": variant(), "gguf:q4_0": variant()}
    text = ("naïve", np.array([7, 8]), np.array([3]))
    return Golden(ids, held, "übung.txt", *text, ids[0, :2], np.array([4, 5]), variants)


def test_golden_round_trip(tmp_path: Path) -> None:
    golden, path = small_golden(), tmp_path / "golden.npz"
    golden.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["golden.npz"]
    found = Golden.load(path)
    for name in ("input_ids", "heldout_ids", "greedy_prompt", "greedy"):
        want = getattr(golden, name)
        assert getattr(found, name).dtype == want.dtype
        np.testing.assert_array_equal(getattr(found, name), want)
    assert found.heldout_source == "übung.txt" and set(found.variants) == set(golden.variants)
    for name, variant in golden.variants.items():
        for part in ("logits", "margin", "heldout_nll"):
            np.testing.assert_array_equal(
                getattr(found.variants[name], part), getattr(variant, part)
            )
    assert found.variant("gguf:q4_0") is found.variants["gguf:q4_0"]
    assert found.variant("gguf:f32") is found.variants["original"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    small_golden().save(path)
    data = path.read_bytes()
    flipped = bytearray(data)
    with zipfile.ZipFile(path) as archive:  # a byte of content: headers have slack
        info = max(archive.infolist(), key=lambda info: info.compress_size)
    flipped[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    noise = np.random.default_rng(0).bytes(3000)
    for content in (b"", data[:100], data[:-40], data[40:], bytes(flipped), noise, b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(EmoExportError, match=r"golden\.npz: is"):
            Golden.load(path)
    with pytest.raises(EmoExportError, match=r"none\.npz"):
        Golden.load(tmp_path / "none.npz")
    np.savez(path, objects=np.array([{}], dtype=object))  # a pickle: never loaded
    with pytest.raises(EmoExportError, match="is not a golden"):
        Golden.load(path)


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    small_golden().save(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    for name in arrays:
        if name.startswith("gguf:q4_0/") and name.endswith("logits"):
            continue
        np.savez(path, **{key: value for key, value in arrays.items() if key != name})
        with pytest.raises(EmoExportError, match="is not a golden"):
            Golden.load(path)
    replace(small_golden(), variants={}).save(path)
    with pytest.raises(EmoExportError, match="original"):
        Golden.load(path)


@pytest.mark.parametrize("name", ["mha", "tied", "two_shared", "always_active", "dense_first"])
@pytest.mark.parametrize("rows", [7, 512])
def test_the_sink_keeps_what_the_oracle_says(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PIECE_BYTES", rows * 4 * 64)  # vocabulary in pieces of `rows`
    made = case(name)
    rng = np.random.default_rng(6)
    held = tuple(rng.integers(0, 512, length) for length in (9, 2, 15))
    checkpoint = Checkpoint.open(made.folder)
    probes = Probes(made.ids[:, :12], held, "test", 128)
    sink = VariantSink(checkpoint.config, probes)
    sink.listening("cpu").run(Product.whole(checkpoint).rows)
    found = sink.variant()
    assert np.abs(found.logits - made.logits[:, :12]).max() <= 2e-5
    assert found.heldout_nll.shape == (3, 15)
    for row, ids in zip(found.heldout_nll, held, strict=True):
        scores = oracle_logits(made.folder, ids[None])[0][0]
        scores -= np.logaddexp.reduce(scores, axis=1, keepdims=True)
        want = -scores[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(row[1 : len(ids)], want, atol=2e-5)
        assert np.isnan(row[0]) and np.isnan(row[len(ids) :]).all()
    assert_margin(made.folder, probes.input_ids, found.margin)


def assert_margin(folder: Path, ids: Array, margin: Array) -> None:
    """The least gap, over the layers, between the last expert chosen and the first passed over."""
    config = Checkpoint.open(folder).config
    raw = {"num_experts_per_tok": config.num_experts_per_tok, "num_experts": config.num_experts}
    raw["num_shared_experts"] = config.num_shared_experts
    sparse = [layer for layer in config.layers if not layer.is_dense]
    want = np.full(ids.size, np.inf)
    for layer, router in zip(sparse, oracle_logits(folder, ids)[1], strict=True):
        full = raw | {"always_active_experts": list(layer.always_active_experts)}
        for token, logits in enumerate(router):
            chosen = set(route(full, 0, logits)) - set(layer.forced)
            passed = set(layer.routed) - chosen
            gap = min(logits[e] for e in chosen) - max(logits[e] for e in passed)
            want[token] = min(want[token], gap)
    np.testing.assert_allclose(margin.ravel(), want, atol=2e-5)


class BrokenOn:
    """An engine that answers evenly, and NaN as soon as it has seen one token."""

    name, vocab_size, context_length = "broken", 8, 64

    def __init__(self, token: int) -> None:
        self._token = token

    def forward(self, ids: np.ndarray, *, last: bool = False) -> np.ndarray:
        out = np.zeros((len(ids), 8), np.float32)
        out[np.maximum.accumulate(ids == self._token)] = np.nan
        return out

    def reset(self) -> None: ...

    def close(self) -> None: ...

    def describe(self) -> dict[str, str]:
        return {}


def test_a_text_on_which_the_engine_breaks_down_is_not_skipped() -> None:
    ids = np.array([[1, 2, 3, -1], [4, 5, 6, 7]])
    assert perplexity(run_nll(BrokenOn(0), ids)) == pytest.approx(8)
    assert perplexity(run_nll(BrokenOn(5), ids)) == np.inf
