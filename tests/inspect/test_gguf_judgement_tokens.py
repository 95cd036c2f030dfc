"""What `inspect` says of tokenizers, and of files that are no EMO."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufArray, read_gguf, read_item
from emo_export.inspect.checkpoint import inspect_path
from tests.kit.bad_gguf import rewrite
from tests.kit.fuzzing import read_or_refuse
from tests.kit.hand_gguf import write_gguf
from tests.kit.inspecting import shown
from tests.kit.synth import make_checkpoint

Files = dict[str, Path]
KEY = "tokenizer.ggml"


@pytest.fixture(scope="module")
def emo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_gguf(make_checkpoint(folder / "c", num_hidden_layers=1), folder / "emo.gguf")
    return rewrite(folder / "emo.gguf", folder / "named.gguf", {"general.name": "an EMO of mine"})


@pytest.mark.parametrize(
    ("keys", "level", "said"),
    [
        ({"eos_token_id": None}, "wrong", "llama.cpp takes id 11"),
        ({"eos_token_id": 11}, "wrong", "eos_token_id is 11, which is ','"),
        ({"eos_token_id": 9999}, "wrong", "beyond its 512 tokens"),
        ({"eos_token_id": 490}, "risk", "which is '<|extra_id_0|>'"),
        ({"add_bos_token": True}, "wrong", "EMO texts have no beginning token"),
        ({"add_eos_token": True}, "wrong", "starts a new text instead of going on"),
        ({"pre": "default"}, "wrong", "pre is 'default', EMO's split is 'dbrx'"),
        ({"pre": "gpt-2"}, "risk", "numbers, contractions"),
        ({"pre": "olmo"}, "wrong", "EMO's split is 'dbrx'"),
        ({"pre": "llama-bpe"}, "risk", "EMO's split is 'dbrx'"),
        ({"pre": None}, "wrong", "llama.cpp guesses how text is split"),
        ({"token_type": None}, "risk", "special tokens count as ordinary text"),
        ({"model": "none"}, "risk", "has no tokenizer"),
    ],
)
def test_wrong_tokenizers(
    emo: Path, tmp_path: Path, keys: dict[str, Any], level: str, said: str
) -> None:
    named = {f"{KEY}.{name}": value for name, value in keys.items()}
    found = inspect_path(rewrite(emo, tmp_path / "x.gguf", named))
    bad = [finding for finding in found.findings if finding.level != "note"]
    assert [(finding.level, said in finding.text) for finding in bad] == [(level, True)]
    assert shown(found)


@pytest.mark.parametrize("keys", [{}, {"pre": "smaug-bpe"}, {"add_eos_token": False}])
def test_good_tokenizers(emo: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    named = {f"{KEY}.{name}": value for name, value in keys.items()}
    assert inspect_path(rewrite(emo, tmp_path / "x.gguf", named)).warnings == []


def test_an_end_of_text_that_is_typed_as_text(emo: Path, tmp_path: Path) -> None:
    types = [1] * 512
    found = inspect_path(rewrite(emo, tmp_path / "x.gguf", {f"{KEY}.token_type": types}))
    assert "'<|endoftext|>', typed as ordinary text" in found.warnings[0]


def test_single_tokens_are_read_as_gguf_reads_them(emo: Path) -> None:
    keys, fields = read_gguf(emo).keys, gguf.GGUFReader(emo).fields
    for name in (f"{KEY}.tokens", f"{KEY}.token_type", f"{KEY}.merges"):
        array, theirs = keys[name], fields[name].contents()
        if isinstance(array, list):
            continue
        for index in (0, 1, len(theirs) // 2, len(theirs) - 1):
            assert read_item(emo, array, index) == theirs[index]
        for index in (-1, len(theirs)):
            with pytest.raises(EmoExportError, match="has no item"):
                read_item(emo, array, index)


def test_a_file_that_changed_meanwhile_is_refused(emo: Path, tmp_path: Path) -> None:
    array = read_gguf(emo).keys[f"{KEY}.tokens"]
    assert isinstance(array, GgufArray)
    (tmp_path / "x.gguf").write_bytes(emo.read_bytes()[: array.start + 100])
    with pytest.raises(EmoExportError, match=r"x\.gguf"):
        read_item(tmp_path / "x.gguf", array, 300)


# --- whether it is an EMO ----------------------------------------------------------------------


def made(path: Path, arch: str, names: list[str], keys: dict[str, Any]) -> Path:
    """A small GGUF of any architecture: tensors by name, all 32 by 32."""
    writer = gguf.GGUFWriter(path, arch)
    for name, value in keys.items():
        add = {int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](name.replace("ARCH", arch), value)
    for name in names:
        writer.add_tensor(name, np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


DENSE = ["token_embd.weight", "output_norm.weight", "output.weight"]
DENSE += [f"blk.0.{n}.weight" for n in ("attn_norm", "attn_q", "attn_k", "attn_v", "ffn_up")]
MOE = [*DENSE, "blk.0.ffn_gate_inp.weight", "blk.0.ffn_up_exps.weight"]
QK = ["blk.0.attn_q_norm.weight", "blk.0.attn_k_norm.weight"]
BLOCKS = {"ARCH.block_count": 1, "ARCH.expert_count": 32}
NONE = {"ARCH.expert_count": None}
GPT2 = {f"{KEY}.model": "gpt2", f"{KEY}.pre": "qwen2", f"{KEY}.eos_token_id": 3}
GPT2 |= {f"{KEY}.tokens": ["a", "b", "c", "d"], f"{KEY}.token_type": [1, 1, 1, 3]}


@pytest.mark.parametrize(
    ("arch", "names", "keys", "said"),
    [
        ("llama", DENSE, NONE, "not an EMO (architecture 'llama' without experts)"),
        ("llama", DENSE, NONE | {"general.name": "emo-chat"}, "not an EMO"),
        ("qwen3moe", MOE + QK, {}, "not an EMO (architecture 'qwen3moe' with q/k norms"),
        ("qwen3moe", MOE + QK, {"general.name": "Qwen3-Emo"}, "not an EMO"),
        ("llama", MOE, {}, "not an EMO (architecture 'llama', and neither its names nor"),
        ("llama", MOE, {"general.name": "emotional-memo"}, "not an EMO"),
        ("deepseek2", [*MOE, "blk.0.attn_kv_a_mqa.weight"], {}, "attn_kv_a tensors"),
        ("deepseek", MOE, {f"{KEY}.model": None, f"{KEY}.pre": None}, "can't tell"),
        ("deepseek", MOE, {f"{KEY}.pre": "deepseek-llm"}, "not an EMO"),
        ("deepseek", MOE, {f"{KEY}.pre": "dbrx"}, "looks like an EMO"),
        ("dbrx", MOE, {f"{KEY}.pre": "dbrx"}, "not an EMO"),
        ("glm4moe", MOE, {f"{KEY}.pre": "glm4"}, "not an EMO"),
        ("deepseek", MOE, {"general.basename": "Emo_1b14b"}, "an EMO (general.basename is"),
        (
            "olmoe",
            MOE,
            {"general.base_model.0.repo_url": "https://huggingface.co/allenai/Emo_1b14b_1T"},
            "an EMO (general.base_model.0.repo_url is",
        ),
        (
            "llama",
            MOE,
            {"ARCH.vocab_size": 100352, f"{KEY}.eos_token_id": 100257},
            "looks like an EMO (a mixture of experts with EMO's vocabulary",
        ),
    ],
)
def test_what_is_an_emo(
    tmp_path: Path, arch: str, names: list[str], keys: dict[str, Any], said: str
) -> None:
    told = {k: v for k, v in (BLOCKS | GPT2 | keys).items() if v is not None}
    found = inspect_path(made(tmp_path / "x.gguf", arch, names, told))
    assert said in found.judgement
    if found.judgement.startswith("not"):
        assert [f for f in found.findings if f.level == "wrong"] == []
    assert "\n" not in found.judgement
    assert shown(found)


def test_shape_and_parts_of_any_architecture(tmp_path: Path) -> None:
    names = [*MOE, *QK, "blk.0.ffn_down_shexp.weight", "blk.0.ssm_in.weight", "blk.0.odd.weight"]
    names += ["rope_freqs.weight", "blk.0.ffn_gate_inp_shexp.weight", "blk.0.attn_q.bias"]
    keys = {"ARCH.attention.head_count_kv": [2, 2], "ARCH.ssm.state_size": 16} | BLOCKS
    found = inspect_path(made(tmp_path / "x.gguf", "hybrid", names, keys))
    assert found.facts["shape"] == {
        "block_count": 1,
        "attention.head_count_kv": "2 times 2",
        "expert_count": 32,
        "ssm.state_size": 16,
    }
    count = {part: size // 4096 for part, size in found.facts["bytes_by_part"].items()}
    expected = {"embed": 1, "head": 1, "vector": 5, "attention": 3, "dense": 1, "router": 1}
    expected |= {"expert": 1, "shared_expert": 2, "recurrent": 1, "rope_tables": 1, "other": 1}
    assert count == expected


def test_many_tensors_are_judged_in_time(tmp_path: Path) -> None:
    names = [f"blk.{i}.{n}.weight" for i in range(2000) for n in ("attn_q", "attn_k", "attn_v")]
    names += [f"blk.{i}.{n}.weight" for i in range(2000) for n in ("ffn_gate_inp", "ffn_up_exps")]
    keys = BLOCKS | GPT2 | {"general.name": "emo", "ARCH.attention.head_count": 4}
    path = made(tmp_path / "x.gguf", "deepseek", names, keys)
    start = time.process_time()  # whatever else the machine is doing
    assert "tensors are missing" in " ".join(inspect_path(path).warnings)
    assert time.process_time() - start < 3


def test_what_is_no_language_model(tmp_path: Path) -> None:
    keys = {"general.type": "imatrix"}
    found = inspect_path(made(tmp_path / "x.gguf", "emo", ["blk.0.attn_q.in_sum2"], keys))
    assert found.judgement.startswith("no model but an importance matrix, for 1 tensors: give it")
    assert found.warnings == []
    other = made(tmp_path / "y.gguf", "emo", ["a"], {"general.type": "adapter"})
    assert inspect_path(other).judgement == "not a language model: adapter"


@settings(max_examples=60, deadline=2000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_damage_is_judged_or_refused(emo: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(emo.read_bytes())
    head = read_gguf(emo).data_offset
    places = (
        st.integers(24, 1200) | st.integers(head - 1500, head - 1) | st.integers(head, len(raw))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        place = min(data.draw(places), len(raw) - 1)
        raw[place] = data.draw(st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))
    read_or_refuse(lambda path: shown(inspect_path(path)), tmp_path / "x.gguf", bytes(raw))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e-38, 3e38])
def test_rows_that_hold_no_numbers_are_not_judged(emo: Path, tmp_path: Path, value: float) -> None:
    def edit(name: str, values: Any) -> Any:
        return np.full_like(values, value) if "attn" in name or "ffn_gate_inp" in name else values

    path = rewrite(emo, tmp_path / "x.gguf", edit=edit)
    assert inspect_path(path).warnings == []
