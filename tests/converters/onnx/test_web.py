"""Slow: examples/web in node: onnxruntime-web beside the reference and our own runtime."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emo_export.parity.judge import tolerances
from emo_export.runtimes.generate import generate
from emo_export.runtimes.ort.model import OnnxModel
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from emo_export.runtimes.sampling import GREEDY
from emo_export.spec import Spec
from tests.converters.gguf.test_llama_tools import ADVERSARIAL
from tests.converters.onnx.test_to_onnx import exact
from tests.kit.exporting import (
    TIGHT,
    Array,
    assert_same,
    dequantised_logits,
    export_to,
    exported,
    kl,
)
from tests.kit.paths import NANO
from tests.kit.web_tools import EXAMPLE, TESTS, lay_out, node

pytestmark = pytest.mark.slow

# Beside 4- and 8-bit weights the wasm build of MatMulNBits keeps activations in float32, so only
# the standard graph, which quantises them by operators of its own, differs from the reference.
TARGETS = ("f32@if", "int8@if", "int4@if", "f32@standard", "int8@standard")
STEPS = 12  # tokens that go one by one
PAD, WIDTH = 5, 40  # padding and length of the second sequence in a batch


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    return dict(np.load(NANO / "golden.npz"))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("web") / "example", EXAMPLE, TESTS / "driver.mjs")


def run(web: Path, jobs: Sequence[dict[str, Any]]) -> list[Any]:
    """What the driver answers to each job: a list, one answer a step."""
    (web / "jobs.json").write_text(json.dumps(jobs), "utf-8")
    node(web / "driver.mjs", web / "jobs.json", web / "answers.json")
    found = json.loads((web / "answers.json").read_text("utf-8"))
    for answer in found:
        assert "error" not in answer, answer
    return [answer["answers"] for answer in found]


NEAR_TIE = 0.1  # logits


def rows_of(ids: Array) -> list[dict[str, Any]]:
    return [{"rows": ids.tolist()}]


def one_by_one(ids: Array) -> list[dict[str, Any]]:
    return [{"rows": column[:, None].tolist()} for column in ids.T]


def logits_of(web: Path, folder: Path, calls: Sequence[dict[str, Any]]) -> list[Array]:
    """Logits of each call: (batch, positions, vocab)."""
    file = web / "logits"
    step = {"task": "logits", "calls": calls, "file": str(file)}
    [[shapes]] = run(web, [{"folder": str(folder), "steps": [step]}])
    flat = np.fromfile(file, "<f4")
    edges = np.cumsum([np.prod(shape) for shape in shapes])
    assert edges[-1] == flat.size
    return [part.reshape(s) for part, s in zip(np.split(flat, edges[:-1]), shapes, strict=True)]


@pytest.mark.parametrize("target", TARGETS)
def test_logits_are_the_references(web: Path, golden: dict[str, Array], target: str) -> None:
    ids = golden["input_ids"][:3]
    folder = exported(NANO, f"onnx:{target}")
    found = logits_of(web, folder, rows_of(ids))[0]
    stepped = np.concatenate(logits_of(web, folder, one_by_one(ids[:, :STEPS])), axis=1)
    if target.startswith("f32"):
        want = golden["logits"][:3]
    else:
        want = dequantised_logits(NANO, f"onnx:{target}", ids)
        assert kl(golden["logits"][:3], want).mean() > 1e-6
    if target != "int8@standard":
        assert_same(want, found, TIGHT)
        assert_same(want[:, :STEPS], stepped, TIGHT)
        return
    limits = tolerances(Spec.parse(f"onnx:{target}"))["shipped"]
    for got, reference in ((found, want), (stepped, want[:, :STEPS])):
        assert kl(reference, got).mean() <= limits["kl_mean"]
        assert (got.argmax(-1) == reference.argmax(-1)).mean() >= limits["top1"]


@pytest.mark.parametrize("target", TARGETS)
def test_greedy_tokens_are_our_runtimes(web: Path, golden: dict[str, Array], target: str) -> None:
    folder, prompt = exported(NANO, f"onnx:{target}"), golden["greedy_prompt"]
    step = {"task": "greedy", "ids": prompt.tolist(), "count": len(golden["greedy"])}
    [[found]] = run(web, [{"folder": str(folder), "steps": [step]}])
    model = exact(folder) if target.endswith("@if") else OnnxModel(folder, threads=1)
    assert len(found) == len(golden["greedy"])
    logits = model.forward(prompt)
    for token in found:
        # int8 activations fall either way at a half, and with them a near tie of two tokens.
        short = logits[-1].max() - logits[-1][token]
        assert short <= NEAR_TIE if target == "int8@standard" else short == 0
        logits = model.forward(np.array([token]))
    if target.startswith("f32"):
        assert found == golden["greedy"].tolist()


@pytest.mark.parametrize("target", ["f32@if", "f32@standard"])
def test_a_left_padded_batch_is_its_sequences(
    web: Path, golden: dict[str, Array], target: str
) -> None:
    ids, want = golden["input_ids"][:2], golden["logits"]
    rows, mask = ids[:, :WIDTH].copy(), np.ones((2, WIDTH), np.int64)
    rows[1, PAD:], mask[1, :PAD] = ids[1, : WIDTH - PAD], 0
    calls = [
        {"rows": rows[:, start:end].tolist(), "mask": mask[:, :end].tolist()}
        for start, end in ((0, WIDTH - 2), (WIDTH - 2, WIDTH - 1), (WIDTH - 1, WIDTH))
    ]
    found = np.concatenate(logits_of(web, exported(NANO, f"onnx:{target}"), calls), axis=1)
    assert_same(want[0, :WIDTH], found[0], TIGHT)
    assert_same(want[1, : WIDTH - PAD], found[1, PAD:], TIGHT)


def test_what_ran_is_the_quantised_operator_of_the_chosen_experts(web: Path) -> None:
    config = json.loads((NANO / "config.json").read_text("utf-8"))
    job = {
        "folder": str(exported(NANO, "onnx:int4@if")),
        "options": {"enableProfiling": True},
        "steps": [
            {"task": "logits", "calls": [{"rows": [[5]]}], "file": str(web / "logits")},
            {"task": "profile"},
        ],
    }
    (web / "jobs.json").write_text(json.dumps([job]), "utf-8")
    events = json.loads(node(web / "driver.mjs", web / "jobs.json", web / "answers.json"))
    kernels = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    ran = Counter(e["args"]["op_name"] for e in kernels)
    assert ran["GroupQueryAttention"] == config["num_hidden_layers"]
    assert not any("Dequantize" in name for name in ran)
    down = [e for e in kernels if ".experts." in e["name"] and ".down" in e["name"]]
    routed = config["num_experts_per_tok"] - config["num_shared_experts"]
    assert len(down) == routed * config["num_hidden_layers"]
    assert {e["args"]["op_name"] for e in down} == {"MatMulNBits"}


def test_text_is_our_runtimes(web: Path) -> None:
    folder = exported(NANO, "onnx:f32@if")
    model, tokenizer, prompt = OnnxModel(folder, threads=1), HfTokenizer(folder), "def main("
    said = generate(model, tokenizer, tokenizer.encode(prompt), GREEDY, max_tokens=24)
    assert node(web / "generate.mjs", folder, prompt, 24) == "".join(said.texts()) + "\n"


def test_the_tokenizer_is_the_one_of_the_folder(web: Path) -> None:
    folder = exported(NANO, "onnx:int4@if")
    tokenizer = HfTokenizer(folder)
    texts = [ADVERSARIAL, "", "def main(", "über 日本語 🎉"]
    ids = [token for words in texts for token in tokenizer.encode(words)]
    steps = [{"task": "encode", "texts": texts}, {"task": "text", "ids": ids}]
    [[encoded, pieces]] = run(web, [{"folder": str(folder), "steps": steps}])
    assert encoded == [tokenizer.encode(words) for words in texts]
    assert "".join(pieces) == b"".join(map(tokenizer.piece, ids)).decode("utf-8")
    assert len(pieces) < len(ids)  # some characters took several tokens


def test_a_folder_for_generation_gives_the_last_position(
    web: Path, golden: dict[str, Array], tmp_path: Path
) -> None:
    folder = export_to(tmp_path, NANO, onnx=["f32@if"], last_only=True)["onnx:f32@if"]
    found = logits_of(web, folder, rows_of(golden["input_ids"][:1]))[0]
    assert found.shape[1] == 1
    assert_same(golden["logits"][:1, -1:], found, TIGHT)


def test_a_graph_for_a_newer_onnx_runtime_is_refused(web: Path) -> None:
    say = 'graph "qmoe" needs ONNX Runtime 1.31 and this is onnxruntime-web .*: export with --to'
    with pytest.raises(RuntimeError, match=say):
        node(web / "generate.mjs", exported(NANO, "onnx:int4"), "def")
