"""Calibration against the inputs of every matrix as the oracle, in float64, meets them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.errors import EmoExportError
from emo_export.line import Line, Output
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import VECTORS, Block, Role, Slot, blocks, row_spans, slots
from emo_export.model.product import Product
from emo_export.pipeline import stream
from emo_export.reference.calibrate import Calibration
from emo_export.reference.forward import KeyValues
from emo_export.reference.passes import Pass, Rows
from emo_export.reference.states import States
from emo_export.spec import ONNX, Spec
from tests.kit.calibrating import Asking, Packing, Told, stored
from tests.kit.exporting import Array, case, dequantised_source, open_product, run_calibration
from tests.kit.oracle import F64, Weights, _sequence
from tests.kit.synth import make_checkpoint

UNMEASURED = VECTORS | {Role.EMBED, Role.ROUTER}
# Of 21, 3 and 40 tokens: attention must not look from one to another.
SEQUENCES = [np.random.default_rng(5).integers(0, 500, n) for n in (21, 3, 40)]
NAMES = ["mha", "gqa", "odd_48_20", "no_shared_norm_topk", "k_equals_e", "always_active_counts"]
NAMES += ["two_shared", "always_active_per_layer", "dense_first_bias", "dense_middle_wide"]
NAMES += ["per_layer_odd_counts", "attention_bias", "tied", "rope_llama3", "head_dim", "bf16"]


class Listening(Weights):
    """The oracle's weights, which sum the squares of all that they are multiplied by."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.sums: dict[str, F64] = {}
        self.counts: Counter[str] = Counter()

    def linear(self, name: str, x: F64, bias: bool = False) -> F64:
        rows = np.atleast_2d(x)
        self.sums[f"{name}.weight"] = self.sums.get(f"{name}.weight", 0.0) + (rows**2).sum(0)
        self.counts[f"{name}.weight"] += len(rows)
        return super().linear(name, x, bias)


def listen(folder: Path, sequences: list[Array]) -> Listening:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights = Listening(folder)
    for ids in sequences:
        _sequence(config, weights, ids)
    return weights


def calibrate(folder: Path, sequences: list[Array]) -> Calibration:
    checkpoint = Checkpoint.open(folder)
    calibration = Calibration(checkpoint.config, sequences, "a text")
    run_calibration(Product.whole(checkpoint), calibration)
    return calibration


@pytest.mark.parametrize("name", NAMES)
def test_sums_and_counts_are_the_oracles(name: str) -> None:
    folder = case(name).folder
    heard, matrix = listen(folder, SEQUENCES), calibrate(folder, SEQUENCES).matrix
    assert matrix.tokens == 64
    measured = [s for s in slots(Checkpoint.open(folder).config) if s.role not in UNMEASURED]
    assert set(matrix.sums) == set(matrix.counts) == set(measured)
    for slot in measured:
        assert matrix.counts[slot] == heard.counts[slot.name], slot
        want = heard.sums.get(slot.name)
        if want is None:
            assert not matrix.sums[slot].any()
            continue
        assert matrix.sums[slot].dtype == np.float32
        limit = 1e-5 * want.max()
        np.testing.assert_allclose(matrix.sums[slot], want, 1e-4, limit, err_msg=slot.name)
        row = matrix.row(slot)
        assert row is not None
        np.testing.assert_allclose(row, want / heard.counts[slot.name], 1e-4, limit)


def test_what_is_not_multiplied_has_no_row() -> None:
    matrix = calibrate(case("mha").folder, SEQUENCES[1:2]).matrix
    for role in (Role.EMBED, Role.ROUTER, Role.ATTN_NORM, Role.FINAL_NORM):
        assert matrix.row(Slot(role, 0 if role != Role.EMBED else -1)) is None


def test_an_expert_that_saw_no_token_weighs_all_columns_alike() -> None:
    folder = case("mha").folder
    heard, matrix = listen(folder, SEQUENCES[1:2]), calibrate(folder, SEQUENCES[1:2]).matrix
    unseen = [slot for slot in matrix.sums if not heard.counts[slot.name]]
    assert matrix.unseen() == unseen and len(unseen) >= 3
    assert {slot.role for slot in unseen} == {Role.GATE, Role.UP, Role.DOWN}
    assert len(unseen) % 3 == 0 and all(slot.expert < 7 for slot in unseen)  # 7 is shared
    for slot in unseen:
        row = matrix.row(slot)
        assert row is not None and row.tolist() == [1.0] * len(matrix.sums[slot])
    gates = {s: heard.counts[s.name] for s in matrix.sums if s.role == Role.GATE and s.expert >= 0}
    few = {(s.layer, s.expert): n for s, n in gates.items() if 0 < n < len(matrix.sums[s])}
    assert few and matrix.few() == few


def test_a_long_text_is_dealt_with_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = case("mha").folder
    whole = calibrate(folder, SEQUENCES).matrix
    monkeypatch.setattr("emo_export.reference.states.CHUNK", 7)
    pieces = calibrate(folder, SEQUENCES).matrix
    for slot, sums in whole.sums.items():
        np.testing.assert_allclose(pieces.sums[slot], sums, 1e-4)
        assert pieces.counts[slot] == whole.counts[slot]


@pytest.mark.parametrize("name", ["mha", "dense_first_bias"])
def test_states_hold_two_of_the_hidden_size_at_a_time(name: str) -> None:
    product = open_product(case(name).folder)
    config, held = product.config, []
    states = States.of(config, SEQUENCES)
    going = Pass(states)
    for step in (step for block in blocks(config) for step in block.steps):
        for slot in step.slots:
            for span in row_spans(slot, config) if going.wants(step, slot) else ():
                going.feed(step, slot, span[0], product.rows(slot, *span))
                kept = {
                    t.data_ptr(): t.numel() for t in (states.hidden, states.normed, states.inner)
                }
                held.append(sum(kept.values()) / len(states.ids))
    widest = max(config.intermediate_size, config.dense_intermediate_size or 0)
    assert max(held) <= 2 * config.hidden_size + widest
    assert held[-1] == config.hidden_size


@pytest.mark.parametrize("value", [1e30, 1e15])
def test_inputs_that_no_quantiser_bears_are_refused(value: float, tmp_path: Path) -> None:
    """ggml ends the process when it meets such importance."""
    folder = make_checkpoint(tmp_path / "broken", num_hidden_layers=1)
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    tensors["model.layers.0.pre_attention_layernorm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EmoExportError, match=r"layers\.0\.self_attn\.q_proj\.weight are not finit"):
        calibrate(folder, SEQUENCES)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", ["mha", "dense_first_bias", "always_active"])
def test_a_quantiser_is_told_of_the_inputs_of_its_own_variant(
    name: str, own: bool, tmp_path: Path
) -> None:
    """The oracle runs on a checkpoint of what the earlier matrices became, or on the original."""
    folder = case(name).folder
    product = open_product(folder)
    scheme = onnx_scheme(Spec(ONNX, "int4"), product.config)
    told = Told(product.config, SEQUENCES)
    output = Output(Packing(scheme), None if own else told, told if own else None, Asking)
    line = Line(product, [output], [] if own else [told])
    stream([line])
    source = dequantised_source(product, scheme) if own else product.rows
    heard = listen(stored(tmp_path / "stored", product, source), SEQUENCES)
    assert len(told.of) > 10
    for name, inputs in told.of.items():
        if not heard.counts[name]:
            continue
        assert inputs.tokens == heard.counts[name]
        want = heard.sums[name] / heard.counts[name]
        assert inputs.second_moments is not None and inputs.diagonal is not None
        np.testing.assert_allclose(inputs.diagonal, want, 1e-3, 1e-4 * want.max(), err_msg=name)
        if ".experts." not in name or "down_proj" in name:  # else some are the whole layer's
            np.testing.assert_allclose(
                np.diag(inputs.second_moments), want, 1e-3, 1e-4 * want.max(), err_msg=name
            )
        eigenvalues = np.linalg.eigvalsh(inputs.second_moments.astype(np.float64))
        assert eigenvalues.min() >= -1e-4 * eigenvalues.max()


def test_a_layer_can_be_tried_again() -> None:
    """States kept aside give the same layer twice, whatever was tried between."""
    made = case("mha")
    product = open_product(made.folder)
    blocks_of = list(blocks(product.config))
    states = States.of(product.config, SEQUENCES)

    def go(over: States, block: Block, rows: Rows) -> States:
        each = Pass(over)
        for step in block.steps:
            for slot in step.slots:
                for span in row_spans(slot, product.config) if each.wants(step, slot) else ():
                    each.feed(step, slot, span[0], rows(slot, *span))
        return over

    states = go(go(states, blocks_of[0], product.rows), blocks_of[1], product.rows)
    aside = states.copy()
    scheme = gguf_scheme("q4_0", product.config)
    coarse = go(states.copy(), blocks_of[2], dequantised_source(product, scheme))
    twice = [go(aside.copy(), blocks_of[2], product.rows).hidden for _ in range(2)]
    straight = go(states, blocks_of[2], product.rows).hidden
    assert torch.equal(twice[0], straight) and torch.equal(twice[1], straight)
    assert not torch.allclose(coarse.hidden, straight, atol=1e-4)
    with pytest.raises(ValueError, match="KV cache"):
        States.of(product.config, SEQUENCES[:1], cache=KeyValues()).copy()
