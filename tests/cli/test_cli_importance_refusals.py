"""Options of importance, types and architectures that do not fit: exit 2, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import GGUFReader

from emo_export.converters.gguf.imatrix import write_imatrix
from emo_export.files.manifest import Manifest
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Role, Slot
from tests.kit.command import NOT_FAILED, Emo
from tests.kit.exporting import case
from tests.kit.imatrix_files import random_matrix
from tests.kit.paths import GOLDEN
from tests.kit.synth import make_checkpoint

IQ2 = ("--to", "gguf:iq2_xs")
Q4 = ("--to", "gguf:q4_0")
ONNX = ("--to", "onnx:int4")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_experts": 4}
    return make_checkpoint(folder, num_hidden_layers=1, **sizes)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text("the harbour was quiet in the morning " * 20)
    return file


def refused(emo: Emo, checkpoint: Path, folder: Path, *arguments: object) -> str:
    """The one line of an export that exits with 2, having made nothing in `folder`."""
    before = sorted(folder.iterdir())
    done = emo("export", checkpoint, "-o", folder / "out", *arguments)
    assert done.code == 2 and done.out == "", done.err
    assert sorted(folder.iterdir()) == before
    (line,) = [line for line in done.err.splitlines() if line.lower().startswith("error: ")]
    assert "Traceback" not in done.err
    return line


@pytest.mark.parametrize("spec", ["gguf:iq2_xs", "gguf:iq2_xxs"])
def test_a_type_that_needs_importance_says_how(
    spec: str, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    line = refused(emo, wide, tmp_path, "--to", "gguf:q8_0", "--to", spec)
    assert spec in line and "--calibration FILE" in line and "--imatrix FILE.gguf" in line


def test_an_override_may_need_importance_too(
    wide: Path, text: Path, tmp_path: Path, emo: Emo
) -> None:
    line = refused(emo, wide, tmp_path, *Q4, "--tensor-type", "expert=iq2_xs")
    assert "gate_proj.weight as iq2_xs" in line and "--calibration FILE" in line
    embed = ("--tensor-type", "embed=iq2_xs")
    for more in ((), ("--calibration", text)):
        assert "embed_tokens" in refused(emo, wide, tmp_path, *Q4, *embed, *more)
    matrix = random_matrix(Checkpoint.open(wide).config)
    del matrix.sums[Slot(Role.HEAD)]
    config = Checkpoint.open(wide).config
    write_imatrix(tmp_path / "headless.gguf", matrix, config, "deepseek")
    options = (*Q4, "--imatrix", tmp_path / "headless.gguf")
    line = refused(emo, wide, tmp_path, *options, "--tensor-type", "head=iq2_xs")
    assert "lm_head.weight" in line and "--process-output" in line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["router=q8_0"], "router stays f32"),
        (["vector=f16"], "vector stays f32"),
        (["norm=f16"], "ROLE=TYPE"),
        (["head=q9"], "ROLE=TYPE"),
        (["head"], "ROLE=TYPE"),
        (["head=q8_0", "head=q8_0"], "head is there twice"),
        (["dense=q8_0"], "dense: this model's GGUF has no such part"),
    ],
)
def test_tensor_types_that_do_not_fit(
    given: list[str], said: str, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    options = [word for entry in given for word in ("--tensor-type", entry)]
    assert said in refused(emo, wide, tmp_path, *Q4, *options)


def test_options_for_gguf_without_a_gguf_target(wide: Path, tmp_path: Path, emo: Emo) -> None:
    line = refused(emo, wide, tmp_path, *ONNX, "--arch", "deepseek")
    assert "--arch" in line and "gguf" in line
    assert "llama" in emo("export", wide, "-o", tmp_path / "x", *Q4, "--arch", "llama").err


def test_calibration_and_imatrix_at_once(wide: Path, text: Path, tmp_path: Path, emo: Emo) -> None:
    config = Checkpoint.open(wide).config
    write_imatrix(tmp_path / "i.gguf", random_matrix(config), config, "deepseek")
    both = ("--calibration", text, "--imatrix", tmp_path / "i.gguf")
    line = refused(emo, wide, tmp_path, *Q4, *both)
    assert "--calibration" in line and "--imatrix" in line


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.jsonl", b"\n\n", "holds no text"),
        ("other.jsonl", b'{"content": "x"}\n', '"text"'),
        ("latin.txt", b"caf\xe9", "is not readable text"),
        ("short.txt", b"a", "at least two tokens"),
    ],
)
def test_texts_that_are_none(
    name: str, content: bytes, said: str, wide: Path, tmp_path: Path, emo: Emo
) -> None:
    (tmp_path / name).write_bytes(content)
    line = refused(emo, wide, tmp_path, *IQ2, "--calibration", tmp_path / name)
    assert said in line and (name in line or "--calibration" in line)


def test_a_folder_without_text_and_nothing(wide: Path, tmp_path: Path, emo: Emo) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.bin").write_bytes(b"\0")
    line = refused(emo, wide, tmp_path, *IQ2, "--calibration", tmp_path / "notes")
    assert "notes: holds no text file" in line
    for option in ("--calibration", "--imatrix"):
        assert "nowhere" in refused(emo, wide, tmp_path, *IQ2, option, tmp_path / "nowhere")
    assert "is a directory" in refused(emo, wide, tmp_path, *IQ2, "--imatrix", tmp_path)


def test_a_checkpoint_without_tokenizer(text: Path, tmp_path: Path, emo: Emo) -> None:
    folder = make_checkpoint(tmp_path / "mute", tokenizer=False)
    line = refused(emo, folder, tmp_path, *Q4, "--calibration", text)
    assert "tokenizer.json" in line and str(folder) in line


def test_a_file_that_is_no_matrix(
    wide: Path, text: Path, small_exports: dict[str, Path], tmp_path: Path, emo: Emo
) -> None:
    assert ".dat" in refused(emo, wide, tmp_path, *IQ2, "--imatrix", text)
    line = refused(emo, wide, tmp_path, *IQ2, "--imatrix", small_exports["gguf:q4_0"])
    assert "no importance matrix" in line


def test_a_model_that_only_glm4moe_can_express(tmp_path: Path, emo: Emo) -> None:
    folder = case("always_active").folder
    line = refused(emo, folder, tmp_path, *Q4, "--arch", "deepseek")
    assert "always_active_experts" in line and "use --arch glm4moe" in line
    # Two shared experts are beyond both.
    line = refused(emo, case("two_shared").folder, tmp_path, *Q4, "--arch", "glm4moe")
    assert "num_shared_experts" in line and "onnx" in line


@pytest.mark.slow
def test_a_forced_arch_validates_and_is_remembered(tmp_path: Path, emo: Emo) -> None:
    out = tmp_path / "out"
    options = ("--to", "gguf:q8_0", "--arch", "glm4moe", "--json")
    done = emo("export", GOLDEN / "base", "-o", out, *options)
    assert done.code in NOT_FAILED and json.loads(done.out)["verdict"] != "FAIL"
    header = GGUFReader(out / "model-Q8_0.gguf").fields["general.architecture"]
    assert header.contents() == "glm4moe"
    assert Manifest.load(out).targets["gguf:q8_0"].arch == "glm4moe"
    again = emo("validate", out, "--reference", GOLDEN / "base", "--json")
    assert again.code == done.code
    rows = [r for t in json.loads(again.out)["targets"] for r in t["rows"]]
    assert all(r["measured"]["kl_mean"] <= 1e-10 for r in rows if r["arithmetic"] == "exact")


def test_tensor_types_are_in_the_file_and_validate(wide: Path, tmp_path: Path, emo: Emo) -> None:
    out = tmp_path / "out"
    given = {
        "expert_down": "Q5_K",
        "head": "F16",
        "attention": "IQ4_NL",
        "embed": "Q6_K",
        "shared_expert": "BF16",
    }
    options = [word for role, kind in given.items() for word in ("--tensor-type", f"{role}={kind}")]
    few = ("--heldout-tokens", 64, "--json")
    assert emo("export", wide, "-o", out, *Q4, *options, *few).code in NOT_FAILED
    types = {t.name: t.tensor_type.name for t in GGUFReader(out / "model-Q4_0.gguf").tensors}
    parts = {name: name.removeprefix("blk.0.").removesuffix(".weight") for name in types}
    expected = {
        "token_embd": "Q6_K",
        "output": "F16",
        "ffn_down_exps": "Q5_K",
        "ffn_gate_exps": "Q4_0",
        "ffn_up_exps": "Q4_0",
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), "IQ4_NL"),
        **dict.fromkeys(("ffn_down_shexp", "ffn_gate_shexp", "ffn_up_shexp"), "BF16"),
    }
    assert {name: types[name] for name in types} == {
        name: expected.get(part, "F32") for name, part in parts.items()
    }
    recipe = Manifest.load(out).targets["gguf:q4_0"].recipe or {}
    assert {role: recipe[role] for role in given} == {r: k.lower() for r, k in given.items()}
    # Away from the manifest, nothing says that the types were chosen: the file does.
    alone = (out / "model-Q4_0.gguf").rename(tmp_path / "alone.gguf")
    said = emo("validate", alone, "--reference", wide, "--json")
    rows = [r for t in json.loads(said.out)["targets"] for r in t["rows"]]
    exact = [r for r in rows if r["arithmetic"] == "exact"]
    assert len(exact) == 2 and all(r["measured"]["kl_mean"] <= 1e-10 for r in exact)


@pytest.mark.slow
def test_without_golden_there_is_nothing_to_validate(wide: Path, tmp_path: Path, emo: Emo) -> None:
    out = tmp_path / "out"
    done = emo("export", wide, "-o", out, *Q4, "--no-golden")
    assert done.code == 0 and done.out == ""
    assert not {"golden.npz", "parity.json", "imatrix.gguf"} & {p.name for p in out.iterdir()}
    card = (out / "README.md").read_text("utf-8")
    assert "Not validated" in card and "Measured parity" not in card
    assert emo("verify", out).code == 0
    said = emo("validate", out)
    assert said.code == 2 and "golden.npz" in said.err and "--reference CHECKPOINT" in said.err
    assert emo("validate", out, "--reference", wide).code == 0
