"""Damaged checkpoints: each is refused by the name of its file and, where one is, its tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import INDEX, SINGLE, Checkpoint
from tests.kit.synth import make_checkpoint

DOWN = "model.layers.1.mlp.experts.3.down_proj.weight"  # (64, 32) in a synthetic checkpoint
NORM = "model.norm.weight"
SHARD_2 = "model-00002-of-00003.safetensors"


def _refusal(folder: Path, *named: str) -> None:
    with pytest.raises(EmoExportError) as caught:
        Checkpoint.open(folder)
    for words in named:
        assert words in str(caught.value)


def _with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    file = folder / SINGLE
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return file


def _with_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    changed = change(header)
    text = json.dumps(header if changed is None else changed).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


TENSORS: dict[str, tuple[str, Any]] = {
    "missing": (DOWN, None),
    "missing vector": (NORM, None),
    "extra expert": ("model.layers.0.mlp.experts.8.up_proj.weight", torch.zeros(32, 64)),
    "extra q norm": ("model.layers.0.self_attn.q_norm.weight", torch.ones(64)),
    "extra bias": ("model.layers.0.self_attn.q_proj.bias", torch.ones(64)),
    "transposed": (DOWN, torch.zeros(32, 64)),
    "flat": (DOWN, torch.zeros(64 * 32)),
    "three dimensions": (DOWN, torch.zeros(1, 64, 32)),
    "one row more": (NORM, torch.zeros(65)),
    "no rows": (DOWN, torch.zeros(0, 32)),
    "integers": (DOWN, torch.zeros(64, 32, dtype=torch.int64)),
    "float8": (DOWN, torch.zeros(64, 32).to(torch.float8_e4m3fn)),
}


@pytest.mark.parametrize("case", TENSORS)
def test_a_wrong_tensor_is_named(case: str, synth: Path) -> None:
    name, tensor = TENSORS[case]

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor

    file = _with_tensors(synth, change)
    _refusal(synth, str(file), name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf]], ids=str)
def test_a_value_that_is_no_number_is_named(dtype: str, bad: list[float], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, dtype=dtype)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN][5, : len(bad)] = torch.tensor(bad)

    file = _with_tensors(folder, change)
    tensor = Checkpoint.open(folder)[DOWN]
    assert tensor.rows(0, 5).shape == tensor.rows(6, 11).shape == (5, 32)
    with pytest.raises(EmoExportError) as caught:
        tensor.rows(4, 7)
    assert str(file) in str(caught.value)
    assert DOWN in str(caught.value)


def test_large_values_are_numbers(synth: Path) -> None:
    """Finite values whose float32 sum is not: a check by summing must not refuse them."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[DOWN][:] = 3e38

    _with_tensors(synth, change)
    assert Checkpoint.open(synth)[DOWN].rows(0, 64).min() == np.float32(3e38)


@pytest.mark.parametrize("where", ["nothing", "prefix", "header", "data", "last byte", "longer"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_file_of_the_wrong_length_is_named(where: str, shards: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, shards=shards)
    file = folder / (SINGLE if shards == 1 else SHARD_2)
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = {"nothing": 0, "prefix": 5, "header": header // 2, "data": header + 100}
    cut = cuts.get(where, len(whole) - 1)
    file.write_bytes(whole + b"\0" * 8 if where == "longer" else whole[:cut])
    _refusal(folder, str(file))


def test_a_file_cut_after_opening_is_named(synth: Path) -> None:
    checkpoint = Checkpoint.open(synth)
    last = max(checkpoint.values(), key=lambda tensor: tensor.offset)
    file = synth / SINGLE
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(EmoExportError) as caught:
        last.rows(0, last.shape[0] if len(last.shape) > 1 else 1)
    assert str(file) in str(caught.value)
    assert last.name in str(caught.value)
    file.unlink()
    with pytest.raises(EmoExportError) as caught:
        last.rows(0, 1)
    assert str(file) in str(caught.value)


# What becomes of DOWN's entry in the header (dtype, shape, data_offsets).
ENTRIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "null": lambda e: None,
    "list": lambda e: [1, 2],
    "text": lambda e: "F32",
    "no dtype": lambda e: {k: v for k, v in e.items() if k != "dtype"},
    "no shape": lambda e: {k: v for k, v in e.items() if k != "shape"},
    "no offsets": lambda e: {k: v for k, v in e.items() if k != "data_offsets"},
    "null shape": lambda e: e | {"shape": None},
    "text shape": lambda e: e | {"shape": ["64", "32"]},
    "fractions": lambda e: e | {"shape": [64.9, 32.9]},
    "infinite shape": lambda e: e | {"shape": [float("inf"), 32]},
    "negative shape": lambda e: e | {"shape": [-64, -32]},
    "flag shape": lambda e: e | {"shape": [True, 2048]},
    "scalar": lambda e: e | {"shape": []},
    "one offset": lambda e: e | {"data_offsets": [0]},
    "infinite offsets": lambda e: e | {"data_offsets": [0, float("inf")]},
    "negative offsets": lambda e: e | {"data_offsets": [-8192, 0]},
    "reversed offsets": lambda e: e | {"data_offsets": e["data_offsets"][::-1]},
    "past the end": lambda e: e | {"data_offsets": [10**12, 10**12 + 8192]},
    "overlap": lambda e: e | {"data_offsets": [o - 16 for o in e["data_offsets"]]},
    "strange dtype": lambda e: e | {"dtype": "F32\n"},
    "list dtype": lambda e: e | {"dtype": ["F32"]},
}


@pytest.mark.parametrize("case", ENTRIES)
def test_a_malformed_header_entry_is_named(case: str, synth: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header[DOWN] = ENTRIES[case](header[DOWN])

    _with_header(synth / SINGLE, change)
    # An overlap is a matter of two tensors: either may be the one named.
    _refusal(synth, str(synth / SINGLE), *([] if case == "overlap" else [DOWN]))


HEADERS = {
    "empty": b"",
    "garbage": bytes(range(256)),
    "not json": b'{"a": ',
    "list": b"[]",
    "deep": b'{"a":' + b"[" * 100_000,
    "long number": b'{"a": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_garbage_header_is_refused(case: str, synth: Path) -> None:
    text = HEADERS[case]
    (synth / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    _refusal(synth, str(synth / SINGLE))


@pytest.mark.parametrize("length", [10**9, 2**63 - 1, 2**64 - 1])
def test_an_absurd_header_length_is_refused(length: int, synth: Path) -> None:
    (synth / SINGLE).write_bytes(length.to_bytes(8, "little") + bytes(1000))
    _refusal(synth, str(synth / SINGLE))


# --- indexes and folders ---------------------------------------------------------------------


def _with_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    file = folder / INDEX
    index = json.loads(file.read_text("utf-8"))
    changed = change(index)
    file.write_text(json.dumps(index if changed is None else changed), "utf-8")
    return file


SHARDS: dict[str, Any] = {
    "not there": "model-00009-of-00003.safetensors",
    "up": "../model-00002-of-00003.safetensors",
    "further up": "x/../../model.safetensors",
    "absolute": "/etc/passwd",
    "folder": "sub/model.safetensors",
    "dots": "..",
    "empty": "",
    "nul": "a\0b",
    "long": "m" * 5000,
    "number": 2,
    "null": None,
    "list": ["model-00002-of-00003.safetensors"],
}


@pytest.mark.parametrize("case", SHARDS)
def test_an_index_with_a_bad_shard_is_named(case: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "inner", shards=3)
    # So that a traversal would succeed if it were followed.
    (folder / SHARD_2).rename(tmp_path / SHARD_2)

    def change(index: dict[str, Any]) -> None:
        index["weight_map"] = {
            name: SHARDS[case] if shard == SHARD_2 else shard
            for name, shard in index["weight_map"].items()
        }

    _refusal(folder, str(_with_index(folder, change)))


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": None}, None, 3])
def test_an_index_without_a_map_is_named(index: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, shards=2)
    (folder / INDEX).write_text(json.dumps(index), "utf-8")
    _refusal(folder, str(folder / INDEX))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=len)
def test_an_index_that_is_not_json_is_named(text: bytes, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, shards=2)
    (folder / INDEX).write_bytes(text)
    _refusal(folder, str(folder / INDEX))


def test_an_index_that_places_a_tensor_elsewhere_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, shards=3)
    _with_index(folder, lambda index: index["weight_map"].update({NORM: SHARD_2}))
    _refusal(folder, NORM, ".safetensors")


def test_an_index_with_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, shards=3)
    _with_index(folder, lambda index: index["weight_map"].update({"model.extra": SHARD_2}))
    _refusal(folder, "model.extra", SHARD_2)


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, shards=3)
    tensors = load_file(folder / SHARD_2)
    save_file(tensors | {NORM: torch.ones(64)}, folder / SHARD_2)
    _refusal(folder, str(folder / SHARD_2), NORM)


def test_a_folder_without_a_checkpoint_is_named(synth: Path, tmp_path: Path) -> None:
    _refusal(tmp_path / "nowhere", "nowhere")
    _refusal(synth / SINGLE, SINGLE)
    (synth / SINGLE).rename(synth / "pytorch_model.bin")
    _refusal(synth, str(synth), "pytorch_model*.bin", 'python -c "import glob')
    (synth / "pytorch_model.bin").unlink()
    _refusal(synth, str(synth), "only safetensors")
    (synth / "config.json").unlink()
    _refusal(synth, str(synth), "config.json")
