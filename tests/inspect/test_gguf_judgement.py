"""What `inspect` says of EMO files that compute something else, held against what llama.cpp does.

Every bad file is really made, from emo-nano (which is trained) or from a random checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gguf.constants import GGMLQuantizationType as Type

from emo_export.base.install import install_command
from emo_export.inspect.checkpoint import inspect_path
from emo_export.runtimes.llama.model import LlamaCpp
from tests.kit.bad_gguf import fold, no_shared, of, rewrite, shared_of, unpermute
from tests.kit.exporting import export_to, kl
from tests.kit.hand_gguf import read_weights, write_gguf
from tests.kit.inspecting import shown
from tests.kit.paths import NANO
from tests.kit.synth import make_checkpoint
from tests.kit.tiers import slow_beyond

HEADS, BLOCKS, ROUTED = 4, 3, 31
SOFTMAX = {"ARCH.expert_gating_func": 1, "ARCH.expert_weights_norm": False}
FOLDED = {"ARCH.expert_count": ROUTED + 1, "ARCH.expert_used_count": 4}
AS_SMALLTHINKER = FOLDED | {"ARCH.expert_gating_func": 1, "ARCH.expert_shared_count": None}
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """emo-nano as GGUF in BF16, the type of its checkpoint, by the hand-made converter."""
    path = tmp_path_factory.mktemp("nano") / "nano.gguf"
    write_gguf(NANO, path, Type.BF16)
    return path


@pytest.fixture(scope="module")
def folded(nano: Path) -> Any:
    """The edit that folds emo-nano's shared expert in, with zeros in its place."""
    weights = read_weights(NANO)
    rows = {i: weights[f"model.layers.{i}.mlp.gate.weight"][-1] for i in range(BLOCKS)}
    return fold(rows, shared_of(nano))


@pytest.fixture(scope="module")
def reference(nano: Path) -> Array:
    return logits(nano)


def logits(path: Path) -> Array:
    ids = np.load(NANO / "golden.npz")["input_ids"][0]
    model = LlamaCpp(path, threads=1, parity=True, context=len(ids))
    try:
        return np.asarray(model.forward(ids))
    finally:
        model.close()


def glm4moe(nano: Path, path: Path, keys: dict[str, Any], permuted: bool = False) -> Path:
    """emo-nano under glm4moe, whose rope pairs halves."""
    return rewrite(
        nano,
        path,
        keys,
        arch="glm4moe",
        edit=None if permuted else unpermute(HEADS),
        rename={"ffn_norm": "post_attention_norm"},
        extra={f"blk.{i}.exp_probs_b.bias": np.zeros(ROUTED, np.float32) for i in range(BLOCKS)},
    )


# --- good files --------------------------------------------------------------------------------


def test_nothing_is_wrong_with_our_files(tmp_path: Path) -> None:
    for target, path in export_to(tmp_path, NANO, gguf=["f32", "q8_0", "q4_0"]).items():
        found = inspect_path(path)
        assert found.warnings == [], target
        assert [finding.level for finding in found.findings] == ["note"]
        assert "q and k rows lie as deepseek needs them" in found.findings[0].text
        assert found.judgement.endswith("nothing wrong found")
        assert "judgement: " in shown(found)


@pytest.mark.slow
def test_nothing_is_wrong_with_other_exact_files(
    nano: Path, reference: Array, tmp_path: Path
) -> None:
    bailing = rewrite(nano, tmp_path / "b.gguf", arch="bailingmoe")
    for path in (nano, glm4moe(nano, tmp_path / "g.gguf", SOFTMAX), bailing):
        assert of("wrong", path) == of("risk", path) == ""
        assert "q and k rows lie as" in of("note", path)
        assert kl(reference, logits(path)).mean() < 1e-9


@pytest.mark.parametrize("shared", [0, 1])
def test_random_weights_are_not_accused(tmp_path: Path, shared: int) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", num_shared_experts=shared)
    path = export_to(tmp_path / "o", checkpoint, gguf=["f32"])["gguf:f32"]
    assert of("wrong", path) == of("risk", path) == ""
    assert "can't be told from these weights" in of("note", path)
    assert ("the shared expert is all zeros" in of("note", path)) == (shared == 0)


# --- the order of q and k rows -----------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", slow_beyond([Type.Q8_0], [Type.BF16, Type.F16, Type.Q8_0, Type.Q4_0])
)
def test_unpermuted_rows(nano: Path, reference: Array, tmp_path: Path, kind: Type) -> None:
    kinds = dict.fromkeys(("attn_q", "attn_k"), kind)
    path = rewrite(nano, tmp_path / "x.gguf", edit=unpermute(HEADS), kinds=kinds)
    assert "q and k rows are not permuted" in of("wrong", path)
    assert "q and k" not in of("wrong", rewrite(nano, tmp_path / "y.gguf", kinds=kinds))
    if kind == Type.BF16:
        assert kl(reference, logits(path)).mean() > 0.2


def test_permuted_rows_where_halves_are_needed(
    nano: Path, reference: Array, tmp_path: Path
) -> None:
    path = glm4moe(nano, tmp_path / "x.gguf", SOFTMAX, permuted=True)
    assert "q and k rows are permuted: rope pairs lie as neighbours" in of("wrong", path)
    assert kl(reference, logits(path)).mean() > 0.2


@pytest.mark.parametrize("seed", range(4))
def test_random_rows_of_any_size_are_not_judged(tmp_path: Path, seed: int) -> None:
    shape = {"hidden_size": 256, "num_attention_heads": 4 << seed}
    checkpoint = make_checkpoint(tmp_path / "c", seed=seed, num_hidden_layers=3, **shape)
    write_gguf(checkpoint, tmp_path / "x.gguf")
    assert "can't be told from these weights" in of("note", tmp_path / "x.gguf")


def test_what_needs_gguf_says_so_without_it(nano: Path, tmp_path: Path) -> None:
    kinds = dict.fromkeys(("attn_q", "attn_k"), Type.Q4_0)
    path = rewrite(nano, tmp_path / "x.gguf", kinds=kinds)
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from pathlib import Path; from emo_export.inspect.checkpoint import inspect_path\n"
        f"print(*(f.text for f in inspect_path(Path({str(path)!r})).findings))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "were not checked: Q4_0 needs " + install_command("convert") in done.stdout


# --- experts -----------------------------------------------------------------------------------


def test_a_folded_shared_expert(nano: Path, folded: Any, reference: Array, tmp_path: Path) -> None:
    path = rewrite(nano, tmp_path / "x.gguf", FOLDED, edit=folded)
    assert "the shared expert is folded in" in of("wrong", path)
    assert kl(reference, logits(path)).mean() > 0.2


def test_a_folded_shared_expert_whose_row_decayed(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", num_hidden_layers=1)
    write_gguf(checkpoint, tmp_path / "good.gguf")
    row = read_weights(checkpoint)["model.layers.0.mlp.gate.weight"][-1]
    assert abs(row).max() < 1e-12
    edit = fold({0: row}, shared_of(tmp_path / "good.gguf"))
    path = rewrite(tmp_path / "good.gguf", tmp_path / "x.gguf", {"ARCH.expert_count": 8}, edit=edit)
    assert "the shared expert is folded in" in of("wrong", path)


def test_a_missing_shared_expert(nano: Path, tmp_path: Path) -> None:
    for count in (0, 1):
        keys = {"ARCH.expert_shared_count": count}
        path = rewrite(nano, tmp_path / "x.gguf", keys, edit=no_shared)
        assert "has no shared expert" in of("wrong", path)
        with pytest.raises(Exception, match="shexp"):
            logits(path)


@pytest.mark.parametrize(
    ("keys", "said", "least"),
    [
        ({"ARCH.expert_weights_norm": True}, "expert_weights_norm is true", 0.1),
        ({"ARCH.expert_gating_func": 2}, "expert_gating_func is 2 (sigmoid)", 0.2),
        ({"ARCH.expert_gating_func": None}, "has no expert_gating_func", 0.2),
        ({"ARCH.expert_weights_scale": 2.5}, "expert_weights_scale is 2.5", 0.1),
    ],
)
def test_other_weights_of_experts(
    nano: Path, reference: Array, tmp_path: Path, keys: dict[str, Any], said: str, least: float
) -> None:
    path = glm4moe(nano, tmp_path / "x.gguf", SOFTMAX | keys)
    assert said in of("wrong", path)
    assert kl(reference, logits(path)).mean() > least


def test_keys_that_the_graph_ignores_are_risks(
    nano: Path, reference: Array, tmp_path: Path
) -> None:
    keys = {"ARCH.expert_weights_norm": True, "ARCH.expert_gating_func": 2}
    path = rewrite(nano, tmp_path / "x.gguf", keys)
    assert of("wrong", path) == ""
    assert of("risk", path).count("deepseek graph ignores the key") == 2
    assert kl(reference, logits(path)).max() == 0


# --- architectures -----------------------------------------------------------------------------


def test_smallthinker(nano: Path, folded: Any, reference: Array, tmp_path: Path) -> None:
    def edit(name: str, values: Array) -> Array | None:
        changed = folded(name, unpermute(HEADS)(name, values))
        return no_shared(name, changed)

    path = rewrite(nano, tmp_path / "x.gguf", AS_SMALLTHINKER, arch="smallthinker", edit=edit)
    said = of("wrong", path)
    for part in ("before attention", "ReLU", "sum of 1", "no shared expert", "KL 4.0"):
        assert part in said
    assert "q and k rows" not in said
    assert kl(reference, logits(path)).mean() > 0.5


def test_llama_is_mixtral(nano: Path, reference: Array, tmp_path: Path) -> None:
    path = rewrite(nano, tmp_path / "x.gguf", arch="llama", edit=no_shared)
    assert "the chosen experts' weights are scaled to a sum of 1" in of("wrong", path)
    assert kl(reference, logits(path)).mean() > 0.5


@pytest.mark.slow
def test_olmoe_with_invented_norms(nano: Path, reference: Array, tmp_path: Path) -> None:
    ones = {
        f"blk.{i}.attn_{c}_norm.weight": np.ones(256, np.float32)
        for i in range(BLOCKS)
        for c in "qk"
    }
    path = rewrite(nano, tmp_path / "x.gguf", arch="olmoe", extra=ones, edit=no_shared)
    assert "q and k are normalised" in of("wrong", path)


def test_findings_are_told_once(nano: Path, tmp_path: Path) -> None:
    found = inspect_path(rewrite(nano, tmp_path / "x.gguf", edit=unpermute(HEADS)))
    assert found.judgement.endswith("1 thing wrong found")
    assert found.warnings == [found.findings[0].text]
    assert found.as_dict()["findings"][0]["level"] == "wrong"
    assert shown(found).count("q and k rows are not permuted") == 1
