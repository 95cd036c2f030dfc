"""llama.cpp's importance matrix files: what others find in ours, and we in theirs."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from emo_export.converters.gguf.graph import choose_arch
from emo_export.converters.gguf.imatrix import read_imatrix, write_imatrix
from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import Role, Slot, shape_of
from tests.converters.gguf.test_gguf_graph import GLM4MOE, REFUSED
from tests.kit.exporting import Array
from tests.kit.imatrix_files import (
    KEYS,
    assert_same_rows,
    config_named,
    random_matrix,
    tensors_of,
    write_gguf,
)
from tests.kit.synth import CONFIGS, make_config

SUMS, COUNTS = ".weight.in_sum2", ".weight.counts"
STEMS = {"gate": Role.GATE, "up": Role.UP, "down": Role.DOWN}
PAIRS = [
    (name, arch)
    for name in CONFIGS
    if name not in REFUSED
    for arch in ("deepseek", "glm4moe")
    if arch == "glm4moe" or name not in GLM4MOE
]


def written(
    name: str, arch: str, folder: Path
) -> tuple[EmoConfig, ImportanceMatrix, dict[str, Array]]:
    config = config_named(name)
    matrix = random_matrix(config)
    write_imatrix(folder / "i.gguf", matrix, config, arch)
    return config, matrix, tensors_of(folder / "i.gguf")


@pytest.mark.parametrize(("name", "arch"), PAIRS)
def test_what_was_written_is_read_bit_for_bit(name: str, arch: str, tmp_path: Path) -> None:
    config, matrix, tensors = written(name, arch, tmp_path)
    assert_same_rows(read_imatrix(tmp_path / "i.gguf", config, arch), matrix)
    for tensor, values in tensors.items():
        assert values.dtype == np.float32 and values.ndim == 2
        base = tensor.removesuffix(SUMS).removesuffix(COUNTS)
        assert len(tensors[base + SUMS]) == len(tensors[base + COUNTS])
        assert tensors[base + COUNTS].shape[1] == 1


def test_keys(tmp_path: Path) -> None:
    config = config_named("mha")
    write_imatrix(tmp_path / "i.gguf", random_matrix(config), config, "deepseek")
    fields = gguf.GGUFReader(tmp_path / "i.gguf").fields
    found = {key: f.contents() for key, f in fields.items() if not key.startswith("GGUF.")}
    assert found == {
        "general.type": "imatrix",
        "imatrix.datasets": ["a.txt, b.jsonl"],
        "imatrix.chunk_count": 2,  # 1000 tokens
        "imatrix.chunk_size": 512,
    }
    again = read_imatrix(tmp_path / "i.gguf", config, "deepseek")
    assert (again.source, again.tokens, again.chunks) == ("a.txt, b.jsonl", 1024, 2)


def test_deepseek_stacks_the_routed_experts(tmp_path: Path) -> None:
    _, matrix, tensors = written("mha", "deepseek", tmp_path)
    for stem, role in STEMS.items():
        for expert in range(7):
            slot = Slot(role, 1, expert)
            exps = f"blk.1.ffn_{stem}_exps"
            np.testing.assert_array_equal(tensors[exps + SUMS][expert], matrix.sums[slot])
            assert tensors[exps + COUNTS][expert, 0] == matrix.counts[slot]
        assert tensors[exps + SUMS].shape[0] == 7
        shared = tensors[f"blk.1.ffn_{stem}_shexp" + SUMS]
        np.testing.assert_array_equal(shared, [matrix.sums[Slot(role, 1, 7)]])
    for part, role in {"attn_q": Role.Q, "attn_v": Role.V, "attn_output": Role.O}.items():
        np.testing.assert_array_equal(tensors[f"blk.0.{part}{SUMS}"], [matrix.sums[Slot(role, 0)]])
    np.testing.assert_array_equal(tensors["output" + SUMS], [matrix.sums[Slot(Role.HEAD)]])
    assert len(tensors) == 2 * (2 * (4 + 3 + 3) + 1)


def test_glm4moe_has_a_place_for_each_of_the_most_experts(tmp_path: Path) -> None:
    _, matrix, tensors = written("always_active_counts", "glm4moe", tmp_path)  # 9 and 3 experts
    for layer, count in ((0, 9), (1, 3)):
        for stem, role in STEMS.items():
            sums = tensors[f"blk.{layer}.ffn_{stem}_exps{SUMS}"]
            assert len(sums) == 9
            want = [matrix.sums[Slot(role, layer, expert)] for expert in range(count)]
            np.testing.assert_array_equal(sums[:count], want)
            assert not sums[count:].any()
            assert not tensors[f"blk.{layer}.ffn_{stem}_exps{COUNTS}"][count:].any()
    assert not [name for name in tensors if "_shexp" in name]


def test_a_dense_layer_in_the_middle_is_measured_as_it_lies(tmp_path: Path) -> None:
    # F 32, W 80: runs of 32 (the shared expert's place), 32 and 16; 7 places.
    _, matrix, tensors = written("dense_middle", "glm4moe", tmp_path)
    gate, down = (matrix.sums[Slot(role, 1)] for role in (Role.DENSE_GATE, Role.DENSE_DOWN))
    np.testing.assert_array_equal(tensors["blk.1.ffn_gate_shexp" + SUMS], [gate])
    np.testing.assert_array_equal(tensors["blk.1.ffn_gate_exps" + SUMS][:2], [gate, gate])
    np.testing.assert_array_equal(tensors["blk.1.ffn_down_shexp" + SUMS], [down[:32]])
    stack = tensors["blk.1.ffn_down_exps" + SUMS]
    np.testing.assert_array_equal(stack[0], down[32:64])
    np.testing.assert_array_equal(stack[1], np.pad(down[64:], (0, 16)))
    assert stack.shape == (7, 32) and not stack[2:].any()
    counts = tensors["blk.1.ffn_down_exps" + COUNTS].reshape(-1)
    assert counts.tolist() == [matrix.counts[Slot(Role.DENSE_DOWN, 1)]] * 2 + [0] * 5
    assert "blk.1.ffn_gate" + SUMS not in tensors


def test_a_shared_place_of_several_runs(tmp_path: Path) -> None:
    # 352 = 5.5 * 64: the shared expert's tensor has three runs, 2 and a half are forced.
    _, matrix, tensors = written("dense_middle_wide", "glm4moe", tmp_path)
    down = matrix.sums[Slot(Role.DENSE_DOWN, 2)]
    np.testing.assert_array_equal(tensors["blk.2.ffn_down_shexp" + SUMS], [down[:192]])
    stack = tensors["blk.2.ffn_down_exps" + SUMS]
    np.testing.assert_array_equal(stack[:3].reshape(-1)[:160], down[192:])
    assert tensors["blk.0.ffn_down" + SUMS].shape == (1, 352)  # it leads: a tensor of its own


@pytest.mark.parametrize("name", ["mha", "dense_first", "tied", "dense_middle", "norm_topk_counts"])
def test_a_file_of_llama_imatrix_is_read(name: str, tmp_path: Path) -> None:
    """It measures the router, empty places and a tied head too; a single row has one dimension."""
    config = config_named(name)
    arch = choose_arch(config)
    matrix = random_matrix(config)
    write_imatrix(tmp_path / "ours.gguf", matrix, config, arch)
    hidden = config.hidden_size
    theirs: dict[str, Array] = {}
    for tensor, values in reversed(tensors_of(tmp_path / "ours.gguf").items()):
        values = values.copy()
        if name == "norm_topk_counts" and tensor.startswith("blk.1.") and len(values) == 12:
            values[4:] = 77  # places that no expert has, though tokens may pass them
        theirs[tensor] = values[0] if len(values) == 1 else values
        theirs[tensor.replace(".in_sum2", ".in_sum").replace(".counts", ".stats")] = values * 2
    for extra in ("blk.0.ffn_gate_inp", "blk.1.ffn_up_shexp", "output", "blk.1.ffn_down_exps"):
        theirs.setdefault(extra + SUMS, np.ones(hidden, np.float32))
        theirs.setdefault(extra + COUNTS, np.ones(1, np.float32))
    found = read_imatrix(write_gguf(tmp_path / "t.gguf", theirs), config, arch)
    assert_same_rows(found, matrix)
    assert (found.source, found.tokens, found.chunks) == ("wiki.train.raw", 768, 2)


def test_without_process_output_the_head_has_no_row(tmp_path: Path) -> None:
    config, matrix, tensors = written("mha", "deepseek", tmp_path)
    rest = {name: values for name, values in tensors.items() if not name.startswith("output")}
    found = read_imatrix(write_gguf(tmp_path / "t.gguf", rest), config, "deepseek")
    head = Slot(Role.HEAD)
    assert found.row(head) is None
    del matrix.sums[head], matrix.counts[head]
    assert_same_rows(found, matrix)


def test_keys_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    config, _, tensors = written("mha", "deepseek", tmp_path)
    for keys in (
        {"general.type": "imatrix"},
        KEYS | {"imatrix.datasets": "wiki", "imatrix.chunk_count": "many"},
    ):
        found = read_imatrix(write_gguf(tmp_path / "t.gguf", tensors, keys), config, "deepseek")
        assert (found.source, found.tokens) == ("t.gguf", 0)


@pytest.mark.parametrize("shared", [1, 0])
def test_an_expert_that_no_token_can_take_has_no_place_but_a_row(
    shared: int, tmp_path: Path
) -> None:
    overrides = {"num_experts_per_layer": [8, 5], "num_shared_experts_per_layer": [shared, 1]}
    overrides |= {"num_experts_per_tok": 1}
    config = EmoConfig.from_dict(make_config(**overrides))
    arch = choose_arch(config)
    matrix = random_matrix(config)
    write_imatrix(tmp_path / "i.gguf", matrix, config, arch)
    found = read_imatrix(tmp_path / "i.gguf", config, arch)
    assert set(found.sums) == set(matrix.sums)
    idle = Slot(Role.DOWN, 1, 3)
    row = found.row(idle)
    assert row is not None and row.tolist() == [1.0] * shape_of(idle, config)[1]
    assert idle in found.unseen()
