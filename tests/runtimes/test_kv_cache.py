"""Types of the KV cache: what they take, by llama.cpp's own account, and what they cost."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.files.kv_cache import KV_CACHES, row_bytes
from emo_export.runtimes.families import family_at
from emo_export.runtimes.llama.model import LlamaCpp
from emo_export.runtimes.opening import open_runtime
from tests.kit.command import Emo
from tests.kit.exporting import Array, exported, kl, steps
from tests.kit.packages import quantised_package
from tests.kit.paths import NANO


@pytest.mark.parametrize("kind", KV_CACHES)
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
    gguf = exported(NANO, "gguf:f32")
    ids = np.random.default_rng(0).integers(0, 4000, (1, 64))

    def stepped(kind: str | None, *, parity: bool = False) -> Array:
        runtime = open_runtime(gguf, 1, context=64, parity=parity, kv_cache=kind)
        found = steps(runtime, ids)
        runtime.close()
        return found

    exact = stepped(None, parity=True)
    np.testing.assert_array_equal(stepped("f32"), exact)
    np.testing.assert_array_equal(stepped("f16"), stepped(None))
    losses = {kind: kl(exact, stepped(kind)).mean() for kind in ("f16", "q8_0")}
    assert 1e-10 < losses["f16"] < 1e-5 < losses["q8_0"] < 1e-2


def test_blocks_that_do_not_divide_a_head_are_refused() -> None:
    assert [row_bytes(kind, 64) for kind in KV_CACHES] == [256, 128, 68]
    assert row_bytes("f16", 48) == 96
    with pytest.raises(EmoExportError, match=r"blocks of 32 do not divide heads of 48; .* f16"):
        row_bytes("q8_0", 48)


def test_what_validate_compares_with_the_original_has_the_cache(emo: Emo) -> None:
    """The reference on the stored weights is still met without any loss but rounding."""
    folder = quantised_package()

    def rows(*options: str) -> list[dict[str, dict[str, float]]]:
        done = emo("validate", folder, "--target", "gguf:q4_0", "--json", *options)
        (found,) = json.loads(done.out)["targets"]
        assert found["engine"]["KV cache"] == (options or ("", "f32"))[1]
        assert ("--kv-cache" in found["repeat"]) == bool(options)
        return list(found["rows"])

    plain, lossy = rows(), rows("--kv-cache", "q8_0")
    assert plain[:2] == lossy[:2] and plain[3:] == lossy[3:]
    assert plain[2]["measured"]["kl_mean"] != lossy[2]["measured"]["kl_mean"]
    told = emo("validate", folder, "--target", "gguf:q4_0", "--kv-cache", "q8_0")
    assert "threads 1, KV cache q8_0" in told.out


def test_a_graph_with_float32_keys_refuses_other_types(emo: Emo) -> None:
    folder = quantised_package()
    for command in (("run", "-p", "a", "-n", "1"), ("validate",), ("bench",)):
        done = emo(*command, folder, "--target", "onnx:int4", "--kv-cache", "q8_0")
        assert done.code == 2 and "--kv-cache q8_0 is for GGUF targets" in done.err, command
    assert family_at(folder / "onnx-int4").need(folder / "onnx-int4", 8, "f32").kv_cache == "f32"
