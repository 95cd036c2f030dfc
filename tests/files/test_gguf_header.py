"""The GGUF header reader: equal to gguf-py on good files; bad ones are refused at once."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import (
    KEPT_ITEMS,
    MAX_DEPTH,
    MAX_NAME,
    GgufArray,
    GgufFile,
    read_gguf,
)
from emo_export.files.gguf_types import TENSOR_TYPES, VALUE_NAMES
from tests.kit.exporting import export_to
from tests.kit.fuzzing import read_or_refuse
from tests.kit.synth import make_checkpoint

HEAVY = {"torch", "onnx", "gguf", "transformers", "onnxruntime", "xllamacpp", "safetensors"}
STRING, ARRAY = 8, 9
FAST = settings(
    max_examples=40,
    deadline=500,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf_header")
    checkpoint = make_checkpoint(folder / "checkpoint", num_hidden_layers=1)
    return export_to(folder / "out", checkpoint, gguf=["f32", "q4_0"])


@pytest.fixture(scope="module")
def header(made: dict[str, Path]) -> bytes:
    """The header of a real file, and its size as a whole."""
    file = read_gguf(made["gguf:q4_0"])
    return made["gguf:q4_0"].read_bytes()[: file.data_offset]


# --- files built by hand -----------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def info(name: str, dims: list[int], kind: int = 0, offset: int = 0, n_dims: int = -1) -> bytes:
    count = len(dims) if n_dims < 0 else n_dims
    shape = struct.pack(f"<{len(dims)}Q", *dims)
    return text(name) + struct.pack("<I", count) + shape + struct.pack("<IQ", kind, offset)


def build(
    pairs: list[bytes],
    tensors: list[bytes],
    data: int = 0,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    n_tensors, n_pairs = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs)
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


def read(tmp_path: Path, raw: bytes) -> GgufFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    return read_gguf(path)


def refused(tmp_path: Path, raw: bytes) -> str:
    start = time.perf_counter()
    with pytest.raises(EmoExportError) as error:
        read(tmp_path, raw)
    assert time.perf_counter() - start < 1.0
    assert str(tmp_path / "x.gguf") in str(error.value)
    return str(error.value)


# --- good files --------------------------------------------------------------------------------


def test_type_tables_equal_ggufs() -> None:
    theirs = {int(k): (k.name, *sizes) for k, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert theirs == TENSOR_TYPES
    assert {int(k): k.name.lower() for k in gguf.GGUFValueType} == VALUE_NAMES


@pytest.mark.parametrize("target", ["gguf:f32", "gguf:q4_0"])
def test_reads_what_gguf_reads(made: dict[str, Path], target: str) -> None:
    ours, theirs = read_gguf(made[target]), gguf.GGUFReader(made[target])
    assert ours.data_offset == theirs.data_offset
    assert ours.alignment == theirs.alignment
    assert ours.size == made[target].stat().st_size
    for tensor, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert tensor.name == other.name
        assert tensor.shape == tuple(int(n) for n in reversed(other.shape))
        assert tensor.type == other.tensor_type.name
        assert (tensor.offset, tensor.nbytes) == (other.data_offset, other.n_bytes)
    fields = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert set(ours.keys) == set(fields)
    for key, value in ours.keys.items():
        if isinstance(value, GgufArray):
            assert value.length == len(fields[key]) > KEPT_ITEMS
            assert list(value.first) == fields[key][: len(value.first)]
        else:
            assert value == fields[key]


def test_every_value_type(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "test")
    values: dict[str, tuple[str, Any]] = {
        "uint8": ("add_uint8", 250),
        "int8": ("add_int8", -3),
        "uint16": ("add_uint16", 65000),
        "int16": ("add_int16", -30000),
        "uint32": ("add_uint32", 1 << 31),
        "int32": ("add_int32", -(1 << 30)),
        "uint64": ("add_uint64", 1 << 63),
        "int64": ("add_int64", -(1 << 62)),
        "float32": ("add_float32", 0.5),
        "float64": ("add_float64", 0.1),
        "bool": ("add_bool", True),
        "string": ("add_string", "größer ☃"),
        "ints": ("add_array", [1, -2, 3]),
        "strings": ("add_array", ["a", "", "ü"]),
        "bools": ("add_array", [True, False]),
    }
    for key, (method, value) in values.items():
        getattr(writer, method)(key, value)
    writer.add_custom_alignment(64)
    writer.add_tensor("x", np.zeros((3, 5), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "x.gguf")
    for key, (_, value) in values.items():
        assert file.keys[key] == value
    assert file.alignment == 64
    assert file.tensors[0].shape == (3, 5)


def test_nested_and_empty_arrays(tmp_path: Path) -> None:
    inner = array(4, 2, struct.pack("<II", 1, 2)) + array(STRING, 1, text("a"))
    file = read(tmp_path, build([pair("k", ARRAY, array(ARRAY, 2, inner))], []))
    assert file.keys == {"k": [[1, 2], ["a"]]}
    assert read(tmp_path, build([pair("k", ARRAY, array(STRING, 0, b""))], [])).keys == {"k": []}


def test_long_nested_arrays_are_walked(tmp_path: Path) -> None:
    inner = array(STRING, 1, text("abc")) * 1000
    pairs = [pair("k", ARRAY, array(ARRAY, 1000, inner)), pair("z", 0, b"\7")]
    file = read(tmp_path, build(pairs, []))
    assert file.keys["k"] == GgufArray("array", 1000, (["abc"],) * 4)
    assert file.keys["z"] == 7


def test_version_2_and_no_tensors(tmp_path: Path) -> None:
    file = read(tmp_path, build([pair("a", 0, b"\1")], [], version=2))
    assert (file.version, dict(file.keys), file.tensors) == (2, {"a": 1}, ())


def test_many_tokens_are_fast(tmp_path: Path) -> None:
    tokens = b"".join(text(f"token{i}") for i in range(100_352))
    raw = build([pair("t", ARRAY, array(STRING, 100_352, tokens)), pair("z", 0, b"\7")], [])
    start = time.perf_counter()
    file = read(tmp_path, raw)
    assert time.perf_counter() - start < 0.5
    assert file.keys["t"].length == 100_352
    assert file.keys["z"] == 7


# --- bad files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        # 43 bytes: sizes that gguf-py's reader loops over without looking at the file
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0) + bytes(19),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60) + bytes(19),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("key") + struct.pack("<II", ARRAY, 8),
        build([text("abc") + struct.pack("<I", 8) + struct.pack("<I", 1)], [])[:43],
    ],
)
def test_tiny_files_with_huge_counts_are_refused_at_once(tmp_path: Path, raw: bytes) -> None:
    assert len(raw) == 43
    refused(tmp_path, raw)


HUGE = (1 << 64) - 1
OK = info("x", [32, 2], 0, 0)
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not a GGUF file"),
    "magic": (b"GGML" + bytes(40), "is not a GGUF file"),
    "only magic": (b"GGUF", "version"),
    "version 1": (build([], [], version=1), "version 1"),
    "version 4": (build([], [], version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (build([], [], counts=(HUGE, 0)), "more than any model"),
    "key count": (build([], [], counts=(0, HUGE)), "more than any model"),
    "tensor count that is not there": (build([], [], counts=(1000, 0)), "1000 tensors"),
    "key count that is not there": (build([], [], counts=(0, 1000)), "1000 keys"),
    "key length": (build([struct.pack("<QI", HUGE, 0) + b"\0"], []), "bytes"),
    "key twice": (build([pair("a", 0, b"\1")] * 2, []), "twice"),
    "key not UTF-8": (build([text(b"\xff\xfe") + bytes(8)], []), "UTF-8"),
    "value type": (build([pair("a", 13, bytes(8))], []), "value type 13"),
    "string length": (build([pair("a", STRING, struct.pack("<Q", HUGE))], []), "bytes"),
    "string cut": (build([pair("a", STRING, struct.pack("<Q", 999) + b"a")], []), "999"),
    "boolean": (build([pair("a", 7, b"\2")], []), "boolean"),
    "array length": (build([pair("a", ARRAY, array(4, HUGE, b""))], []), "does not fit"),
    "array of strings": (build([pair("a", ARRAY, array(STRING, HUGE, b""))], []), "does not fit"),
    "array of arrays": (build([pair("a", ARRAY, array(ARRAY, HUGE, b""))], []), "does not fit"),
    "string in long array": (
        build(
            [pair("a", ARRAY, array(STRING, 999, text("a") * 998 + struct.pack("<Q", HUGE)))], []
        ),
        "does not fit",
    ),
    "array type": (build([pair("a", ARRAY, array(77, 0, b""))], []), "type 77"),
    "deep arrays": (
        build([pair("a", ARRAY, array(ARRAY, 1, b"") * MAX_DEPTH + array(0, 0, b""))], []),
        "arrays within arrays",
    ),
    "many arrays": (
        build([pair("a", ARRAY, array(ARRAY, 9000, array(0, 0, b"") * 9000))], []),
        "arrays within arrays",
    ),
    "alignment 0": (build([pair("general.alignment", 4, bytes(4))], []), "power of two"),
    "alignment 24": (build([pair("general.alignment", 4, b"\x18\0\0\0")], []), "power of two"),
    "alignment text": (build([pair("general.alignment", STRING, text("x"))], []), "power of two"),
    "name too long": (build([], [info("x" * (MAX_NAME + 1), [4])], 16), f"{MAX_NAME}"),
    "no dimensions": (build([], [info("x", [], n_dims=0)], 16), "0 dimensions"),
    "five dimensions": (build([], [info("x", [1] * 5)], 16), "5 dimensions"),
    "dimension count": (build([], [info("x", [1], n_dims=0xFFFFFFFF)], 16), "dimensions"),
    "dimension 0": (build([], [info("x", [0])], 16), "no whole blocks"),
    "dimension huge": (build([], [info("x", [HUGE, HUGE, HUGE, HUGE])], 16), "truncated"),
    "tensor type": (build([], [info("x", [32], 31)], 128), "type 31"),
    "block": (build([], [info("x", [33], 2)], 128), "multiple of 32"),
    "tensor past the end": (build([], [OK], 255), "truncated"),
    "offset past the end": (build([], [info("x", [4], 0, 1 << 63)], 256), "truncated"),
    "offset not aligned": (build([], [info("x", [4], 0, 16)], 256), "not aligned"),
    "overlap": (build([], [OK, info("y", [4], 0, 32)], 512), "overlaps"),
    "name twice": (build([], [OK, info("x", [4], 0, 256)], 512), "twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_headers_are_refused(tmp_path: Path, name: str) -> None:
    raw, reason = BAD[name]
    assert reason in refused(tmp_path, raw)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(EmoExportError, match=r"is a folder|there is no file"):
            read_gguf(path)


def test_a_truncated_file_is_refused_wherever_it_ends(
    made: dict[str, Path], tmp_path: Path
) -> None:
    whole = made["gguf:q4_0"].read_bytes()
    last = max(t.offset + t.nbytes for t in read_gguf(made["gguf:q4_0"]).tensors)
    for size in (0, 3, 4, 20, 100, 1000, 5000, last // 2, last - 1):
        refused(tmp_path, whole[:size])


@FAST
@given(data=st.data())
def test_flipped_bytes_never_do_harm(header: bytes, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(header)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1) | st.integers(0, 1500))
        raw[place] = data.draw(st.sampled_from([0, 1, 9, 127, 128, 255]) | st.integers(0, 255))
    read_or_refuse(read_gguf, tmp_path / "x.gguf", bytes(raw) + bytes(400_000))


@FAST
@given(data=st.data())
def test_cut_and_random_headers_never_do_harm(
    header: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(header)))
    read_or_refuse(read_gguf, tmp_path / "x.gguf", header[:cut] + data.draw(st.binary(max_size=64)))
    head = b"GGUF" + struct.pack(
        "<IQQ", 3, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    )
    read_or_refuse(read_gguf, tmp_path / "x.gguf", head + data.draw(st.binary(max_size=400)))


@pytest.mark.parametrize(
    "module",
    "files.gguf_header inspect.judgement files.onnx_header inspect.view bench.doctor".split(),
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, emo_export.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert HEAVY.isdisjoint(loaded)
    assert not any(n.startswith(("emo_export.converters", "emo_export.runtimes")) for n in loaded)
