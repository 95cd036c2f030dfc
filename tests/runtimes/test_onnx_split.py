"""Taking model.onnx apart and putting it together, beside the onnx package's own reading."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo

from emo_export.errors import EmoExportError
from emo_export.runtimes.ort.split import SplitModel, split_model, with_moved_data
from tests.kit.exporting import exported
from tests.kit.paths import NANO

TARGETS = ("onnx:int4", "onnx:int4@if")


def model_of(target: str) -> bytes:
    return (exported(NANO, target) / "model.onnx").read_bytes()


def external(model: onnx.ModelProto) -> dict[str, TensorProto]:
    tensors = model.graph.initializer
    return {t.name: t for t in tensors if t.data_location == TensorProto.EXTERNAL}


def takes(node: onnx.NodeProto) -> set[str]:
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return set(node.input).union(*(takes(inner) for graph in graphs for inner in graph.node))


@pytest.mark.parametrize("target", TARGETS)
def test_the_parts_make_the_model_again(target: str) -> None:
    raw = model_of(target)
    split, whole = split_model(raw), onnx.load_model_from_string(raw)
    assert split.weights.keys() == external(whole).keys()
    for name, tensor in external(whole).items():
        assert split.weights[name].nbytes == ExternalDataInfo(tensor).length
    again = onnx.load_model_from_string(
        split.with_constants(weight.constant for weight in split.weights.values())
    )
    # initializers inside the model now stand before the others: order means nothing
    for model in (again, whole):
        ordered = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
        del model.graph.initializer[:]
        model.graph.initializer.extend(ordered)
    assert again == whole


@pytest.mark.parametrize("target", TARGETS)
def test_weights_of_other_groups_become_inputs(target: str) -> None:
    raw = model_of(target)
    split, whole = split_model(raw), onnx.load_model_from_string(raw)
    groups = split.groups(2 << 20)
    assert len(groups) > 2
    assert sorted(name for names in groups for name in names) == sorted(split.weights)
    for node in whole.graph.node:
        wanted = takes(node) & split.weights.keys()
        assert sum(not wanted.isdisjoint(names) for names in groups) == bool(wanted)
    model = onnx.load_model_from_string(split.packing_only(groups[1]))
    assert external(model).keys() == set(groups[1])
    inputs = {value.name: value.type.tensor_type for value in model.graph.input}
    for name, tensor in external(whole).items():
        assert (name in inputs) == (name not in groups[1])
        if name in inputs:
            dims = [dim.dim_value for dim in inputs[name].shape.dim]
            assert (inputs[name].elem_type, dims) == (tensor.data_type, list(tensor.dims))


def test_a_large_limit_makes_one_group() -> None:
    assert len(split_model(model_of("onnx:int4")).groups(1 << 40)) == 1


def test_moved_data_keep_everything_else() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[3, 5])
    tensor.data_location = TensorProto.EXTERNAL
    entries = {
        "location": "a",
        "offset": "7",
        "length": "15",
        "checksum": "?",
        "prepacked_0": "MatMulNBits+12|40;9;0|50;4;0",
        "prepacked_1": "Gemm+3|60;8;0",
    }
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph = onnx.GraphProto(initializer=[tensor])
    seen: list[tuple[int, int]] = []

    def moved(offset: int, nbytes: int) -> int:
        seen.append((offset, nbytes))
        return 4096 * len(seen)

    found = onnx.GraphProto.FromString(with_moved_data(graph.SerializeToString(), "b", moved))
    (result,) = found.initializer
    assert {entry.key: entry.value for entry in result.external_data} == {
        "location": "b",
        "offset": "4096",
        "length": "15",
        "prepacked_0": "MatMulNBits+12|8192;9;0|12288;4;0",
        "prepacked_1": "Gemm+3|16384;8;0",
    }
    assert seen == [(7, 15), (40, 9), (50, 4), (60, 8)]
    assert (result.name, result.data_type, result.dims) == ("w", TensorProto.UINT8, [3, 5])
    for key in ("length", "prepacked_0"):
        tensor.external_data[list(entries).index(key)].value = "many"
        broken = onnx.GraphProto(initializer=[tensor]).SerializeToString()
        with pytest.raises(EmoExportError, match="external data"):
            with_moved_data(broken, "b", moved)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(model_of("onnx:int4"))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(1, len(raw))) :]
    with contextlib.suppress(EmoExportError):
        assert isinstance(split_model(bytes(raw)), SplitModel)


def test_no_graph_or_two_are_refused(tmp_path: Path) -> None:
    raw = model_of("onnx:int4")
    for content, count in ((b"", 0), (raw + raw, 2)):
        with pytest.raises(EmoExportError, match=f"there are {count} graphs"):
            split_model(content)
