"""The torch reference against the published code's goldens and the float64 oracle."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32
from emo_export.model import names
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Role, Slot, slots
from emo_export.model.product import Product
from emo_export.reference.forward import KeyValues
from emo_export.reference.passes import Pass, greedy, logits
from emo_export.reference.states import States
from tests.kit.exporting import Array, case
from tests.kit.paths import GOLDEN, GOLDENS, NANO
from tests.kit.synth import CONFIGS, FEATURES, make_checkpoint
from tests.kit.tiers import slow_beyond

GOLDEN_LOGITS, GOLDEN_ROUTERS = 2e-4, 1e-4  # two float32 programs
ORACLE = 2e-5  # float32 against float64; 6e-6 was measured


def run_all(path: Path, ids: Array) -> tuple[Array, dict[int, Array]]:
    """Logits (n, T, V) and each expert layer's router logits (n*T, E) of one pass."""
    checkpoint = Checkpoint.open(path)
    out = np.full((*ids.shape, checkpoint.config.vocab_size), np.nan, np.float32)
    routers: dict[int, Array] = {}

    def keep(sequence: int, start: int, piece: F32) -> None:
        out[sequence, :, start : start + piece.shape[1]] = piece

    def keep_router(layer: int, router: F32) -> None:
        assert layer not in routers
        routers[layer] = router

    states = States.of(checkpoint.config, list(ids))
    Pass(states, keep, keep_router).run(Product.whole(checkpoint).rows)
    return out, routers


@pytest.mark.parametrize("folder", [*(GOLDEN / n for n in GOLDENS), NANO], ids=lambda p: p.name)
def test_goldens_of_the_published_code(folder: Path) -> None:
    with np.load(folder / "golden.npz") as golden:
        found, routers = run_all(folder, golden["input_ids"])
        assert np.abs(found - golden["logits"]).max() <= GOLDEN_LOGITS
        expected = [key for key in golden if key.startswith("router_logits_")]
        assert len(expected) == len(routers) or folder == NANO
        # Dense layers have no router; the goldens number the others from 0.
        for index, layer in enumerate(sorted(routers) if expected else ()):
            difference = routers[layer] - golden[f"router_logits_{index}"]
            assert np.abs(difference).max() <= GOLDEN_ROUTERS


@pytest.mark.parametrize(
    "folder",
    slow_beyond([GOLDEN / "base", NANO], [*(GOLDEN / n for n in GOLDENS), NANO]),
    ids=lambda p: p.name,
)
def test_greedy_text_of_the_published_code(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    with np.load(folder / "golden.npz") as golden:
        prompt = golden.get("greedy_prompt", golden["input_ids"][0, :16])
        want = golden["greedy"]
    found = greedy(checkpoint.config, Product.whole(checkpoint).rows, prompt, len(want))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    "share", slow_beyond([0.05], [0.0, 0.05, 3.0]), ids=["equal", "near", "another model"]
)
def test_a_draft_changes_how_much_is_read_not_the_text(share: float) -> None:
    checkpoint = Checkpoint.open(GOLDEN / "base")
    config, source = checkpoint.config, Product.whole(checkpoint).rows
    with np.load(GOLDEN / "base" / "golden.npz") as golden:
        prompt, want = golden["input_ids"][0, :16], golden["greedy"]
    heads: list[int] = []

    def counting(slot: Slot, start: int, stop: int) -> F32:
        heads.extend([1] if slot.role == Role.FINAL_NORM else [])
        return source(slot, start, stop)

    def draft(slot: Slot, start: int, stop: int) -> F32:
        rows = source(slot, start, stop)
        noise = np.random.default_rng([slot.layer + 1, slot.expert + 1, start])
        drawn = noise.standard_normal(rows.shape, np.float32)
        return rows + np.float32(share * rows.std()) * drawn

    found = greedy(config, counting, prompt, len(want), draft=draft)
    np.testing.assert_array_equal(found, want)
    passes = {0.0: 2, 0.05: len(want) - 1, 3.0: len(want)}  # 9 tokens and 15, where all are right
    assert len(heads) <= passes[share]


@pytest.mark.parametrize("name", slow_beyond(FEATURES, CONFIGS))
def test_every_configuration_is_the_oracle(name: str) -> None:
    made = case(name)
    found, routers = run_all(made.folder, made.ids)
    assert np.abs(found - made.logits).max() <= ORACLE
    assert len(routers) == len(made.routers)
    for layer, want in zip(sorted(routers), made.routers, strict=True):
        assert np.abs(routers[layer] - want).max() <= ORACLE


@pytest.mark.parametrize("name", ["mha", "gqa", "always_active", "dense_first_bias", "tied"])
def test_vocabulary_in_pieces_is_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(name)
    monkeypatch.setattr(names, "PIECE_BYTES", 37 * 4 * 64)  # 37 rows: the last piece is short
    found, _ = run_all(made.folder, made.ids)
    assert np.abs(found - made.logits).max() <= ORACLE


@pytest.mark.parametrize("name", ["gqa", "two_shared", "dense_middle", "rope_llama3"])
@pytest.mark.parametrize("sizes", [[1] * 20, [7, 1, 12], [19, 1]], ids=str)
def test_the_cache_continues_the_prompt(name: str, sizes: list[int]) -> None:
    made = case(name)
    checkpoint = Checkpoint.open(made.folder)
    cache, rows = KeyValues(), []
    assert cache.length == 0
    for piece in np.split(made.ids[0], np.cumsum(sizes)[:-1]):
        rows += logits(checkpoint.config, Product.whole(checkpoint).rows, [piece], cache=cache)
    assert cache.length == 20
    assert np.abs(np.concatenate(rows) - made.logits[0]).max() <= ORACLE


def test_sequences_of_other_lengths_do_not_touch_each_other() -> None:
    made = case("gqa")
    checkpoint = Checkpoint.open(made.folder)
    parts = [made.ids[0, :3], made.ids[1], made.ids[0, :1]]
    found = logits(checkpoint.config, Product.whole(checkpoint).rows, parts)
    for piece, want in zip(
        found, (made.logits[0, :3], made.logits[1], made.logits[0, :1]), strict=True
    ):
        assert np.abs(piece - want).max() <= ORACLE


def test_the_context_is_a_limit(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(make_checkpoint(tmp_path, max_position_embeddings=8))
    config, source = checkpoint.config, Product.whole(checkpoint).rows
    ids = np.arange(9)
    with pytest.raises(EmoExportError, match="9 tokens exceed the context of 8"):
        logits(config, source, [ids[:2], ids])
    cache = KeyValues()
    logits(config, source, [ids[:8]], cache=cache)
    with pytest.raises(EmoExportError, match="9 tokens exceed the context of 8"):
        logits(config, source, [ids[8:]], cache=cache)
    assert len(greedy(config, source, ids[:5], 10)) == 3


def test_experts_that_no_token_uses_are_not_read() -> None:
    checkpoint = Checkpoint.open(GOLDEN / "base")
    config, source = checkpoint.config, Product.whole(checkpoint).rows
    calls: Counter[Slot] = Counter()

    def counting(slot: Slot, start: int, stop: int) -> F32:
        calls[slot] += 1
        return source(slot, start, stop)

    prompt = np.load(GOLDEN / "base" / "golden.npz")["input_ids"][0, :1]
    greedy(config, counting, prompt, 5)  # one token in each of the five passes
    experts = Counter(s.role for s in calls.elements() if s.expert >= 0)
    used = 5 * config.num_hidden_layers * config.num_experts_per_tok
    assert experts == {role: used for role in (Role.GATE, Role.UP, Role.DOWN)}
    shared = config.num_experts - 1
    for slot in slots(config):
        if slot.expert in (-1, shared):
            assert calls[slot] == 5
