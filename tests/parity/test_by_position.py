"""What golden.npz and a report say by position, domain and expert, against counts by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.exporting.folder import write_parity
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.parity.by_position import by_domain, by_position
from emo_export.parity.golden import ORIGINAL, Golden
from emo_export.parity.judge import validate_target
from emo_export.parity.result import Result
from emo_export.reference.probes import (
    MOST_DOMAINS,
    Probes,
    VariantSink,
    choose_probes,
    domain_names,
)
from emo_export.spec import Spec
from tests.kit.exporting import case
from tests.kit.oracle import oracle_logits, route
from tests.kit.paths import NANO
from tests.parity.test_parity import logs, small_golden

LEFT, RIGHT = [0.8, 0.2], [0.2, 0.8]
CHECKED = ["mha", "two_shared", "always_active", "dense_first"]


def test_positions_by_hand() -> None:
    reference = np.concatenate([logs(LEFT, RIGHT), logs(LEFT, LEFT)])
    engine = np.concatenate([logs(LEFT, LEFT), logs(LEFT, LEFT)])
    found = by_position(reference, engine)
    assert found.kl_mean == pytest.approx((0, 0.6 * math.log(4) / 2), rel=1e-5)
    assert found.max_abs == pytest.approx((0, math.log(4)), rel=1e-5)
    assert found.mean_abs == pytest.approx((0, math.log(4) / 2), rel=1e-5)
    assert found.top1 == (1.0, 0.5)


def test_a_position_that_is_not_finite() -> None:
    engine = logs(LEFT, RIGHT)
    engine[0, 1, 0] = np.nan
    found = by_position(logs(LEFT, RIGHT), engine)
    assert found.kl_mean[0] == 0 and math.isnan(found.kl_mean[1]) and math.isnan(found.max_abs[1])
    assert found.top1 == (1.0, 0.0)


def with_domains() -> Golden:
    usage = np.arange(2 * 1 * 3).reshape(2, 1, 3)
    return replace(small_golden(), domains=("c", "übung"), usage=usage)


def test_perplexity_by_domain() -> None:
    golden = with_domains()
    original = golden.variants[ORIGINAL]
    original.heldout_nll[:, 0] = original.heldout_nll[1, 2:] = np.nan  # as the sink leaves it
    nll = original.heldout_nll + np.float32(math.log(2))
    first, second = by_domain(golden, original, nll)
    assert (first.domain, first.tokens, second.domain, second.tokens) == ("c", 3, "übung", 1)
    assert first.perplexity_ratio == pytest.approx(2) == second.perplexity_ratio
    assert second.perplexity == pytest.approx(2 * math.exp(original.heldout_nll[1, 1]))
    assert by_domain(small_golden(), original, nll) == ()


def test_golden_keeps_domains_and_usage(tmp_path: Path) -> None:
    golden, path = with_domains(), tmp_path / "golden.npz"
    golden.save(path)
    found = Golden.load(path)
    assert found.domains == golden.domains
    np.testing.assert_array_equal(found.usage, golden.usage)
    small_golden().save(path)  # as an older emo-export wrote it
    assert Golden.load(path).domains == () and Golden.load(path).usage.size == 0
    for bad in (
        replace(golden, domains=("c",)),
        replace(golden, usage=golden.usage[:1]),
        replace(golden, usage=golden.usage.astype(np.int32)),
    ):
        bad.save(path)
        with pytest.raises(EmoExportError, match="is not a golden"):
            Golden.load(path)


@pytest.mark.parametrize("name", CHECKED)
def test_usage_is_what_the_oracle_chooses(name: str) -> None:
    made = case(name)
    config = Checkpoint.open(made.folder).config
    held = tuple(np.random.default_rng(5).integers(0, 512, length) for length in (9, 2, 15))
    probes = Probes(made.ids[:, :12], held, "test", 128, domains=("b", "a", "b"))
    sink = VariantSink(config, probes)
    sink.listening("cpu").run(Product.whole(Checkpoint.open(made.folder)).rows)
    want = np.full((2, len(config.layers), max(x.num_experts for x in config.layers)), -1)
    raw = {"num_experts_per_tok": config.num_experts_per_tok, "num_experts": config.num_experts}
    raw["num_shared_experts"] = config.num_shared_experts
    sparse = [i for i, layer in enumerate(config.layers) if not layer.is_dense]
    for index in sparse:
        want[:, index, list(config.layers[index].routed)] = 0
    for domain, ids in zip((0, 1, 0), held, strict=True):
        for index, router in zip(sparse, oracle_logits(made.folder, ids[None])[1], strict=True):
            layer = config.layers[index]
            full: dict[str, Any] = raw | {
                "always_active_experts": list(layer.always_active_experts)
            }
            for logits in router:
                for expert in set(route(full, 0, logits)) - set(layer.forced):
                    want[domain, index, expert] += 1
    np.testing.assert_array_equal(sink.usage, want)
    chosen = np.maximum(want, 0).sum(axis=2)
    assert (chosen[0, sparse] == 24 * config.layers[sparse[0]].num_routed_per_tok).all()


def test_domains_are_the_files() -> None:
    files = sorted((NANO / "heldout").iterdir())
    probes = choose_probes(Checkpoint.open(NANO), files, 1200)
    assert list(dict.fromkeys(probes.domains)) == [file.stem for file in files]
    tokens = [
        sum(len(i) for d, i in zip(probes.domains, probes.heldout, strict=True) if d == file.stem)
        for file in files
    ]
    assert tokens == [200] * 6
    assert set(choose_probes(Checkpoint.open(NANO), (), 1200).domains) == {"built-in text"}


def test_domain_names() -> None:
    assert domain_names([Path("a/x.txt"), Path("b/y.jsonl")]) == ["x", "y"]
    assert domain_names([Path("a/x.txt"), Path("b/x.txt")]) == ["a/x.txt", "b/x.txt"]
    many = domain_names([Path(f"{i}.txt") for i in range(MOST_DOMAINS + 4)])
    assert len(set(many)) == MOST_DOMAINS and many[-5:] == ["5 other files"] * 5


class Answers:
    """An engine that answers with the logits it is given, in the order of the judged sequences."""

    name, vocab_size, context_length = "answers", 7, 64

    def __init__(self, broken: bool) -> None:
        self._value = np.float32(np.nan if broken else 0.25)

    def forward(self, ids: np.ndarray, *, last: bool = False) -> np.ndarray:
        return np.full((len(ids), 7), self._value) + np.eye(7, dtype=np.float32)[ids % 7]

    def reset(self) -> None: ...

    def close(self) -> None: ...

    def describe(self) -> Mapping[str, str]:
        return {"version": "1", "threads": "1"}


class Words:
    stop_ids = frozenset({3})

    def encode(self, text: str) -> list[int]:
        return [7, 8]

    def piece(self, token: int) -> bytes:
        return b""


def report(broken: bool = False) -> Result:
    engine = Answers(broken)
    return validate_target(
        Spec("gguf", "q4_0"),
        with_domains(),
        lambda: engine,
        lambda runtime: Words(),
        lambda: engine,
    )


def test_reports_are_read_back() -> None:
    made = report()
    assert len(made.rows) == 5 and len(made.rows[2].domains) == 2
    assert len(made.rows[0].positions.kl_mean) == 3
    assert Result.from_dict(json.loads(json.dumps(made.as_dict()))) == made
    broken = report(broken=True)
    back = Result.from_dict(json.loads(json.dumps(broken.as_dict())))
    assert not back.passed and math.isnan(back.rows[2].perplexity_ratio or 0)
    assert back.as_dict() == broken.as_dict()


def test_other_reports_are_refused() -> None:
    def refused(change: Mapping[str, object], match: str) -> None:
        with pytest.raises(EmoExportError, match=match):
            Result.from_dict({**report().as_dict(), **change}, "far")

    refused({"extra": 1}, "far: unknown extra")
    refused({"passed": None}, "passed is None")
    refused({"passed": True}, "passed is True")  # its rows say otherwise
    refused({"greedy_steps": True}, r"far\.greedy_steps: expected a whole number, found True")
    refused({"engine": {"version": 1}}, r"far\.engine\.version: expected str")
    refused({"rows": {}}, r"far\.rows: expected a list")
    refused({"rows": [None]}, r"far\.rows\[0\]: expected an object")
    raw = report().as_dict()
    del raw["rows"][1]["measured"]["top1"]
    with pytest.raises(EmoExportError, match=r"far\.rows\[1\]\.measured: missing top1"):
        Result.from_dict(raw, "far")
    for other in (None, [], "x"):
        with pytest.raises(EmoExportError, match="expected an object"):
            Result.from_dict(other)


def test_parity_json_has_numbers_on_one_line(tmp_path: Path) -> None:
    path, made = tmp_path / "parity.json", report(broken=True)
    made = replace(made, heldout_source="[ 1,  2 ]")
    write_parity(path, [made, report()])
    text = path.read_text("utf-8")
    assert '"kl_mean": [null, null, null]' in text
    content = json.loads(text)
    assert content["targets"] == [made.as_dict(), report().as_dict()]
