"""Types of the KV cache: what they take, by llama.cpp's own account, and what they cost."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from emo_export.errors import EmoExportError
from emo_export.files.kv_cache import row_bytes
from emo_export.parity.result import Result
from emo_export.report.text import verdicts
from emo_export.runtimes.families import family_at
from emo_export.runtimes.llama.model import LlamaCpp
from emo_export.runtimes.opening import open_runtime
from emo_export.runtimes.ort.int8_cache import OPERATOR, with_int8_cache
from tests.kit.command import Emo
from tests.kit.exporting import Array, exported, kl, prefill, steps
from tests.kit.packages import quantised_package
from tests.kit.paths import GOLDEN, NANO

GGUF = ("f32", "f16", "q8_0")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", GGUF)
def test_bytes_are_those_that_llama_cpp_tells(kind: str) -> None:
    gguf = exported(NANO, "gguf:q8_0")
    model = LlamaCpp(gguf, threads=1, context=1024, kv_cache=kind)
    facts, said = model.describe(), "\n".join(model._lib.log.lines())
    model.close()
    assert facts["KV cache"] == kind
    *_, size = re.findall(r"KV buffer size = *([0-9.]+) MiB", said)
    need = family_at(gguf).need(gguf, 1024, kind)
    assert need.kv_cache == kind
    assert need.cache / 2**20 == pytest.approx(float(size), abs=0.006)
    assert family_at(gguf).per_token(gguf, kind).cache == need.per_position


def test_the_fewer_bits_the_larger_the_loss() -> None:
    gguf = exported(GOLDEN / "base", "gguf:f32")
    ids = np.random.default_rng(0).integers(0, 200, (1, 64))

    def stepped(kind: str | None, *, parity: bool = False) -> Array:
        runtime = open_runtime(gguf, 1, context=64, parity=parity, kv_cache=kind)
        found = steps(runtime, ids)
        runtime.close()
        return found

    exact = stepped(None, parity=True)
    np.testing.assert_array_equal(stepped("f32"), exact)
    np.testing.assert_array_equal(stepped("f16"), stepped(None))
    losses = {kind: kl(exact, stepped(kind)).mean() for kind in ("f16", "q8_0")}
    assert 1e-10 < losses["f16"] < losses["q8_0"] / 4 < 1e-2, losses


def test_blocks_that_do_not_divide_a_head_are_refused() -> None:
    assert [row_bytes(kind, 64) for kind in GGUF] == [256, 128, 68]
    assert row_bytes("f16", 48) == 96
    with pytest.raises(EmoExportError, match=r"blocks of 32 do not divide heads of 48; .* f16"):
        row_bytes("q8_0", 48)


def test_what_validate_compares_with_the_original_has_the_cache(emo: Emo) -> None:
    """The reference on the stored weights is still met without any loss but rounding."""
    folder = quantised_package()

    done = emo("validate", folder, "--target", "gguf:q4_0", "--json", "--kv-cache", "q8_0")
    (found,) = json.loads(done.out)["targets"]
    assert found["engine"]["KV cache"] == "q8_0" and "--kv-cache" in found["repeat"]
    stored = json.loads((folder / "parity.json").read_text())["targets"]
    plain = next(one for one in stored if one["target"] == "gguf:q4_0")["rows"]
    assert [row["arithmetic"] for row in plain] == ["shipped"] * 3 + ["exact"] * 2
    for index, (row, before) in enumerate(zip(found["rows"], plain, strict=True)):
        assert (row["measured"] == before["measured"]) == (index != 2)
    told = verdicts([Result.from_dict(found)])
    assert "threads 1, KV cache q8_0" in told[0]


def test_the_types_of_another_engine_are_refused(emo: Emo) -> None:
    folder = quantised_package()
    for command in (("run", "-p", "a", "-n", "1"), ("validate",), ("bench",)):
        for target, kind, other in (("onnx:int4", "q8_0", "GGUF"), ("gguf:q4_0", "int8", "ONNX")):
            done = emo(*command, folder, "--target", target, "--kv-cache", kind)
            assert done.code == 2 and f"--kv-cache {kind} is for {other} targets" in done.err
    standard = exported(NANO, "onnx:int8@standard")
    for refused in (family_at(standard).need, open_runtime):
        with pytest.raises(EmoExportError, match="needs attention by GroupQueryAttention"):
            refused(standard, 1, kv_cache="int8")


def test_int8_keys_and_values_lose_little(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported(NANO, "onnx:f32")
    ids = np.load(NANO / "golden.npz")["input_ids"][:2, :48]
    found = {}
    for kind in ("f32", "int8"):
        runtime = open_runtime(folder, 1, kv_cache=kind)
        found[kind] = steps(runtime, ids)
        assert runtime.describe()["KV cache"].startswith(kind)
        # What was in the cache before is gone after a reset.
        np.testing.assert_array_equal(steps(runtime, ids[:1]), found[kind][:1])
        runtime.close()
    # A file of scales that was cut off is made anew.
    (stored,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("*.npy")
    whole = stored.read_bytes()
    stored.write_bytes(b"")
    open_runtime(folder, 1, kv_cache="int8").close()
    assert stored.read_bytes() == whole
    # The scales are measured once: a second opening finds them.
    monkeypatch.setattr("emo_export.runtimes.ort.int8_cache.measured", None)
    again = open_runtime(folder, 1, kv_cache="int8")
    np.testing.assert_array_equal(steps(again, ids), found["int8"])
    assert kl(found["int8"], prefill(again, ids)).mean() < 1e-3
    again.close()
    assert 1e-8 < kl(found["f32"], found["int8"]).mean() < 2e-3
    family = family_at(folder)
    need = {kind: family.need(folder, 512, kind).cache for kind in ("f32", "int8")}
    assert need["f32"] == 4 * need["int8"] == 512 * 4 * family.per_token(folder, "int8").cache


def test_the_graph_with_int8_is_what_the_onnx_package_reads() -> None:
    """Beside types, attributes and scales nothing has changed."""
    plain = (exported(NANO, "onnx:int4") / "model.onnx").read_bytes()
    names = [
        f"{part}.{i}.{kind}"
        for part in ("past_key_values", "present")
        for i in range(3)
        for kind in ("key", "value")
    ]
    scales = np.random.default_rng(0).random((3, 2, 4, 64), np.float32)
    found, before = (
        onnx.ModelProto.FromString(data) for data in (with_int8_cache(plain, scales, names), plain)
    )
    values = [*found.graph.input, *found.graph.output]
    kinds = {v.name: v.type.tensor_type.elem_type for v in values}
    assert {name for name, kind in kinds.items() if kind == onnx.TensorProto.INT8} == {*names}
    stored = {t.name: t for t in found.graph.initializer}
    for layer, node in enumerate(n for n in found.graph.node if n.op_type == OPERATOR):
        for part, name in enumerate(node.input[12:]):
            array = onnx.numpy_helper.to_array(stored.pop(name))
            np.testing.assert_array_equal(array, scales[layer, part][None, :, None])
        del node.input[11:], node.attribute[-3:]
    assert [*stored] == [t.name for t in before.graph.initializer]
    del found.graph.initializer[:], before.graph.initializer[:]
    for value in values:
        if value.name in names:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    assert found == before
    with pytest.raises(EmoExportError, match="3 GroupQueryAttention for 2 layers"):
        with_int8_cache(plain, scales[:2], names)


def test_keys_that_are_no_numbers_have_no_scales(onnx_folder: Path, tmp_path: Path) -> None:
    folder = onnx_folder
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    name = next(t for t in graph.initializer if "qkv" in t.name and "scales" in t.name)
    place = {entry.key: int(entry.value) for entry in name.external_data if entry.key != "location"}
    with (folder / "model.onnx.data").open("r+b") as file:
        file.seek(place["offset"])
        file.write(np.full(place["length"] // 4, np.nan, np.float32).tobytes())
    with pytest.raises(EmoExportError, match="the keys of layer 0 are not finite"):
        open_runtime(folder, 1, context=64, kv_cache="int8")
    assert not list((tmp_path / "cache").rglob("*.npy"))
