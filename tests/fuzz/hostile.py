"""Hostile files, made by hand: for each reader, by what is wrong with them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping

import numpy as np

from tests.fuzz.readers import CONFIG, GOLDEN_NAMES, RESUME_NAMES, kept, npz_of
from tests.fuzz.seeds import SWEEP, TOKENIZER, golden_members, member, onnx_file, safetensors_file

HUGE, DEEP = b"9" * 5000, 100_000


def shard(entries: object) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


def tensor(shape: object, begin: object, end: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def gguf(tensors: int, keys: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes, dims: list[int], offset: int) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + shape + struct.pack("<IQ", 0, offset)


def arrays(kind: int, count: int, items: bytes, depth: int = 0) -> bytes:
    inner = struct.pack("<IQ", kind, count) + items
    for _ in range(depth):
        inner = struct.pack("<IQ", 9, 1) + inner
    return text(b"k") + struct.pack("<I", 9) + inner


def npy(header: str, content: bytes = b"") -> bytes:
    raw = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw + content


def framed(names: list[str], name: str, content: bytes, packed: int = 0) -> bytes:
    return bytes([names.index(name)]) + struct.pack(">H", len(content)) + bytes([packed]) + content


def claims(shape: str, kind: str = "<f4") -> bytes:
    return npy(f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}")


def golden_with(content: bytes) -> bytes:
    """A golden.npz whose token ids are in another .npy."""
    return framed(GOLDEN_NAMES, "input_ids.npy", content) + golden_members()


def location(old: str, new: str) -> bytes:
    """The graph with its weights elsewhere, in a name of as many bytes."""
    changed = onnx_file().replace(old.encode(), new.encode())
    assert changed != onnx_file() and len(old) == len(new)
    return changed


def tokenizer(**changed: object) -> bytes:
    return json.dumps({**TOKENIZER, **changed}).encode()


def split_by(regex: str) -> bytes:
    step = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return tokenizer(pre_tokenizer=step)


def config(**changed: object) -> bytes:
    return json.dumps({**json.loads(CONFIG), **changed}).encode()


CASES: Mapping[str, Mapping[str, Callable[[], bytes] | bytes]] = {
    "json": {
        "deep": lambda: b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}",
        "deep, and read": b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
        "a key twice": b'{"a": 1, "a": 2}',
        "many values": lambda: b'{"a":[' + b"{}," * 600_000 + b"{}]}",
        "large": lambda: b'{"a": "' + b"x" * (17 << 20) + b'"}',
        "a number of 5000 digits": b'{"a": ' + HUGE + b"}",
        "not UTF-8": b'{"a": "\xff"}',
        "a list": b"[]",
        "truncated": b'{"a": ',
    },
    "safetensors": {
        "truncated": lambda: safetensors_file()[:-1],
        "shorter than its length": b"\1\2",
        "header longer than the file": struct.pack("<Q", 1 << 40) + b"{}",
        "negative": lambda: shard({"a": tensor([-2, 3], 0, 24)}),
        "wrapped": lambda: shard({"a": tensor([2, 3], (1 << 64) - 24, 1 << 64)}),
        "wrapped shape": lambda: shard({"a": tensor([1 << 62, 4], 0, 0)}),
        "digits": lambda: shard(
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-'
            + b"9" * 4290
            + b", "
            + b"9" * 4290
            + b"]}}"
        ),
        "many dimensions": lambda: shard({"a": tensor([10**4000] * 400, 0, 24)}),
        "overlapping": lambda: shard({"a": tensor([6], 0, 24), "b": tensor([3], 12, 24)}),
        "a hole": lambda: shard({"a": tensor([3], 12, 24)}),
        "a name twice": lambda: shard(
            b'{"a":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},'
            b'"a":{"dtype":"I64","shape":[3],"data_offsets":[0,24]}}'
        ),
        "deep": lambda: shard(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
        "a huge count": lambda: shard(b'{"a":{"shape":[' + b"1," * 1_300_000 + b"1]}}"),
    },
    "index": {
        "above": b'{"weight_map": {"x": "../a.safetensors"}}',
        "absolute": b'{"weight_map": {"x": "/etc/passwd"}}',
        "a folder": b'{"weight_map": {"x": "."}}',
        "not there": b'{"weight_map": {"x": "c.safetensors"}}',
        "a long name": lambda: json.dumps({"weight_map": {"x": "a" * 5000}}).encode(),
        "a zero byte": b'{"weight_map": {"x": "a\\u0000"}}',
    },
    "config": {
        "experts": lambda: config(num_hidden_layers=4096, num_experts=65536),
        "layers": lambda: config(num_hidden_layers=1 << 40),
        "negative": lambda: config(hidden_size=-4),
        "digits": lambda: CONFIG.replace(b'"hidden_size": 4', b'"hidden_size": 1' + b"0" * 4000),
        "deep": lambda: config(rope_scaling=json.loads("[" * 60 + "]" * 60)),
        "a long text": lambda: config(hidden_act="x" * (1 << 20)),
    },
    "gguf": {
        "truncated": b"GGUF\3\0\0\0",
        "tensors": gguf(1 << 63, 0, b""),
        "keys": gguf(0, (1 << 64) - 1, b""),
        "a long key": gguf(0, 1, struct.pack("<Q", (1 << 64) - 1)),
        "an array": gguf(0, 1, arrays(4, 1 << 62, b"")),
        "many strings": lambda: gguf(0, 1, arrays(8, 1_600_000, bytes(8 * 1_600_000))),
        "many values": lambda: gguf(0, 1, arrays(0, 2_000_000, bytes(2_000_000))),
        "deep": gguf(0, 1, arrays(9, 1, b"", depth=60)),
        "a key twice": gguf(0, 2, 2 * (text(b"k") + struct.pack("<II", 4, 1))),
        "a tensor twice": gguf(2, 0, info(b"t", [8], 0) + info(b"t", [8], 32) + bytes(128)),
        "overlapping": gguf(2, 0, info(b"a", [8], 0) + info(b"b", [8], 0) + bytes(128)),
        "wrapped offset": gguf(1, 0, info(b"a", [8], (1 << 64) - 32) + bytes(64)),
        "wrapped shape": gguf(1, 0, info(b"a", [1 << 63, 1 << 63, 8, 8], 0) + bytes(64)),
        "no rows": gguf(1, 0, info(b"a", [0], 0) + bytes(64)),
        "many tensors": lambda: gguf(16_384, 0, 16_384 * info(b"a", [8], 0)),
        "a long text": lambda: gguf(0, 1, text(b"k") + struct.pack("<I", 8) + text(bytes(2 << 20))),
    },
    "onnx": {
        "truncated": lambda: onnx_file()[:-3],
        "above": lambda: location("model.onnx.data", "../nnx.data.abc"),
        "absolute": lambda: location("model.onnx.data", "/etc/ssl/passwd"),
        "a folder": lambda: location("model.onnx.data", "./././././././."),
        "offset": lambda: location("64", "-9"),
        "beyond the end": lambda: location("64", "99"),
        "a length of 2**63": b"\x3a" + b"\xff" * 8 + b"\x7f",
        "a long number": b"\x08" + b"\xff" * 11,
        "many fields": lambda: b"\x08\x08" * 300_000,
        "many dimensions": lambda: (
            b"\x08\x08\x42\x02\x10\x01\x3a\x84\x80\x80\x04\x2a\x80\x80\x80\x04"
            + b"\x0a\xf8\xff\xff\x03"
            + b"\1" * ((8 << 20) - 8)
            + bytes(4)
        ),
        "deep": lambda: nested(100),
    },
    "golden": {
        "2**60 elements": golden_with(claims(f"({1 << 60},)")),
        "2**40 elements": golden_with(claims(f"({1 << 40},)")),
        "negative": golden_with(claims("(-1, -8)")),
        "wrapped": golden_with(claims(f"({1 << 62}, 4)")),
        "digits": golden_with(claims("(" + "9" * 90 + ",)")),
        "objects": golden_with(claims("(1,)", "|O")),
        "records": golden_with(
            npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}")
        ),
        "deep": golden_with(npy("(" * 100)),
        "no text": lambda: golden_with(claims("()", "<U1") + b"\xff\xff\xff\x7f"),
        "no header": golden_with(b"\x93NUMPY\1\0\xff\xff"),
        "a name twice": lambda: golden_members() * 2,
    },
    "zip": {
        "a bomb": lambda: bomb(),
        "truncated": lambda: npz_of(golden_members())[:-30],
        "a large directory": lambda: (
            npz_of(golden_members())[:-10] + struct.pack("<LLH", 1 << 30, 0, 0)
        ),
        "no directory": b"PK\5\6" + bytes(18),
    },
    "resume": {
        "above": lambda: member(RESUME_NAMES, "files", np.array('["../../outside"]'), 128),
    },
    "tokenizer": {
        "deep": lambda: tokenizer(normalizer=json.loads("[" * 60 + "]" * 60)),
        "sequences": lambda: tokenizer(normalizer=sequences(20)),
        "a table": lambda: tokenizer(
            normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
        ),
        "a repeated group": lambda: split_by(r"(\p{L}+)+$"),
        "many parts": lambda: split_by(r"\s*\s*\s*\s*\s*\s*x"),
        "a reference": lambda: split_by(r"(a*)\1"),
        "no expression": lambda: split_by("(((("),
        "negative": lambda: tokenizer(model={**TOKENIZER["model"], "vocab": {"a": -1}}),
        "a huge id": lambda: tokenizer(model={**TOKENIZER["model"], "vocab": {"a": 1 << 40}}),
        "no model": lambda: tokenizer(model=None),
    },
    "sweep": {
        "deep": lambda: b"a = " + b"[" * DEEP,
        "digits": b"keep = " + HUGE,
        "large": lambda: b"a = 1\n" * (1 << 18),
        "no home": lambda: SWEEP.replace('"."', '"~."').encode(),
        "a long name": lambda: SWEEP.replace('"."', f'"{"a" * 5000}"').encode(),
        "an exponent": lambda: SWEEP.replace('"50%"', '"1e99999999999"').encode(),
    },
    "text": {
        "deep": lambda: b'{"text": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        "not text": b'{"text": 1}',
        "no line": lambda: b'{"text": "' + b"x" * (17 << 20),
    },
    "manifest": {
        "above": lambda: READERS_MANIFEST.replace(b'"m.gguf"', b'"../../x"'),
        "absolute": lambda: READERS_MANIFEST.replace(b'"m.gguf"', b'"/etc/passwd"'),
        "deep": lambda: b'{"version": 1, "source": ' + b"[" * DEEP,
    },
}
LARGE = {("onnx", "many fields"), ("gguf", "many tensors"), ("safetensors", "many dimensions")}
READERS_MANIFEST = kept("manifest")[-1]


def nested(depth: int) -> bytes:
    """Graphs within graphs."""
    inner = b""
    for _ in range(depth):
        for number in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            inner = bytes([number << 3 | 2]) + varint(len(inner)) + inner
    return b"\x08\x08\x42\x02\x10\x01\x3a" + varint(len(inner)) + inner


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def sequences(depth: int) -> dict[str, object]:
    inner: dict[str, object] = {"type": "Nothing"}
    for _ in range(depth):
        inner = {"type": "Sequence", "normalizers": [inner]}
    return inner


def bomb() -> bytes:
    """Eighty members, each of which inflates to a thousand times its bytes."""
    content = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1048576,)}", bytes(1 << 20))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(80):
            archive.writestr(f"{number}.npy", content)
    return out.getvalue()
