"""What a user of the command line meets: exit codes, one-sentence errors, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emo_export.runtimes.opening import open_runtime, tokenizer_of
from tests.kit.bad_gguf import rewrite
from tests.kit.command import Done, Emo
from tests.kit.packages import narrow, quantised_package
from tests.kit.packages import package as exported_package
from tests.kit.paths import GOLDEN, GOLDENS, NANO
from tests.kit.synth import make_checkpoint
from tests.kit.tiers import slow_beyond


@pytest.fixture(scope="module")
def exported() -> Path:
    """emo-nano as a q4_0 GGUF and an int4 ONNX folder: what only trained weights show."""
    return exported_package(NANO, ("gguf:q4_0", "onnx:int4"), "--heldout-tokens", "256")


@pytest.fixture(scope="module")
def quantised() -> Path:
    return quantised_package()


def test_export_leaves_a_whole_folder(quantised: Path, emo: Emo) -> None:
    names = {p.name for p in quantised.iterdir()}
    assert names == {
        "README.md",
        "golden.npz",
        "manifest.json",
        "model-Q4_0.Modelfile",
        "model-Q4_0.gguf",
        "onnx-int4",
        "parity.json",
    }
    assert json.loads((quantised / "parity.json").read_text())["passed"] is True
    assert emo("verify", quantised).code == 0
    card = (quantised / "README.md").read_text()
    assert "gguf:q4_0" in card and "FAIL" not in card
    assert "ollama create emo-q4_0 -f model-Q4_0.Modelfile" in card
    assert (quantised / "model-Q4_0.Modelfile").read_text().startswith("FROM ./model-Q4_0.gguf\n")


@pytest.mark.slow
def test_exact_rows_meet_the_acceptance(exported: Path) -> None:
    rows = [
        r for t in json.loads((exported / "parity.json").read_text())["targets"] for r in t["rows"]
    ]
    exact = [r for r in rows if r["arithmetic"] == "exact"]
    assert len(exact) == 4
    assert all(r["measured"]["kl_mean"] <= 1e-5 for r in exact)
    shipped = [r for r in rows if r["arithmetic"] == "shipped" and r["against"] == "dequantised"]
    assert all(r["measured"]["kl_mean"] <= 5e-3 for r in shipped)
    original = [r for r in rows if r["against"] == "original"]
    assert all(r["perplexity_ratio"] <= 1.06 for r in original)
    for target in json.loads((exported / "parity.json").read_text())["targets"]:
        assert 0 < target["experts_used"] < target["experts_routed"] == 93


def test_validate_with_the_reference(quantised: Path, emo: Emo) -> None:
    stored = json.loads((quantised / "parity.json").read_text())
    fresh = emo("validate", quantised, "--reference", narrow(), "--json")
    assert fresh.code == 0
    pairs = zip(stored["targets"], json.loads(fresh.out)["targets"], strict=True)
    for a, b in pairs:
        for x, y in zip(a["rows"], b["rows"], strict=True):
            assert x["measured"]["kl_mean"] == pytest.approx(y["measured"]["kl_mean"], rel=0.02)


def test_validate_prints_a_table(quantised: Path, emo: Emo) -> None:
    done = emo("validate", quantised)
    assert done.code == 0
    for word in ("KL mean", "top-1", "ppl ×", "gguf:q4_0: pass", "onnx:int4: pass", "greedy"):
        assert word in done.out
    tables = done.out[: done.out.index("against: ")]
    assert max(len(line.rstrip()) for line in tables.splitlines()) <= 80


def targets(done: Done) -> list[str]:
    assert done.code == 0
    return [report["target"] for report in json.loads(done.out)["targets"]]


def test_validate_one_target(package: Path, emo: Emo) -> None:
    assert targets(emo("validate", package, "--target", "onnx:f32", "--json")) == ["onnx:f32"]
    assert targets(emo("validate", package / "model-F32.gguf", "--json")) == ["gguf:f32"]
    assert emo("validate", package, "--target", "gguf:q4_0").code == 2


@pytest.mark.slow
def test_validate_away_from_its_folder(package: Path, tmp_path: Path, emo: Emo) -> None:
    """Where a model has no golden.npz and no manifest beside it."""
    alone = Path(shutil.copy(package / "model-F32.gguf", tmp_path / "alone.gguf"))
    folder = shutil.copytree(package / "onnx-f32", tmp_path / "folder")
    refused = emo("validate", alone)
    assert refused.code == 2 and "--reference" in refused.err
    reference = ("--reference", GOLDEN / "base", "--json")
    assert targets(emo("validate", alone, *reference)) == ["gguf:f32"]
    assert targets(emo("validate", folder, *reference)) == ["onnx:f32"]


def test_tampered_weights_fail_verify_and_validate(package: Path, tmp_path: Path, emo: Emo) -> None:
    copy = shutil.copytree(package, tmp_path / "copy")
    data = copy / "onnx-f32" / "model.onnx.data"
    with data.open("r+b") as file:
        file.seek(data.stat().st_size // 2)
        file.write(bytes(200_000))
    wrong = emo("verify", copy)
    assert wrong.code == 1 and "model.onnx.data" in wrong.err
    failed = emo("validate", copy, "--json")
    assert failed.code == 1
    passed = {t["target"]: t["passed"] for t in json.loads(failed.out)["targets"]}
    assert passed == {"gguf:f32": True, "onnx:f32": False}


def test_weights_that_no_logit_tells_of_are_still_checked(
    package: Path, tmp_path: Path, emo: Emo
) -> None:
    copy = shutil.copytree(package, tmp_path / "copy")
    path = copy / "model-F32.gguf"
    with path.open("r+b") as file:  # one bit of the last tensor's last row
        file.seek(-40, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-40, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    done = emo("validate", copy, "--target", "gguf:f32")
    assert done.code == 1 and "SHA-256" in done.err
    assert "FAIL" not in done.out[: done.out.index("against: ")]  # its table


def test_a_changed_tokenizer_or_end_of_text_fails(package: Path, tmp_path: Path, emo: Emo) -> None:
    copy = shutil.copytree(package, tmp_path / "copy")
    path = copy / "onnx-f32" / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    merges = content["model"]["merges"]
    merges[3], merges[4] = merges[4], merges[3]
    content["model"]["merges"] = merges[:-200]
    path.write_text(json.dumps(content), "utf-8")
    failed = emo("validate", copy, "--target", "onnx:f32", "--json")
    assert failed.code == 1
    (report,) = json.loads(failed.out)["targets"]
    assert report["tokenizer"]["differs_from"] is not None
    assert all(not row["failures"] for row in report["rows"])
    (copy / "onnx-f32" / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert "do not end a text" in emo("validate", copy, "--target", "onnx:f32").out


def test_several_end_of_text_tokens_reach_every_target(tmp_path: Path, emo: Emo) -> None:
    folder = make_checkpoint(tmp_path / "stops", eos_token_id=[5, 7])
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7, 9]}')
    out = tmp_path / "out"
    done = emo("export", folder, "-o", out, "--to", "gguf:f32", "--to", "onnx:f32")
    assert done.code == 0
    for target, model in (("gguf:f32", "model-F32.gguf"), ("onnx:f32", "onnx-f32")):
        runtime = open_runtime(out / model, threads=1)
        assert {5, 7, 9} <= tokenizer_of(out / model, runtime).stop_ids, target
        runtime.close()


def test_truncation_in_tokenizer_json_is_not_obeyed(tmp_path: Path, emo: Emo) -> None:
    folder = make_checkpoint(tmp_path / "short")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["truncation"] = {
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    path.write_text(json.dumps(content), "utf-8")
    out = tmp_path / "out"
    assert emo("export", folder, "-o", out, "--to", "gguf:f32", "--to", "onnx:f32").code == 0
    assert np.load(out / "golden.npz")["input_ids"].shape == (6, 48)


@pytest.mark.parametrize("content", ["{}", '{"version": 1}', '{"name": "web app"}'])
def test_a_foreign_manifest_is_left_alone(content: str, tmp_path: Path, emo: Emo) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text(content)
    arguments = ("-o", app, "--to", "gguf:q8_0", "--overwrite", "--no-validate")
    assert emo("export", GOLDEN / "base", *arguments).code == 2
    assert (app / "manifest.json").read_text() == content


def test_a_crafted_gguf_does_not_hang(tmp_path: Path, emo: Emo) -> None:
    path = tmp_path / "crafted.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2)
    for command in (["validate", path, "--reference", NANO], ["run", path, "-p", "x"]):
        assert emo(*command).code == 2


@pytest.mark.parametrize("text", ["a", ""])
def test_too_little_held_out_text(text: str, tmp_path: Path, emo: Emo) -> None:
    file = tmp_path / "short.txt"
    file.write_text(text)
    done = emo(
        "export", GOLDEN / "base", "-o", tmp_path / "x", "--to", "gguf:f32", "--heldout", file
    )
    assert done.code == 2 and "short.txt" in done.err


@pytest.mark.parametrize("target", ["gguf:q4_0", "onnx:int4"])
def test_run_is_deterministic_and_seeded(quantised: Path, target: str, emo: Emo) -> None:
    def text(seed: int) -> str:
        done = emo("run", quantised, "--target", target, "-p", "In the", "-n", 24, "--seed", seed)
        assert done.code == 0
        return done.out

    assert text(1) == text(1)
    assert text(1) != text(2)


@pytest.mark.slow
def test_greedy_run_is_the_references_text(exported: Path) -> None:
    """Both engines continue the golden prompt with the golden tokens, through text and back."""
    from tokenizers import Tokenizer

    golden = np.load(exported / "golden.npz")
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    prompt = tokenizer.decode(golden["greedy_prompt"].tolist(), skip_special_tokens=False)
    expected = tokenizer.decode(golden["greedy"].tolist())
    for target in ("gguf:q4_0", "onnx:int4"):
        command = [sys.executable, "-m", "emo_export.cli.main", "run", str(exported), "-p", "-"]
        command += ["--target", target, "-n", "24", "--temperature", "0"]
        done = subprocess.run(command, input=prompt, capture_output=True, text=True, check=True)
        assert done.stdout == expected + "\n"


@pytest.mark.parametrize("prompt", ["-", "\udcff"])
def test_a_prompt_that_is_not_text_is_refused(prompt: str, package: Path) -> None:
    command = [sys.executable, "-m", "emo_export.cli.main", "run", str(package), "-p", prompt]
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True, check=False)
    assert done.returncode == 2 and b"UTF-8" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    slow_beyond([["inspect"]], [["run", "-p", "a", "-n", "400"], ["validate"], ["inspect"]]),
)
def test_a_pipe_that_closes_is_no_failed_parity(command: list[str], package: Path) -> None:
    line = [sys.executable, "-m", "emo_export.cli.main", command[0], str(package), *command[1:]]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 141
    assert b"Traceback" not in process.stderr.read()


def test_a_full_stdout_is_one_sentence(package: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "emo_export.cli.main", "inspect", str(package)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: output cannot be written")


def test_run_of_a_folder_without_models(tmp_path: Path, emo: Emo) -> None:
    done = emo("run", tmp_path, "-p", "x")
    assert done.code == 2 and "no folder" in done.err


@pytest.mark.parametrize("name", slow_beyond(["base"], GOLDENS))
def test_goldens_are_exact(name: str, tmp_path: Path, emo: Emo) -> None:
    out = tmp_path / "out"
    done = emo("export", GOLDEN / name, "-o", out, "--to", "gguf:f32", "--to", "onnx:f32", "--json")
    assert done.code == 0
    for target in json.loads(done.out)["targets"]:
        assert len(target["rows"]) == 3
        for row in target["rows"]:
            assert row["measured"]["kl_mean"] <= 1e-6 and row["measured"]["top1"] == 1.0
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("used", [0, 99, None])
def test_counts_at_which_llama_cpp_would_end_the_process_are_refused(
    used: int | None, package: Path, tmp_path: Path, emo: Emo
) -> None:
    source = package / "model-F32.gguf"
    bad = rewrite(source, tmp_path / "bad.gguf", {"ARCH.expert_used_count": used})
    done = emo("run", bad, "-p", "The", "-n", 1)
    assert done.code == 2
    assert "expert_used_count is" in done.err and "can't open" in done.err
