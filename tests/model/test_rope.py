"""Rotary frequencies against literal numbers from the transformers source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.rope import cos_sin, inverse_frequencies, rope_type
from tests.kit.synth import make_config

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@dataclass(frozen=True)
class Case:
    """Config keys, and what ROPE_INIT_FUNCTIONS of transformers 4.57.6 returns for them."""

    keys: dict[str, Any]
    kind: str
    expected: list[float]


PLAIN_16 = [
    1.0,
    0.193922758102417,
    0.03760603070259094,
    0.00729266507551074,
    0.001414213445968926,
    0.00027424818836152554,
    5.3182957344688475e-05,
    1.0313385246263351e-05,
]

CASES = {
    "default": Case({}, "default", PLAIN_16),
    "default_named": Case({"rope_scaling": {"rope_type": "default"}}, "default", PLAIN_16),
    "default_12": Case(
        {"rope_theta": 10000.0, "head_dim": 12},
        "default",
        [
            1.0,
            0.2154434472322464,
            0.04641588404774666,
            0.009999999776482582,
            0.002154434332624078,
            0.00046415894757956266,
        ],
    ),
    "linear": Case(
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        "linear",
        [
            0.25,
            0.04848068952560425,
            0.009401507675647736,
            0.001823166268877685,
            0.0003535533614922315,
            6.856204709038138e-05,
            1.3295739336172119e-05,
            2.578346311565838e-06,
        ],
    ),
    # seq_len None: up to max_position_embeddings tokens.
    "dynamic": Case({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic", PLAIN_16),
    "llama3": Case(
        {"rope_scaling": LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 64}},
        "llama3",
        [
            1.0,
            0.07940301299095154,
            0.004700753837823868,
            0.0009115831344388425,
            0.00017677668074611574,
            3.428102354519069e-05,
            6.647869668086059e-06,
            1.289173155782919e-06,
        ],
    ),
    "llama3_8192": Case(
        {
            "head_dim": 32,
            "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
        },
        "llama3",
        [
            1.0,
            0.44036662578582764,
            0.193922758102417,
            0.08539710193872452,
            0.03760603070259094,
            0.016560440883040428,
            0.00729266507551074,
            0.0032114461064338684,
            0.000429556705057621,
            1.9461638657958247e-05,
            8.570255886297673e-06,
            3.7740544485131977e-06,
            1.6619674170215148e-06,
            7.318749339901842e-07,
            3.2229328894572973e-07,
            1.4192720243499934e-07,
        ],
    ),
    "llama3_integers": Case(
        {
            "rope_theta": 10000.0,
            "head_dim": 24,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 3,
                "low_freq_factor": 2.0,
                "high_freq_factor": 5.0,
                "original_max_position_embeddings": 1000,
            },
        },
        "llama3",
        [
            1.0,
            0.46415889263153076,
            0.2154434472322464,
            0.10000000149011612,
            0.04641588404774666,
            0.014022448100149632,
            0.003333333181217313,
            0.0015471965307369828,
            0.0007181447581388056,
            0.0003333333588670939,
            0.00015471964434254915,
            7.181447290349752e-05,
        ],
    ),
}


def _config(**keys: Any) -> EmoConfig:
    return EmoConfig.from_dict(make_config(**keys))


@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    case = CASES[name]
    config = _config(**case.keys)
    assert rope_type(config) == case.kind
    found = inverse_frequencies(config)
    assert found.dtype == np.float64
    # The literals are float32 and took several roundings of it.
    np.testing.assert_allclose(found, case.expected, rtol=1e-6)


def test_rope_parameters_of_transformers_5_mean_the_same() -> None:
    scaling = dict(CASES["llama3"].keys["rope_scaling"])
    raw = make_config()
    del raw["rope_theta"], raw["rope_scaling"]
    raw["rope_parameters"] = scaling | {"rope_theta": 500000.0}
    found = inverse_frequencies(EmoConfig.from_dict(raw))
    np.testing.assert_allclose(found, CASES["llama3"].expected, rtol=1e-6)


def test_tables_hold_one_row_a_position() -> None:
    cos, sin = cos_sin(_config(), 100)
    assert cos.shape == sin.shape == (100, 8)
    assert cos.dtype == sin.dtype == np.float32
    np.testing.assert_array_equal(cos[0], np.ones(8))
    np.testing.assert_array_equal(sin[0], np.zeros(8))
    # Angles are taken in float32, whose rounding at 100 radians is 4e-6.
    assert cos[99, 0] == pytest.approx(math.cos(99.0), abs=1e-5)
    assert sin[99, 1] == pytest.approx(math.sin(99.0 * PLAIN_16[1]), abs=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "yarn": ({"rope_type": "yarn", "factor": 2.0}, "yarn"),
    "longrope": ({"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "longrope"),
    "mrope": ({"type": "mrope", "mrope_section": [2, 3, 3]}, "mrope"),
    "null": ({"rope_type": None, "factor": 2.0}, "None"),
    "list": ({"rope_type": ["linear"], "factor": 2.0}, "linear"),
    "no factor": ({"rope_type": "linear"}, "factor"),
    "text factor": ({"rope_type": "linear", "factor": "2"}, "factor"),
    "boolean factor": ({"rope_type": "linear", "factor": True}, "factor"),
    "zero factor": ({"rope_type": "dynamic", "factor": 0}, "factor"),
    "infinite factor": ({"rope_type": "linear", "factor": float("inf")}, "factor"),
    "nan factor": ({"rope_type": "linear", "factor": float("nan")}, "factor"),
    "huge factor": ({"rope_type": "linear", "factor": 10**400}, "factor"),
    "unknown key": ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, "beta_fast"),
    "llama3 short": (LLAMA3 | {"factor": 8.0}, "original_max_position_embeddings"),
    "llama3 equal": (
        LLAMA3 | {"factor": 8.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 64},
        "high_freq_factor",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_scalings_are_refused(name: str) -> None:
    scaling, named = REFUSED[name]
    with pytest.raises(EmoExportError) as caught:
        inverse_frequencies(_config(rope_scaling=scaling))
    assert named in str(caught.value)
    assert "rope" in str(caught.value)


def test_a_second_rope_theta_that_disagrees_is_refused() -> None:
    """Transformers 5 takes rope_theta from the object, 4.57 from beside it: one must not win."""
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(EmoExportError, match="rope_theta"):
        inverse_frequencies(_config(rope_scaling=scaling))
