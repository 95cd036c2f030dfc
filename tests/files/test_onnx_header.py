"""The ONNX header reader: equal to the onnx package on good files; bad ones are refused."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from emo_export.errors import EmoExportError
from emo_export.files.onnx_header import ELEMENTS, MAX_DEPTH, OnnxFile, read_onnx
from tests.kit.exporting import export_to
from tests.kit.fuzzing import read_or_refuse
from tests.kit.synth import make_checkpoint

FAST = settings(
    max_examples=40,
    deadline=500,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx_header")
    plain = make_checkpoint(folder / "plain", num_hidden_layers=1)
    tied = make_checkpoint(folder / "tied", num_hidden_layers=1, tie_word_embeddings=True)
    out = export_to(folder / "out", plain, onnx=["f32", "int4"])
    return out | {"tied": export_to(folder / "tied_out", tied, onnx=["int8"])["onnx:int8"]}


@pytest.fixture(scope="module")
def raw(made: dict[str, Path]) -> bytes:
    return (made["onnx:int4"] / "model.onnx").read_bytes()


def read(tmp_path: Path, content: bytes) -> OnnxFile:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    return read_onnx(path)


def refused(tmp_path: Path, content: bytes) -> str:
    start = time.perf_counter()
    with pytest.raises(EmoExportError) as error:
        read(tmp_path, content)
    assert time.perf_counter() - start < 1.0
    assert str(tmp_path / "model.onnx") in str(error.value)
    return str(error.value)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from nodes_of(inner)


def compare(ours: OnnxFile, model: onnx.ModelProto) -> None:
    assert ours.ir_version == model.ir_version
    assert ours.producer == model.producer_name
    assert ours.opsets == {entry.domain: entry.version for entry in model.opset_import}
    assert ours.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert ours.inputs == [value.name for value in model.graph.input]
    assert ours.outputs == [value.name for value in model.graph.output]
    ops = (f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes_of(model.graph))
    assert ours.ops == Counter(ops)
    names = [tensor.name for tensor in model.graph.initializer]
    assert [t.name for t in ours.initializers if t.name in set(names)] == names
    theirs = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in (t for t in ours.initializers if t.name in theirs):
        other = theirs[tensor.name]
        assert tensor.shape == tuple(other.dims)
        assert tensor.type == TensorProto.DataType.Name(other.data_type)
        entries = {entry.key: entry.value for entry in other.external_data}
        assert tensor.location == entries.get("location", "")
        assert tensor.offset == int(entries.get("offset", 0))
        assert tensor.length == int(entries.get("length", tensor.nbytes))


@pytest.mark.parametrize("name", ["onnx:f32", "onnx:int4", "tied"])
def test_reads_what_onnx_reads(made: dict[str, Path], name: str) -> None:
    path = made[name] / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    ours = read_onnx(path)
    compare(ours, model)
    assert any(tensor.location for tensor in ours.initializers)
    assert ours.size == path.stat().st_size


def test_sizes_equal_the_arrays(made: dict[str, Path]) -> None:
    path = made["onnx:int4"] / "model.onnx"
    model = onnx.load(path)
    sizes = {t.name: numpy_helper.to_array(t).nbytes for t in model.graph.initializer}
    assert {t.name: t.nbytes for t in read_onnx(path).initializers} == sizes


def test_element_types_equal_onnxs() -> None:
    for number, (name, bits) in ELEMENTS.items():
        assert TensorProto.DataType.Name(number) == name
        if bits >= 8 and not name.startswith("FLOAT8"):
            assert helper.tensor_dtype_to_np_dtype(number).itemsize * 8 == bits


def branching(depth: int) -> onnx.ModelProto:
    """`If` within `If`, with a weight in the innermost branch."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    weight = numpy_helper.from_array(np.ones(2, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Relu", ["w"], ["y"])], "g", [], [out], [weight])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([node], "g", [], [out])
    graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])


def test_inner_graphs_count(tmp_path: Path) -> None:
    ours = read(tmp_path, branching(3).SerializeToString())
    compare(ours, branching(3))
    assert ours.ops == {"If": 1 + 2 + 4, "Relu": 8}
    assert len(ours.initializers) == 8
    assert (ours.inputs, ours.outputs) == (["c"], ["y"])


def test_graphs_too_deep_are_refused(tmp_path: Path) -> None:
    assert "nested deeper" in refused(tmp_path, branching(MAX_DEPTH + 1).SerializeToString())


# --- bad files ---------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


OPSET = field(8, field(2, 21))
HEAD = field(1, 10) + OPSET


def model(tensor: bytes) -> bytes:
    return HEAD + field(7, field(5, tensor))


def external(**entries: str) -> bytes:
    pairs = [field(1, k.encode()) + field(2, v.encode()) for k, v in entries.items()]
    return field(2, 1) + field(8, b"w") + b"".join(field(13, p) for p in pairs) + field(14, 1)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no file of"),
    "no model": (field(100, 1), "holds no ONNX model"),
    "no graph": (HEAD, "holds no ONNX model"),
    "two graphs": (HEAD + field(7, b"") * 2, "holds no ONNX model"),
    "no opset": (field(1, 10) + field(7, b""), "holds no ONNX model"),
    "graph is a number": (HEAD + field(7, 5), "where bytes belong"),
    "version is bytes": (field(1, b"ab") + OPSET + field(7, b""), "where a number belongs"),
    "group": (HEAD + bytes([9 << 3 | 3]), "not one of an ONNX model"),
    "field 0": (HEAD + bytes([0, 1]), "not one of an ONNX model"),
    "length past the end": (HEAD + bytes([7 << 3 | 2]) + varint(1 << 60), "runs past"),
    "number without end": (HEAD + b"\x80" * 5, "has no end"),
    "number too long": (HEAD + b"\xff" * 30, "has no end"),
    "fixed64 cut": (HEAD + bytes([99 << 3 & 127 | 1]) + b"\0" * 3, ""),
    "not UTF-8": (HEAD + field(2, b"\xff\xfe") + field(7, b""), "UTF-8"),
    "element type": (model(field(2, 99) + field(8, b"w")), "type 99"),
    "negative dimension": (model(field(1, (1 << 64) - 1) + field(2, 1)), "shape"),
    "rank": (model(field(1, 2) * 40 + field(2, 1)), "shape"),
    "packed rank": (model(field(1, b"\2" * 40) + field(2, 1)), "shape"),
    "no location": (model(external(offset="0")), "external data"),
    "negative offset": (model(external(location="d", offset="-1")), "external data"),
    "offset of other digits": (model(external(location="d", offset="\u0661")), "external data"),
    "empty length": (model(external(location="d", length="")), "external data"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    assert reason in refused(tmp_path, content)


def test_packed_and_single_dimensions_are_the_same(tmp_path: Path) -> None:
    rest = field(2, 1) + field(8, b"w")
    packed = read(tmp_path, model(field(1, varint(3) + varint(300)) + rest))
    single = read(tmp_path, model(field(1, 3) + field(1, 300) + rest))
    assert packed == single
    assert packed.initializers[0].nbytes == 3600


def test_more_fields_than_a_model_has_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emo_export.files.onnx_header.MAX_FIELDS", 1000)
    assert "not one of" in refused(tmp_path, HEAD + field(7, b"") + b"\x30\x00" * 1001)


def test_weights_inside_are_stepped_over(tmp_path: Path) -> None:
    content = model(
        field(1, 5_000_000) + field(2, 1) + field(8, b"w") + field(9, bytes(20_000_000))
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    start = time.perf_counter()
    assert read_onnx(path).initializers[0].nbytes == 20_000_000
    assert time.perf_counter() - start < 0.5


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.onnx"):
        with pytest.raises(EmoExportError, match=r"is a folder|there is no file"):
            read_onnx(path)


@FAST
@given(data=st.data())
def test_flipped_bytes_never_do_harm(raw: bytes, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, 20))
        content[place] = data.draw(st.sampled_from([0, 7, 127, 128, 255]) | st.integers(0, 255))
    read_or_refuse(read_onnx, tmp_path / "model.onnx", bytes(content))


@FAST
@given(data=st.data())
def test_cut_and_random_files_never_do_harm(
    raw: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(raw)))
    read_or_refuse(
        read_onnx, tmp_path / "model.onnx", raw[:cut] + data.draw(st.binary(max_size=64))
    )
    read_or_refuse(
        read_onnx, tmp_path / "model.onnx", HEAD + field(7, data.draw(st.binary(max_size=300)))
    )
