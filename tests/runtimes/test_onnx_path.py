"""The arithmetic that ONNX Runtime's kernels are found to have, and the models it is found with."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from emo_export.runtimes.ort import path as onnx_path
from emo_export.runtimes.ort.onnx_bytes import one_node_model
from emo_export.runtimes.ort.path import (
    BLOCKS,
    FLOAT,
    NOT_RUN,
    OTHER,
    TABLES,
    TOKENS,
    Weights,
    judged,
    nbits_paths,
)


def test_every_kernel_of_this_onnxruntime_is_known() -> None:
    found = nbits_paths()
    assert list(found) == [
        f"{name} {b} bits" for name in ("MatMulNBits", "QMoE") for b in (2, 4, 8)
    ]
    # True of x86-64 with AVX2 and of Arm with dot product, where these tests run; at 2 bits not all
    # of them have a kernel for MatMulNBits.
    assert found.pop("QMoE 2 bits") == (TABLES if platform.machine() == "x86_64" else FLOAT)
    assert found.pop("MatMulNBits 2 bits") in (FLOAT, BLOCKS, TOKENS)
    assert all(said.startswith("int8 activations, a scale per ") for said in found.values()), found


def test_float_kernels_are_told_from_int8_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**onnx_path._SETTINGS, "accuracy_level": 0}
    monkeypatch.setattr(onnx_path, "_SETTINGS", settings)
    found = nbits_paths()
    assert found["MatMulNBits 4 bits"] == found["MatMulNBits 8 bits"] == FLOAT
    assert found["QMoE 4 bits"] == FLOAT


def test_an_operator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_path, "_SETTINGS", {**onnx_path._SETTINGS, "next": 1})
    assert set(nbits_paths().values()) == {NOT_RUN}


def test_another_arithmetic_is_not_called_by_a_known_name() -> None:
    x = np.random.default_rng(0).standard_normal((3, 256))
    same = Weights(4, np.eye(256), np.ones((256, 2), np.float32))
    assert judged(x.astype(np.float32), lambda product: product(x, same)) == FLOAT
    coarse = (np.rint(x * 8) / 8).astype(np.float32)
    assert judged(coarse, lambda product: product(x, same)) == OTHER
    nothing = np.full((3, 256), np.nan, np.float32)
    assert judged(nothing, lambda product: product(x, same)) == OTHER


def test_the_bytes_are_the_model_that_onnx_reads() -> None:
    weights = {
        "w": np.arange(300, dtype=np.uint8).reshape(3, 2, 50),
        "s": np.array([[0.5, -2.0]], np.float32),
    }
    attributes = {"K": 256, "k": 0, "alpha": 1.5, "kind": "swiglu"}
    model = onnx.load_from_string(
        one_node_model("com.microsoft", "Some", ["x", "w", "", "s", "r"], attributes, weights)
    )
    onnx.checker.check_model(model)
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == ("com.microsoft", "Some")
    assert (list(node.input), list(node.output)) == (["x", "w", "", "s", "r"], ["y"])
    read = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert read == {**attributes, "kind": b"swiglu"}
    for tensor in model.graph.initializer:
        stored = numpy_helper.to_array(tensor)
        assert stored.dtype == weights[tensor.name].dtype
        np.testing.assert_array_equal(stored, weights[tensor.name])
    assert [value.name for value in model.graph.input] == ["x", "r"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert len(value.type.tensor_type.shape.dim) == 2
    assert {entry.domain: entry.version for entry in model.opset_import} == {
        "": 17,
        "com.microsoft": 1,
    }


def test_it_needs_numpy_and_onnxruntime_only() -> None:
    script = (
        "import sys; from emo_export.runtimes.ort.path import nbits_paths; nbits_paths();"
        "print(*sorted({'onnx', 'torch', 'transformers', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
