"""Drift of a quantised model's inputs against the oracle, which runs both models by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.line import Line, Output
from emo_export.pipeline import stream
from emo_export.reference.calibrate import BORROWED, Calibration
from emo_export.reference.drift import Original
from emo_export.spec import ONNX, Spec
from tests.kit.calibrating import Asking, Packing, Told, stored
from tests.kit.exporting import Array, case, dequantised_source, open_product
from tests.kit.oracle import F64, Weights, _sequence
from tests.kit.tiers import slow_beyond

# The own calibration has the second and third of them.
SEQUENCES = [np.random.default_rng(8).integers(0, 500, n) for n in (9, 21, 30)]
DRAWN = [1, 2]


class Placing(Weights):
    """The oracle's weights, which keep what each was multiplied by, by token."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder
        self.inputs: dict[str, dict[int, F64]] = {}
        self._first = self._token = 0
        self._normed: F64 = np.zeros((0, 0))

    def run(self, sequences: list[Array]) -> None:
        config = json.loads((self._folder / "config.json").read_text("utf-8"))
        for ids in sequences:
            _sequence(config, self, ids)
            self._first += len(ids)

    def linear(self, name: str, x: F64, bias: bool = False) -> F64:
        kept = self.inputs.setdefault(f"{name}.weight", {})
        if x.ndim == 2:  # of all tokens of a sequence
            kept.update(enumerate(x, self._first))
            self._normed = x
        else:
            if not name.endswith("down_proj"):  # which follows gate and up of its token
                self._token = int((self._normed == x).all(axis=1).argmax())
            kept[self._first + self._token] = x
        return super().linear(name, x, bias)


@pytest.mark.parametrize("name", slow_beyond(["mha"], ["mha", "dense_first_bias", "always_active"]))
def test_it_is_the_oracles(name: str, tmp_path: Path) -> None:
    folder = case(name).folder
    product = open_product(folder)
    scheme = onnx_scheme(Spec(ONNX, "int4"), product.config)
    whole = Calibration(product.config, SEQUENCES, "a text")
    original = Original(whole.states, whole.states.tokens_of(DRAWN))
    told = Told(product.config, [SEQUENCES[at] for at in DRAWN], original)
    output = Output(Packing(scheme), whole, told, Asking)
    stream([Line(product, [output], [whole])])

    made = stored(tmp_path / "stored", product, dequantised_source(product, scheme))
    ours, theirs = Placing(made), Placing(folder)
    for each in (ours, theirs):
        each.run([SEQUENCES[at] for at in DRAWN])

    parted = 0
    for matrix, told_of in told.of.items():
        own, other = ours.inputs.get(matrix, {}), theirs.inputs.get(matrix, {})
        if ".experts." in matrix and "down_proj" not in matrix:
            other = theirs.inputs[matrix.split(".experts.")[0] + ".gate.weight"]
        assert told_of.diagonal is not None
        width = len(told_of.diagonal)
        want = np.zeros((width, width))
        for token, x in own.items():
            parted += token not in other
            want += np.outer(other.get(token, x) - x, x)
        assert told_of.drift is not None and told_of.tokens == len(own)
        want /= len(own) + BORROWED * width
        limit = 1e-3 * np.abs(want).max() + 1e-6
        np.testing.assert_allclose(told_of.drift, want, 1e-2, limit, err_msg=matrix)
    assert parted or name == "dense_first_bias"  # tokens that only one of them gave an expert


def test_a_calibration_of_the_float_model_tells_of_none() -> None:
    product = open_product(case("mha").folder)
    told = Told(product.config, SEQUENCES)
    scheme = onnx_scheme(Spec(ONNX, "int4"), product.config)
    stream([Line(product, [Output(Packing(scheme), told, None, Asking)], [told])])
    assert told.of and all(one.drift is None for one in told.of.values())
    assert torch.equal(told.states.tokens_of([2, 0]), torch.tensor([*range(30, 60), *range(9)]))
