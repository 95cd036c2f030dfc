"""Batches of unequal lengths: every row computes what its sequence computes alone.

Padding goes to the left (optimum), to the right (onnxruntime-genai) or both; a row may have one
real token or none yet; the steps after the prompt grow the mask by a one for each row.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from emo_export.converters.onnx.kinds import KINDS
from emo_export.model.recipes import ONNX_RECIPES
from tests.converters.onnx.test_to_onnx import EXACT, SHIPPED, Session
from tests.kit.exporting import TIGHT, Array, assert_same, case, dequantised_logits, exported, kl
from tests.kit.paths import NANO
from tests.kit.tiers import slow_beyond

# Head sizes of 16 go through GroupQueryAttention, of 8, 12 and 24 through the other two ways.
NAMES = ["gqa", "odd_40_24", "head_dim", "two_shared", "always_active", "dense_middle"]
ROPES = ["rope_linear", "rope_dynamic", "rope_llama3"]
FLOATS = [f"onnx:f32@{graph}" for graph in KINDS]
QUANTISED = [
    f"onnx:{t}@{g}"
    for g, types in ONNX_RECIPES.items()
    for t in types
    if t not in ("f32", "int2")  # these are too narrow for 2 bits
]
ONE_A_GRAPH = ["onnx:int4@qmoe", "onnx:int4@if", "onnx:int8@standard"]
SIDES = ["left", "right", "both"]
WIDTH = 16
LENGTHS = ([WIDTH, 1, 9, WIDTH - 1, 0], [5, WIDTH], [WIDTH] * 3, [3])
PAD = 511
REFUSED = "attention_mask_has_padding_between_tokens"


def slow(*values: str | int) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


class Batch:
    """Rows of a prompt, and the sequences that they are the beginnings of."""

    def __init__(self, sequences: Array, logits: Array, lengths: list[int], side: str) -> None:
        """Sequences (n, T) and logits (n, T, V), taken in turn; `lengths` of the real tokens."""
        rows = [index % len(sequences) for index in range(len(lengths))]
        self._sequences, self._logits = sequences[rows], logits[rows]
        self.lengths = list(lengths)
        self.ids = np.full((len(lengths), WIDTH), PAD)
        self.mask = np.zeros((len(lengths), WIDTH), np.int64)
        for row, length in enumerate(lengths):
            free = WIDTH - length
            begin = {"left": free, "right": 0, "both": free * (row % 2)}[side]
            self.ids[row, begin : begin + length] = self._sequences[row, :length]
            self.mask[row, begin : begin + length] = 1

    def check_prompt(self, found: Array, limit: float) -> None:
        """Logits (B, T, V) of the prompt at every real position."""
        assert np.isfinite(found).all()  # of padding too, or one row could spoil another
        assert_same(self.real(self._logits), found[self.mask == 1], limit)

    def real(self, rows: Array) -> Array:
        """Of each row (T, V) what its real tokens have, one after the other."""
        parts = [row[:length] for row, length in zip(rows, self.lengths, strict=True)]
        return np.concatenate(parts)

    def next(self, count: int) -> tuple[Array, Array, Array]:
        """The next `count` tokens (B, count), the grown mask, and the logits wanted for them."""
        places = [range(length, length + count) for length in self.lengths]
        ids, want = (
            np.stack([row[list(place)] for row, place in zip(rows, places, strict=True)])
            for rows in (self._sequences, self._logits)
        )
        self.lengths = [length + count for length in self.lengths]
        self.mask = np.concatenate([self.mask, np.ones_like(ids)], axis=1)
        return ids, self.mask, want


def check(session: Session, batch: Batch, counts: list[int], limit: float) -> None:
    """The prompt, then so many tokens at a time."""
    batch.check_prompt(session(batch.ids, batch.mask), limit)
    for count in counts:
        ids, mask, want = batch.next(count)
        assert_same(want, session(ids, mask), limit)


def uses_gqa(folder: Path) -> bool:
    """Tell whether a folder's attention is GroupQueryAttention."""
    needs = json.loads((folder / "emo_export.json").read_text("utf-8"))
    return bool(needs["share_kv_buffer"])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("name", slow_beyond(["gqa", "head_dim"], NAMES))
def test_rows_are_their_sequences(name: str, target: str, side: str) -> None:
    made = case(name)
    folder = exported(made.folder, target)
    for lengths in LENGTHS[: None if name == "gqa" else 1]:
        batch = Batch(made.ids, made.logits, lengths, side)
        check(Session(folder), batch, [1, 1, 1], TIGHT)


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("name", ROPES)
def test_rows_are_their_sequences_with_scaled_positions(name: str, target: str) -> None:
    made = case(name)
    folder = exported(made.folder, target)
    for side in SIDES:
        check(Session(folder), Batch(made.ids, made.logits, LENGTHS[0], side), [1, 1], TIGHT)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("name", ["gqa", "head_dim"])
def test_several_tokens_after_a_past(name: str, target: str, side: str) -> None:
    made = case(name)
    folder = exported(made.folder, target)
    check(Session(folder), Batch(made.ids, made.logits, [7], side), [1, 3, 2], TIGHT)
    batch = Batch(made.ids, made.logits, LENGTHS[0], side)
    if not uses_gqa(folder):
        check(Session(folder), batch, [2, 1, 1], TIGHT)
        return
    session = Session(folder)
    session(batch.ids, batch.mask)
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1"):
        session(*batch.next(2)[:2])


@pytest.mark.parametrize("target", QUANTISED)
@pytest.mark.parametrize("name", ["gqa", "head_dim"])
def test_rows_are_the_dequantised_weights(name: str, target: str) -> None:
    made = case(name)
    folder, want = exported(made.folder, target), dequantised_logits(made.folder, target, made.ids)
    for side in ("left", "right"):
        batch = Batch(made.ids, want, LENGTHS[0], side)
        check(Session(folder, exact=True), batch, [1, 1], EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("target", [t if t in ONE_A_GRAPH else slow(t) for t in QUANTISED])
def test_activations_of_a_row_are_rounded_without_the_others(target: str) -> None:
    ids = np.load(NANO / "golden.npz")["input_ids"][:5, :WIDTH].astype(np.int64)
    folder, want = exported(NANO, target), dequantised_logits(NANO, target, ids)
    one = np.ones((1, WIDTH), np.int64)
    alone = np.concatenate([Session(folder)(row[None], one) for row in ids])
    kind, graph = target.removeprefix("onnx:").split("@")
    # On the right a row has the positions that it has alone, and so the same numbers to round,
    # but QMoE adds its experts up in another order, which now and then rounds one otherwise.
    limits = {"right": 1e-4 if graph == "qmoe" else TIGHT, "left": SHIPPED[kind]}
    for side, limit in limits.items():
        batch = Batch(ids, alone, LENGTHS[0], side)
        found = Session(folder)(batch.ids, batch.mask)[batch.mask == 1]
        assert kl(batch.real(alone), found).mean() <= limit
        assert 1e-9 < kl(batch.real(want), found).mean() <= SHIPPED[kind]


class SharedBuffer:
    """A session whose past and present are the same buffers, as long as the caller likes."""

    def __init__(self, folder: Path, rows: int, length: int) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
        shape = (rows, config["num_key_value_heads"], length, config["head_dim"])
        # What was never written is not a number: it must not be read.
        self._buffers = {
            f"{layer}.{part}": onnxruntime.OrtValue.ortvalue_from_numpy(
                np.full(shape, np.nan, np.float32)
            )
            for layer, part in itertools.product(
                range(config["num_hidden_layers"]), ("key", "value")
            )
        }

    def __call__(self, ids: Array, mask: Array) -> Array:
        """Ids (B, T) after what is cached, mask (B, cached + T) -> logits (B, T, V)."""
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        binding.bind_output("logits")
        for name, buffer in self._buffers.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        self._session.run_with_iobinding(binding)
        return np.asarray(binding.copy_outputs_to_cpu()[0])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("target", ["onnx:f32", "onnx:f32@if"])
def test_a_shared_buffer_is_the_concatenated_cache(target: str, side: str) -> None:
    made = case("gqa")
    folder = exported(made.folder, target)
    for lengths, room in itertools.product(LENGTHS, (WIDTH + 3, 128)):
        batch = Batch(made.ids, made.logits, lengths, side)
        buffer = SharedBuffer(folder, len(lengths), room)
        batch.check_prompt(buffer(batch.ids, batch.mask), TIGHT)
        for _ in range(3):
            ids, mask, want = batch.next(1)
            assert_same(want, buffer(ids, mask), TIGHT)
    ids, mask, _ = batch.next(1)
    with pytest.raises(Exception, match="present"):  # a buffer that is full
        full = SharedBuffer(folder, len(lengths), WIDTH)
        full(batch.ids, batch.mask[:, :WIDTH])
        full(ids, mask[:, : WIDTH + 1])


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("name", ["gqa", "head_dim"])
def test_padding_between_tokens_is_followed_or_refused(name: str, target: str) -> None:
    made = case(name)
    folder = exported(made.folder, target)
    holes = [0, 4, 5, 11]
    ids, mask = np.full((2, 20), PAD), np.ones((2, 20), np.int64)
    mask[1, holes] = 0
    ids[0], ids[1, mask[1] == 1] = made.ids[0], made.ids[1, :16]
    if uses_gqa(folder):
        with pytest.raises(Exception, match=REFUSED):
            Session(folder)(ids, mask)
        return
    found = Session(folder)(ids, mask)
    assert_same(made.logits[0], found[0], TIGHT)
    assert_same(made.logits[1, :16], found[1, mask[1] == 1], TIGHT)


@pytest.mark.parametrize("graph", KINDS)
def test_names_and_shapes_are_those_that_optimum_and_genai_feed(graph: str) -> None:
    folder = exported(case("gqa").folder, f"onnx:f32@{graph}")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    inputs, outputs = _dims(model.graph.input), _dims(model.graph.output)
    layers = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert inputs == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "total"],
        **{f"past_key_values.{name}": ["batch", 2, "past", 16] for name in layers},
        "logits_to_keep": [1],
    }
    assert outputs == {
        "logits": ["batch", "tokens", 512],
        **{f"present.{name}": ["batch", 2, "total", 16] for name in layers},
    }
    # Neither needs position_ids; an input that has a default is no input that they must feed.
    assert [value.name for value in model.graph.initializer if value.name in inputs] == [
        "logits_to_keep"
    ]


def _dims(values: list[onnx.ValueInfoProto]) -> Mapping[str, list[str | int]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }
