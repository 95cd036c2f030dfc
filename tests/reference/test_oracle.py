"""The oracle against the published code's goldens, and the synthetic checkpoints against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.kit.oracle import oracle_logits, route
from tests.kit.paths import GOLDEN, GOLDENS, NANO
from tests.kit.synth import CONFIGS, make_checkpoint

LOGITS_TOLERANCE = 2e-4  # the goldens are float32; the oracle is float64
ROUTER_TOLERANCE = 1e-4
IDS = np.random.default_rng(7).integers(0, 490, (1, 12))


@pytest.mark.parametrize("name", GOLDENS)
def test_oracle_is_the_published_code(name: str) -> None:
    with np.load(GOLDEN / name / "golden.npz") as golden:
        logits, routers = oracle_logits(GOLDEN / name, golden["input_ids"])
        assert np.abs(logits - golden["logits"]).max() <= LOGITS_TOLERANCE
        expected = [key for key in golden if key.startswith("router_logits_")]
        assert len(routers) == len(expected) > 0
        for i, router in enumerate(routers):
            assert np.abs(router - golden[f"router_logits_{i}"]).max() <= ROUTER_TOLERANCE


def test_oracle_is_the_published_code_on_trained_weights() -> None:
    with np.load(NANO / "golden.npz") as golden:
        logits, _ = oracle_logits(NANO, golden["input_ids"])
        assert np.abs(logits - golden["logits"]).max() <= LOGITS_TOLERANCE


def test_oracle_continues_as_the_published_code() -> None:
    with np.load(GOLDEN / "base" / "golden.npz") as golden:
        ids = np.concatenate([golden["input_ids"][0, :16], golden["greedy"]])
        logits, _ = oracle_logits(GOLDEN / "base", ids[None, :-1])
        np.testing.assert_array_equal(logits[0, 15:].argmax(-1), golden["greedy"])


@pytest.mark.parametrize("name", CONFIGS)
def test_synthetic_checkpoints_are_usable(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, **CONFIGS[name])
    logits, routers = oracle_logits(folder, IDS)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert logits.shape == (1, 12, config["vocab_size"])
    # Spread logits show an error; a decisive router makes the choice the same in float32.
    assert 0.5 < logits.std() < 8
    for router in routers:
        assert _margin(router, config) > 1e-4


def _margin(router: Any, config: dict[str, Any]) -> float:
    """The smallest gap between two experts' logits in a token: no choice is closer than that."""
    gaps = np.diff(np.sort(router, axis=1), axis=1)
    return float(gaps.min())


# Each line is a pair of configurations that share weights and must differ in their logits: a
# feature that the oracle silently ignored would leave them equal.
FEATURES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "norm_topk": ({"num_shared_experts": 0}, {"norm_topk_prob": True}),
    "shared": ({"num_shared_experts": 2}, {"num_shared_experts": 0}),
    "k": ({"num_shared_experts": 0}, {"num_experts_per_tok": 4}),
    "always": ({"num_shared_experts": 0}, {"always_active_experts": [2]}),
    "always_over_shared": ({"num_shared_experts": 2}, {"always_active_experts": [2]}),
    "always_per_layer": (
        {"num_shared_experts": 2, "always_active_experts": [2]},
        {"always_active_experts_per_layer": [[2], []]},
    ),
    "linear": ({}, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3": ({}, {"rope_scaling": CONFIGS["rope_llama3"]["rope_scaling"]}),
    "theta": ({}, {"rope_theta": 10000.0}),
    "eps": ({}, {"rms_norm_eps": 0.5}),
    "attention_bias": ({"attention_bias": True}, {"attention_bias": False}),
    "tied": ({}, {"tie_word_embeddings": True}),
    "head_dim": ({}, {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8}),
    "dense_mlp_bias": (CONFIGS["dense_first_bias"], {"dense_mlp_bias": False}),
    "shared_per_layer": (CONFIGS["per_layer_odd_counts"], {"num_shared_experts_per_layer": [1, 1]}),
}


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_changes_the_logits(name: str, tmp_path: Path) -> None:
    made, changed = FEATURES[name]
    folder = make_checkpoint(tmp_path, **made)
    before, _ = oracle_logits(folder, IDS)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changed), "utf-8")
    after, _ = oracle_logits(folder, IDS)
    assert np.abs(after - before).max() > 1e-3


# Router probabilities (their logarithms are the logits), and weights worked out by hand.
ROUTES: dict[str, tuple[dict[str, Any], list[float], dict[int, float]]] = {
    "no_shared": ({"num_shared_experts": 0}, [1, 4, 2, 3], {1: 0.4, 3: 0.3}),
    "norm_topk": (
        {"num_shared_experts": 0, "norm_topk_prob": True},
        [1, 4, 2, 3],
        {1: 4 / 7, 3: 3 / 7},
    ),
    "one_shared": ({}, [5, 1, 4, 1000], {0: 0.5, 3: 1.0}),
    "two_shared": (
        {"num_shared_experts": 2, "num_experts_per_tok": 3},
        [2, 3, 30, 10],
        {1: 0.6, 2: 0.75, 3: 0.25},
    ),
    "always": (
        {"num_shared_experts": 0, "always_active_experts": [0]},
        [1, 4, 2, 3],
        {0: 0.1, 1: 0.4},
    ),
    "always_beats_shared": ({"always_active_experts": [0]}, [1, 2, 3, 4], {0: 0.1, 3: 0.4}),
    "always_of_another_layer": (
        {"always_active_experts_per_layer": [[], [0]]},
        [5, 1, 4, 1000],
        {0: 0.5, 3: 1.0},
    ),
    "all_shared": (
        {"num_shared_experts": 2, "num_experts": 2},
        [1, 3],
        {0: 0.25, 1: 0.75},
    ),
}


@pytest.mark.parametrize("name", ROUTES)
def test_routing_by_hand(name: str) -> None:
    changed, odds, expected = ROUTES[name]
    config = {"num_experts_per_tok": 2, "num_shared_experts": 1, "num_experts": len(odds)}
    weights = route(config | changed, 0, np.log(np.array(odds, dtype=np.float64)))
    assert weights == pytest.approx(expected)


def test_dynamic_rope_is_the_default_within_the_context(tmp_path: Path) -> None:
    plain = make_checkpoint(tmp_path / "plain")
    dynamic = make_checkpoint(tmp_path / "dynamic", **CONFIGS["rope_dynamic"])
    np.testing.assert_array_equal(oracle_logits(plain, IDS)[0], oracle_logits(dynamic, IDS)[0])


@pytest.mark.parametrize("vocab_size", [258, 300, 512, 640])
def test_synthetic_tokenizers_round_trip(vocab_size: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, vocab_size=vocab_size)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "It's 12345 naïve\r\n\tbytes, 日本"
    ids = tokenizer.encode(text).ids
    assert max(ids) < vocab_size
    assert tokenizer.decode(ids) == text
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert tokenizer.token_to_id("<|endoftext|>") == config["eos_token_id"]
    assert tokenizer.token_to_id("<|pad|>") == config["pad_token_id"]


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    files = [
        make_checkpoint(tmp_path / str(i), seed=seed) / "model.safetensors"
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = (file.read_bytes() for file in files)
    assert first == again != other
