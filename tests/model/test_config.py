"""EmoConfig: what it reads, what it resolves, and that it refuses everything else by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from emo_export.errors import EmoExportError
from emo_export.model.config import DEFAULT_CONTEXT, EmoConfig, LayerShape
from emo_export.model.config_keys import NEUTRAL_ONLY, OPTIONAL_KEYS, REQUIRED_KEYS
from tests.kit.paths import GOLDEN, GOLDENS, NANO
from tests.kit.synth import CONFIGS, make_config

SHARED_16 = LayerShape(16, 1, (), 4)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_configs_read(name: str) -> None:
    config = EmoConfig.from_json(GOLDEN / name / "config.json")
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (512, 128, 64)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 32)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 500000.0, None)
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (491,), 511)
    assert not (config.attention_bias or config.tie_word_embeddings or config.norm_topk_prob)
    expected = {
        "pruned": (LayerShape(6, 1, (), 4),) * 3,
        "densefirst": (LayerShape(0, 0, (), 4), SHARED_16, SHARED_16),
    }
    assert config.layers == expected.get(name, (SHARED_16,) * 3)


def test_nano_config_reads() -> None:
    config = EmoConfig.from_json(NANO / "config.json")
    assert config.layers == (LayerShape(32, 1, (), 4),) * 3
    assert (config.head_dim, config.max_position_embeddings) == (64, 1024)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_configuration_reads(name: str) -> None:
    config = EmoConfig.from_dict(make_config(**CONFIGS[name]))
    for layer in config.layers:
        if not layer.is_dense:
            assert len(layer.forced) + layer.num_routed_per_tok == config.num_experts_per_tok
            assert sorted(layer.forced + layer.routed) == list(range(layer.num_experts))


# Configuration -> per layer: (experts, always taken, chosen from)
RESOLVED: dict[str, list[tuple[int, tuple[int, ...], tuple[int, ...]]]] = {
    "no_shared": [(8, (), (0, 1, 2, 3, 4, 5, 6, 7))] * 2,
    "two_shared": [(8, (6, 7), (0, 1, 2, 3, 4, 5))] * 2,
    "always_active": [(8, (1, 5), (0, 2, 3, 4, 6, 7))] * 2,
    "always_active_per_layer": [
        (8, (0, 6), (1, 2, 3, 4, 5, 7)),
        (8, (7,), (0, 1, 2, 3, 4, 5, 6)),
    ],
    "per_layer_counts": [(8, (7,), (0, 1, 2, 3, 4, 5, 6)), (4, (3,), (0, 1, 2))],
    "per_layer_odd_counts": [(7, (5, 6), (0, 1, 2, 3, 4)), (5, (4,), (0, 1, 2, 3))],
}


@pytest.mark.parametrize("name", RESOLVED)
def test_layers_resolve(name: str) -> None:
    layers = EmoConfig.from_dict(make_config(**CONFIGS[name])).layers
    assert [(x.num_experts, x.forced, x.routed) for x in layers] == RESOLVED[name]


def test_dense_layers_have_no_experts_to_take() -> None:
    config = EmoConfig.from_dict(make_config(**CONFIGS["dense_middle"]))
    assert [layer.is_dense for layer in config.layers] == [False, True, False]
    assert (config.layers[1].forced, config.layers[1].routed) == ((), ())


def test_defaults_are_those_of_the_published_code(base_config: dict[str, Any]) -> None:
    for key in OPTIONAL_KEYS - {"rope_theta"}:
        base_config.pop(key, None)
    config = EmoConfig.from_dict(base_config)
    assert config.num_key_value_heads == config.num_attention_heads == 4
    assert config.head_dim == 32
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (), None)
    assert not (config.attention_bias or config.dense_mlp_bias or config.norm_topk_prob)


def test_token_ids_may_be_a_list() -> None:
    assert EmoConfig.from_dict(make_config(eos_token_id=[491, 511])).eos_token_ids == (491, 511)


def test_context_length() -> None:
    known = EmoConfig.from_dict(make_config())
    assert (known.context_length(), known.context_length(64)) == (128, 64)
    with pytest.raises(EmoExportError, match=r"129.*max_position_embeddings 128"):
        known.context_length(129)
    unknown = EmoConfig.from_dict(make_config(max_position_embeddings=-1))
    assert unknown.context_length() == DEFAULT_CONTEXT == 4096
    assert unknown.context_length(9999) == 9999
    for config in (known, unknown):
        for bad in (0, -1):
            with pytest.raises(EmoExportError, match="context"):
                config.context_length(bad)


# What to change in a good config -> words that the message must hold (the key among them).
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"num_hash_layers": 0}, "num_hash_layers"),
    "model_type": ({"model_type": "olmoe"}, "olmoe"),
    "hidden_act": ({"hidden_act": "gelu"}, "gelu"),
    "text": ({"hidden_size": "64"}, "hidden_size"),
    "float": ({"num_experts_per_tok": 3.0}, "num_experts_per_tok"),
    "boolean": ({"num_shared_experts": True}, "num_shared_experts"),
    "negative": ({"num_shared_experts": -1}, "num_shared_experts"),
    "zero": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "integer flag": ({"attention_bias": 1}, "attention_bias"),
    "text flag": ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
    "eps zero": ({"rms_norm_eps": 0}, "rms_norm_eps"),
    "eps nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    "eps infinite": ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
    "eps huge": ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    "theta text": ({"rope_theta": "500000"}, "rope_theta"),
    "theta infinite": ({"rope_theta": float("inf")}, "rope_theta"),
    "theta huge": ({"rope_theta": 10**400}, "rope_theta"),
    "theta null": ({"rope_theta": None}, "rope_theta"),
    "scaling text": ({"rope_scaling": "linear"}, "rope_scaling"),
    "parameters text": ({"rope_parameters": "linear"}, "rope_parameters"),
    "parameters theta": ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
    "norm_topk shared": ({"norm_topk_prob": True}, "norm_topk_prob"),
    "norm_topk always": (
        {"norm_topk_prob": True, "num_shared_experts": 0, "always_active_experts": [1]},
        "norm_topk_prob",
    ),
    "k too large": ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
    "k too large in one layer": ({"num_experts_per_layer": [8, 2]}, "num_experts_per_tok"),
    "k below shared": ({"num_shared_experts": 4}, "num_experts_per_tok"),
    "k below always": ({"always_active_experts": [0, 1, 2, 3]}, "num_experts_per_tok"),
    "more shared than experts": (
        {"num_experts_per_layer": [8, 8], "num_shared_experts_per_layer": [9, 1]},
        "shared",
    ),
    "always repeated": ({"always_active_experts": [1, 1]}, "always_active_experts"),
    "always outside": ({"always_active_experts": [8]}, "always_active_experts"),
    "always negative": ({"always_active_experts": [-1]}, "always_active_experts"),
    "always number": ({"always_active_experts": 5}, "always_active_experts"),
    "always flag": ({"always_active_experts": True}, "always_active_experts"),
    "always flags": ({"always_active_experts": [True]}, "always_active_experts"),
    "always text": ({"always_active_experts": "12"}, "always_active_experts"),
    "always nested": ({"always_active_experts": [[1]]}, "always_active_experts"),
    "always layers": (
        {"always_active_experts_per_layer": [[1]]},
        "always_active_experts_per_layer",
    ),
    "always layers flat": (
        {"always_active_experts_per_layer": [1, 2]},
        "always_active_experts_per_layer",
    ),
    "layers short": ({"num_experts_per_layer": [8]}, "num_experts_per_layer"),
    "layers text": ({"num_experts_per_layer": "88"}, "num_experts_per_layer"),
    "layers float": ({"num_experts_per_layer": [8, 8.0]}, "num_experts_per_layer"),
    "gqa": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "heads": ({"num_attention_heads": 5}, "num_attention_heads"),
    "heads above width": ({"num_attention_heads": 128, "head_dim": None}, "head"),
    "odd head": ({"head_dim": 15}, "head_dim"),
    "dense width": ({"num_experts_per_layer": [0, 8]}, "dense_intermediate_size"),
    "context": ({"max_position_embeddings": 0}, "max_position_embeddings"),
    "eos": ({"eos_token_id": 512}, "eos_token_id"),
    "eos text": ({"eos_token_id": "491"}, "eos_token_id"),
    "pad": ({"pad_token_id": 512}, "pad_token_id"),
    "bos": ({"bos_token_id": 512}, "bos_token_id"),
    "ghost": ({"ghost_extend_eval": True}, "ghost_extend_eval"),
    "quantization": (
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        "quantization_config",
    ),
    "sliding window": ({"sliding_window": 4096}, "sliding_window"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
}


def _refusal(raw: Any, folder: Path) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps(raw), "utf-8")
    with pytest.raises(EmoExportError) as caught:
        EmoConfig.from_json(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_by_name(name: str, tmp_path: Path) -> None:
    changed, named = REFUSED[name]
    assert named in _refusal(make_config() | changed, tmp_path)


@pytest.mark.parametrize("key", [*REQUIRED_KEYS, "rope_theta"])
@pytest.mark.parametrize("how", ["absent", "null"])
def test_a_missing_key_is_named(key: str, how: str, tmp_path: Path) -> None:
    raw = make_config()
    if how == "null":
        raw[key] = None
    else:
        del raw[key]
    assert key in _refusal(raw, tmp_path)


DAMAGED = {
    "empty": b"",
    "cut": b'{"model_type": "emo", ',
    "not utf-8": b'{"model_type": "\xff"}',
    "list": b"[]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "long number": b'{"vocab_size": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(DAMAGED[name])
    with pytest.raises(EmoExportError) as caught:
        EmoConfig.from_json(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmoExportError, match=r"nowhere\.json"):
        EmoConfig.from_json(tmp_path / "nowhere.json")


HUGE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
from emo_export.model.config import EmoConfig
from emo_export.errors import EmoExportError
from tests.kit.synth import make_config
for key in ("num_hidden_layers", "num_experts"):
    for count in (10**10, 10**30):
        try:
            EmoConfig.from_dict(make_config(**{key: count}))
        except EmoExportError as error:
            if key not in str(error):
                sys.exit(str(error))
        else:
            sys.exit(f"{key} {count} was read")
"""


def test_an_absurd_count_is_refused_at_once() -> None:
    """In a process of its own with a limit: without the refusal this takes all memory."""
    command = [sys.executable, "-c", HUGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


ABSENT = object()
HUGE_NUMBERS = [float("inf"), float("nan"), 10**400]
SCALARS = (
    st.booleans()
    | st.integers(-3, 600)
    | st.sampled_from([None, *HUGE_NUMBERS])
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["silu", "emo", "linear", "llama3", "default"])
)
FIELDS = st.sampled_from(["rope_type", "type", "factor", "rope_theta", "low_freq_factor"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=6,
)
READ = sorted({*REQUIRED_KEYS, *OPTIONAL_KEYS, *NEUTRAL_ONLY})
# Values that are alarming only as counts are left to the test above, which limits its memory.
COUNTS = {"num_hidden_layers", "num_experts", "num_experts_per_layer"}


# One key at a time beside at most one other: the first refusal hides what further changes do.
@pytest.mark.parametrize("key", READ)
@settings(max_examples=12)
@given(
    value=VALUES | st.just(ABSENT),
    other=st.dictionaries(st.sampled_from(READ) | st.text(max_size=8), VALUES, max_size=1),
    base=st.sampled_from(["mha", "dense_first"]),
)
def test_any_mutation_reads_or_is_refused(
    key: str, value: Any, other: dict[str, Any], base: str
) -> None:
    raw = make_config(**CONFIGS[base]) | other | {key: value}
    assume(not any("0" * 100 in repr(raw.get(count)) for count in COUNTS))
    raw = {name: content for name, content in raw.items() if content is not ABSENT}
    try:
        config = EmoConfig.from_dict(raw, "here/config.json")
    except EmoExportError as error:
        assert "here/config.json" in str(error)
    else:
        assert len(config.layers) == config.num_hidden_layers
