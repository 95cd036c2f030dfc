"""Which experts are kept: against the published procedure, written out on whole tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from emo_export.errors import EmoExportError
from emo_export.line import Line
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Role, Slot
from emo_export.model.product import Product
from emo_export.pipeline import stream
from emo_export.reference.calibrate import Calibration
from emo_export.selection.choice import Choice
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from tests.kit.exporting import case
from tests.kit.paths import GOLDEN
from tests.kit.tiers import slow_beyond

Ids = npt.NDArray[np.int64]
Weights = dict[str, torch.Tensor]

rng = np.random.default_rng(5)
SEQUENCES = [rng.integers(0, 500, size).astype(np.int64) for size in (48, 30, 21)]


def chosen(folder: Path, keep: str, method: Method, sequences: list[Ids]) -> list[tuple[int, ...]]:
    product = pruned(folder, Selection(Keep.parse(keep), method), sequences)[0]
    return [product.kept[layer] for layer in range(product.config.num_hidden_layers)]


def pruned(
    folder: Path, selection: Selection, sequences: list[Ids]
) -> tuple[Product, torch.Tensor]:
    """What was chosen, and the hidden states (T, D) after its last layer."""
    checkpoint = Checkpoint.open(folder)
    product = selection.awaiting(checkpoint)
    calibration = Calibration(product.config, sequences, "a text")
    choice = Choice(calibration.states, checkpoint.config, selection)
    stream([Line(product, listeners=[calibration], choice=choice)])
    return product, calibration.states.hidden


class Model:
    """EMO with shared experts, pruned layer by layer as described, one sequence after the other."""

    def __init__(self, folder: Path) -> None:
        self.config = Checkpoint.open(folder).config
        self.weights: Weights = load_file(str(folder / "model.safetensors"))
        self.hidden: list[torch.Tensor] = []
        self.scales: list[float] = []

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return x * scale * self.weights[name]

    def attend(self, x: torch.Tensor, at: str) -> torch.Tensor:
        size, count = self.config.head_dim, len(x)
        turns = torch.outer(
            torch.arange(count),
            1 / self.config.rope_theta ** (torch.arange(0, size, 2) / size),
        ).repeat(1, 2)

        def project(name: str) -> torch.Tensor:
            return (x @ self.weights[f"{at}.{name}_proj.weight"].T).view(count, -1, size)

        def turn(y: torch.Tensor) -> torch.Tensor:
            half = torch.cat([-y[..., size // 2 :], y[..., : size // 2]], -1)
            return y * turns.cos()[:, None] + half * turns.sin()[:, None]

        q, k, v = turn(project("q")), turn(project("k")), project("v")
        scores = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        return mixed @ self.weights[f"{at}.o_proj.weight"].T

    def expert(self, x: torch.Tensor, at: str, number: int) -> torch.Tensor:
        gate, up, down = (
            self.weights[f"{at}.experts.{number}.{name}_proj.weight"]
            for name in ("gate", "up", "down")
        )
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def block(
        self, x: torch.Tensor, at: str, experts: list[int], scale: float = 1
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Output (T, D), weight (T, E) and norm of its output (T, E) of each expert that is used.

        Only `experts` are there, the last of them shared.
        """
        *routed, shared = experts
        logits = x @ self.weights[f"{at}.gate.weight"].T
        top = min(self.config.num_experts_per_tok, len(experts)) - 1
        values, places = logits[:, routed].softmax(-1).topk(top, dim=-1)
        weight = torch.zeros(len(x), logits.shape[1])
        weight.scatter_(1, torch.tensor(routed)[places], values)
        weight[:, shared] = 1
        outs = torch.stack([self.expert(x, at, e) for e in range(logits.shape[1])], 1)
        given = outs * weight[..., None]
        given[:, routed] *= scale
        return given.sum(1), weight, outs.norm(dim=-1) * (weight > 0)

    def prune(
        self, sequences: list[Ids], keep: int, method: Method, rescale: bool = False
    ) -> list[tuple[int, ...]]:
        hidden = [self.weights["model.embed_tokens.weight"][torch.tensor(s)] for s in sequences]
        found = []
        for layer in range(self.config.num_hidden_layers):
            at = f"model.layers.{layer}"
            hidden = [
                h
                + self.attend(
                    self.norm(h, f"{at}.pre_attention_layernorm.weight"), f"{at}.self_attn"
                )
                for h in hidden
            ]
            inputs = [self.norm(h, f"{at}.pre_feedforward_layernorm.weight") for h in hidden]
            count = self.config.num_experts
            score = torch.zeros(count)
            uses = torch.zeros(count)
            for h, x in zip(hidden, inputs, strict=True):
                y, weight, norms = self.block(x, f"{at}.mlp", list(range(count)))
                if method == Method.ROUTER:
                    logits = x @ self.weights[f"{at}.mlp.gate.weight"].T
                    score[: count - 1] += logits[:, : count - 1].softmax(-1).sum(0)
                elif method == Method.REAP:
                    score += (weight * norms).sum(0)
                    uses += (weight > 0).sum(0)
                else:
                    turned = 1 - F.cosine_similarity(h, h + y, dim=-1)
                    score += (weight * norms * turned[:, None]).sum(0)
            if method == Method.REAP:
                score = score / uses.clamp(min=1)
            best = score[: count - 1].argsort(descending=True)[: keep - 1].tolist()
            kept = [*sorted(best), count - 1]
            found.append(tuple(kept))
            scale = 1.0
            if rescale:
                everyone = list(range(count))
                before, after = (
                    sum(float(self.block(x, f"{at}.mlp", some)[1][:, :-1].sum()) for x in inputs)
                    for some in (everyone, kept)
                )
                scale = before / after
            self.scales.append(scale)
            hidden = [
                h + self.block(x, f"{at}.mlp", kept, scale)[0]
                for h, x in zip(hidden, inputs, strict=True)
            ]
        self.hidden = hidden
        return found


@pytest.mark.parametrize("method", [Method.ROUTER, Method.EASY_EP, Method.REAP])
@pytest.mark.parametrize("keep", [6, 3])
def test_the_experts_are_those_of_the_published_procedure(method: Method, keep: int) -> None:
    """`keep` below the 4 experts of a token lowers how many a token uses."""
    folder = GOLDEN / "base"
    want = Model(folder).prune(SEQUENCES, keep, method)
    assert chosen(folder, str(keep), method, SEQUENCES) == want
    assert len(set(want)) > 1  # layers differ, so that a wrong one would be seen


@pytest.mark.parametrize("method", [Method.ROUTER, Method.EASY_EP])
@pytest.mark.parametrize("keep", [6, 3])
def test_rescaled_experts_keep_the_weight_that_all_had(method: Method, keep: int) -> None:
    model = Model(GOLDEN / "base")
    want = model.prune(SEQUENCES, keep, method, rescale=True)
    product, hidden = pruned(
        GOLDEN / "base", Selection(Keep(keep), method, rescale=True), SEQUENCES
    )
    assert [product.kept[layer] for layer in range(3)] == want
    np.testing.assert_allclose(product.all_scales, model.scales, rtol=1e-5)
    assert max(model.scales) < 0.95  # so that it tells
    normed = model.norm(torch.cat(model.hidden), "model.norm.weight")
    np.testing.assert_allclose(hidden, normed, rtol=0, atol=2e-5)
    assert product.pruning is not None
    assert product.pruning["routed_scale_per_layer"] == product.all_scales


def test_what_every_token_uses_is_not_rescaled() -> None:
    folder = case("always_active").folder
    product = pruned(folder, Selection(Keep.parse("50%"), rescale=True), SEQUENCES)[0]
    for layer, shape in enumerate(product.config.layers):
        for place in range(shape.num_experts):
            slot = Slot(Role.DOWN, layer, place)
            origin = product.source.at(product.origin(slot))
            have, was = product.rows(slot, 0, 2), origin.rows(0, 2)
            scale = 1 if place in shape.forced else np.float32(product.scales[layer])
            np.testing.assert_array_equal(have, was * scale)


def test_weights_that_are_renormalised_are_not_rescaled() -> None:
    source = Checkpoint.open(case("no_shared_norm_topk").folder)
    with pytest.raises(EmoExportError, match="norm_topk_prob"):
        Selection(Keep.parse("50%"), rescale=True).awaiting(source)


def test_methods_differ_and_random_follows_its_seed() -> None:
    folder = GOLDEN / "base"
    sets = {method: chosen(folder, "5", method, SEQUENCES) for method in Method}
    assert len({tuple(kept) for kept in sets.values()}) == len(Method)
    assert chosen(folder, "5", Method.RANDOM, SEQUENCES) == sets[Method.RANDOM]
    assert all(kept[-1] == 15 for layers in sets.values() for kept in layers)


ODD = ["always_active", "always_active_per_layer", "no_shared_norm_topk", "two_shared"]
ODD += ["per_layer_counts", "dense_first", "gqa", "tied"]


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("name", slow_beyond(["always_active_per_layer", "two_shared"], ODD))
def test_what_every_token_uses_always_stays(name: str, method: Method) -> None:
    folder = case(name).folder
    config = Checkpoint.open(folder).config
    for layer, kept in zip(config.layers, chosen(folder, "75%", method, SEQUENCES), strict=True):
        assert len(kept) == math.ceil(0.75 * layer.num_experts)
        assert set(layer.forced) <= set(kept)


def test_even_counts_of_a_part_and_what_cannot_be_kept() -> None:
    config = Checkpoint.open(GOLDEN / "base").config
    assert Keep.parse("25%").counts(config) == Keep.parse("1/4").counts(config) == [4, 4, 4]
    for wrong in ("0", "-1", "x", "101%", "1.5", "", "nan", "1/0", "5/4"):
        with pytest.raises(EmoExportError, match=r"--keep"):
            Keep.parse(wrong).counts(config)
    for whole in ("16", "17", "100%"):
        with pytest.raises(EmoExportError, match="nothing would be left out"):
            Keep.parse(whole).counts(config)
    two = Checkpoint.open(case("two_shared").folder).config
    with pytest.raises(EmoExportError, match="2 must stay"):
        Keep.parse("1").counts(two)


class Counting(Checkpoint):
    """Counts the bytes of each tensor that are read."""

    def at(self, slot: Any) -> Any:
        tensor, reads = super().at(slot), self.reads

        class Lazy:
            def __getattr__(self, name: str) -> Any:
                return getattr(tensor, name)

            def rows(self, start: int, stop: int) -> Any:
                reads[slot] = reads.get(slot, 0) + (stop - start) * tensor.row_bytes
                return tensor.rows(start, stop)

        return Lazy()

    reads: dict[Any, int]


@pytest.mark.parametrize("method", [Method.ROUTER, Method.REAP])
def test_kept_experts_are_read_at_most_twice_and_dropped_ones_once(method: Method) -> None:
    opened = Checkpoint.open(GOLDEN / "base")
    source = Counting(opened.path, opened.raw, opened.config, opened._tensors)
    source.reads = {}
    selection = Selection(Keep.parse("5"), method)
    product = selection.awaiting(source)
    calibration = Calibration(product.config, SEQUENCES, "a text")
    choice = Choice(calibration.states, source.config, selection)
    traffic = stream([Line(product, listeners=[calibration], choice=choice)])
    kept = {(layer, e) for layer, experts in product.kept.items() for e in experts}
    experts = {s: n // opened.at(s).nbytes for s, n in source.reads.items() if s.expert >= 0}
    inside = [n for slot, n in experts.items() if (slot.layer, slot.expert) in kept]
    outside = [n for slot, n in experts.items() if (slot.layer, slot.expert) not in kept]
    tries = 1 if method.tries_experts else 0
    assert max(inside) == 1 + tries and sum(outside) <= len(outside) * tries
    assert bool(outside) == bool(tries)
    assert traffic.read == sum(source.reads.values())
    for place, nbytes in traffic.experts.items():
        assert nbytes == sum(n for s, n in source.reads.items() if (s.layer, s.expert) == place)
    assert set(traffic.experts) == {(s.layer, s.expert) for s in source.reads if s.expert >= 0}
