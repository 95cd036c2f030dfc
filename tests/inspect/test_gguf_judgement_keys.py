"""What `inspect` says of the keys, types and tensors of an EMO; random weights are enough here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
from gguf.constants import GGMLQuantizationType as Type

from tests.kit.bad_gguf import of, rewrite
from tests.kit.exporting import export_to
from tests.kit.hand_gguf import write_gguf
from tests.kit.synth import CONFIGS, make_checkpoint

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GGUF of random weights that is named after EMO."""
    folder = tmp_path_factory.mktemp("random")
    write_gguf(make_checkpoint(folder / "c"), folder / "unnamed.gguf")
    return rewrite(folder / "unnamed.gguf", folder / "emo.gguf", {"general.name": "Emo_1b14b_1T"})


GOOD = ("no_shared_norm_topk", "always_active", "dense_middle", "dense_first", "gqa", "tied")
DENSE = {"num_experts_per_layer": [0, 0], "dense_intermediate_size": 40}


@pytest.mark.parametrize("name", [*GOOD, "dense_only"])
def test_nothing_is_wrong_with_what_we_write(tmp_path: Path, name: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", **CONFIGS.get(name, DENSE))
    path = export_to(tmp_path / "o", checkpoint, gguf=["q8_0"])["gguf:q8_0"]
    assert of("wrong", path) == of("risk", path) == ""


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0])
def test_quantised_routers(random: Path, tmp_path: Path, kind: Type) -> None:
    path = rewrite(random, tmp_path / "x.gguf", kinds={"ffn_gate_inp": kind})
    said = of("risk", path)
    assert f"router blk.0.ffn_gate_inp.weight is quantised ({kind.name}) (and 1 more)" in said
    assert "text may loop" in said


def test_one_expert_too_many(random: Path, tmp_path: Path) -> None:
    shape = {"embedding_length": 2048, "expert_feed_forward_length": 1024, "block_count": 16}
    keys = {f"ARCH.{name}": size for name, size in shape.items()}
    keys |= {"ARCH.vocab_size": 100352, "ARCH.expert_used_count": 8}
    assert "EMO takes 7 routed experts" in of("wrong", rewrite(random, tmp_path / "x.gguf", keys))


@pytest.mark.parametrize("arch", ["qwen2moe", "qwen3moe", "granitemoe", "dbrx", "deepseek2"])
def test_architectures_that_compute_something_else(random: Path, tmp_path: Path, arch: str) -> None:
    said = of("wrong", rewrite(random, tmp_path / "x.gguf", arch=arch))
    assert f"architecture '{arch}' on an EMO" in said
    assert "without an error message" in said


def test_an_unknown_architecture_is_a_risk(random: Path, tmp_path: Path) -> None:
    said = of("risk", rewrite(random, tmp_path / "x.gguf", arch="emo"))
    assert "architecture 'emo' on an EMO" in said and "never compared" in said


# --- shape and tensors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "level", "said"),
    [
        ({"rope.freq_base": None}, "wrong", "has no deepseek.rope.freq_base"),
        ({"rope.freq_base": 10000.0}, "risk", "rope.freq_base is 10000"),
        ({"rope.scaling.type": "yarn"}, "note", "rope.scaling.type is 'yarn'"),
        ({"context_length": 2**32 - 1}, "risk", "context_length is 4294967295"),
        ({"attention.layer_norm_rms_epsilon": None}, "wrong", "layer_norm_rms_epsilon"),
        ({"expert_feed_forward_length": None}, "wrong", "expert_feed_forward_length"),
        ({"attention.key_length": 32}, "wrong", "head_count x key_length is 128"),
        ({"expert_used_count": 40}, "wrong", "ends the process"),
        ({"expert_shared_count": 0}, "wrong", "expert_shared_count is 0, but"),
    ],
)
def test_keys(random: Path, tmp_path: Path, keys: dict[str, Any], level: str, said: str) -> None:
    named = {f"ARCH.{name}": value for name, value in keys.items()}
    assert said in of(level, rewrite(random, tmp_path / "x.gguf", named))


def test_missing_tensors(random: Path, tmp_path: Path) -> None:
    def edit(name: str, values: Array) -> Array | None:
        return None if name in ("blk.1.attn_norm.weight", "output_norm.weight") else values

    said = of("wrong", rewrite(random, tmp_path / "x.gguf", edit=edit))
    assert "tensors are missing: blk.1.attn_norm.weight" in said
    assert "tensor output_norm.weight is missing" in said
