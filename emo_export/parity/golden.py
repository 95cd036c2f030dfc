"""Golden logits, and the comparison of an engine with them.

Two comparisons that are never mixed: `dequantised` (the reference run on the weights as the format
stores them: finds bugs, judged tightly) and `original` (the float checkpoint: measures what
quantisation costs). Letters: n sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.base.disk import writing
from emo_export.base.npz_file import read_npz
from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids, Runtime

ORIGINAL = "original"
FULL = "full"
"""The variant of all experts, where the original is a product that leaves some out."""
PAD = -1

SEQUENCE = 48  # tokens of a sequence whose logits are all kept
HELDOUT_TOKENS = 4096  # of held-out text, unless told otherwise
MOST_SEQUENCES = 6  # for each HELDOUT_TOKENS of text
LOGIT_BYTES = 64 << 20  # of their logits; a vocabulary of 100352 gets 3 sequences

F64 = npt.NDArray[np.float64]


def sequences_kept(tokens: int, vocab_size: int, heldout: int = HELDOUT_TOKENS) -> int:
    """How many sequences of so many tokens keep all logits, with `heldout` tokens of text."""
    count = max(1, min(MOST_SEQUENCES, LOGIT_BYTES // (4 * tokens * vocab_size)))
    return count * max(1, round(heldout / HELDOUT_TOKENS))


@dataclass(frozen=True)
class Variant:
    """What the reference computes with one set of weights.

    `logits` (n, T, V); `margin` (n, T): over the expert layers, the smallest gap between the router
    logits of the last expert chosen and the first one passed over (infinite without a choice);
    `heldout_nll` (m, L): negative log likelihood of each held-out token, NaN where there is none.
    `experts` (2,): how many routed experts the judged tokens use, of how many in all layers.
    """

    logits: F32
    margin: F32
    heldout_nll: F32
    experts: Ids


@dataclass(frozen=True)
class Golden:
    """Token ids and what the reference says about them, for every variant of the weights.

    `input_ids` (n, T); `heldout_ids` (m, L), padded with -1; `text_ids` are the ids of `text`
    (empty without a tokenizer) and `stop_ids` those that end one; `greedy` continues
    `greedy_prompt` with the float original. `variants` has "original" and the name of every
    quantised target.

    `domains` names the kind of text of each held-out row, and `usage` (domains in the order of
    `domain_order`, layers, experts) says how many of its tokens chose an expert in the float
    original: -1 where there is none to choose (dense layer, shared or always active expert). Both
    are empty in a file of an emo-export that did not record them.
    """

    input_ids: Ids
    heldout_ids: Ids
    heldout_source: str
    text: str
    text_ids: Ids
    stop_ids: Ids
    greedy_prompt: Ids
    greedy: Ids
    variants: Mapping[str, Variant] = field(default_factory=dict)
    domains: tuple[str, ...] = ()
    usage: Ids = field(default_factory=lambda: np.empty((0, 0, 0), np.int64))

    def variant(self, target: str) -> Variant:
        """The dequantised reference of a target; one that keeps all bits has the original's."""
        return self.variants.get(target, self.variants[ORIGINAL])

    def check(self) -> None:
        """Raise ValueError when shapes, types or values can't be of one golden."""
        judged, heldout = self.input_ids.shape, self.heldout_ids.shape
        whole = (
            self.input_ids,
            self.heldout_ids,
            self.text_ids,
            self.stop_ids,
            self.greedy_prompt,
            self.greedy,
        )
        if any(ids.dtype != np.int64 for ids in whole) or len(judged) != 2 or len(heldout) != 2:
            raise ValueError("token ids of a wrong type or shape")
        if self.domains and len(self.domains) != heldout[0]:
            raise ValueError(f"{len(self.domains)} domains of {heldout[0]} held-out rows")
        counted = self.usage.dtype == np.int64 and self.usage.ndim == 3
        if not counted or len(self.usage) != len(domain_order(self.domains)):
            raise ValueError("expert usage of a wrong type or shape")
        scored = self.heldout_ids[:, 1:] != PAD
        if not scored.any() or not self.input_ids.size:
            raise ValueError("no tokens to judge")
        for name, variant in self.variants.items():
            fits = variant.logits.ndim == 3 and variant.logits.shape[:2] == judged
            if not fits or variant.margin.shape != judged or variant.heldout_nll.shape != heldout:
                raise ValueError(f"shapes of {name} do not fit the token ids")
            if not np.isfinite(variant.logits).all():
                raise ValueError(f"logits of {name} are not finite")
            if not np.isfinite(variant.heldout_nll[:, 1:][scored]).all():
                raise ValueError(f"likelihoods of {name} are not finite")

    def save(self, path: Path, compressed: bool = True) -> None:
        """Write golden.npz."""
        arrays: dict[str, Any] = {
            "input_ids": self.input_ids,
            "heldout_ids": self.heldout_ids,
            "heldout_source": np.array(self.heldout_source),
            "text": np.frombuffer(self.text.encode(), np.uint8),
            "text_ids": self.text_ids,
            "stop_ids": self.stop_ids,
            "greedy_prompt": self.greedy_prompt,
            "greedy": self.greedy,
        }
        if self.domains:
            arrays |= {"domains": np.array(self.domains), "usage": self.usage}
        for name, variant in self.variants.items():
            for part, array in vars(variant).items():  # asdict would copy
                arrays[f"{name}/{part}"] = array
        with writing(path), path.open("wb") as handle:
            (np.savez_compressed if compressed else np.savez)(handle, **arrays)

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read golden.npz. Raises EmoExportError when it is missing, damaged or not ours."""
        arrays = read_npz(path, "a golden.npz of emo-export")
        try:
            names = sorted({key.split("/")[0] for key in arrays if "/" in key})
            variants = {
                name: Variant(
                    arrays[f"{name}/logits"],
                    arrays[f"{name}/margin"],
                    arrays[f"{name}/heldout_nll"],
                    arrays[f"{name}/experts"],
                )
                for name in names
            }
            golden = cls(
                arrays["input_ids"],
                arrays["heldout_ids"],
                str(arrays["heldout_source"]),
                arrays["text"].tobytes().decode(),
                arrays["text_ids"],
                arrays["stop_ids"],
                arrays["greedy_prompt"],
                arrays["greedy"],
                {ORIGINAL: variants[ORIGINAL], **variants},
                *_domains(arrays),
            )
            golden.check()
            return golden
        except (KeyError, ValueError, TypeError) as error:
            raise EmoExportError(f"{path}: is not a golden.npz of emo-export ({error})") from error


def domain_order(domains: Sequence[str]) -> list[str]:
    """The distinct names of the domains of held-out rows, in the order of the rows."""
    return list(dict.fromkeys(domains))


def _domains(arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[tuple[str, ...], Ids]:
    """Domains and expert usage of a golden.npz, which an older one lacks."""
    if "domains" not in arrays and "usage" not in arrays:
        return (), np.empty((0, 0, 0), np.int64)
    if arrays["domains"].dtype.kind != "U" or arrays["domains"].ndim != 1:
        raise ValueError("domains are not a list of names")
    return tuple(arrays["domains"].tolist()), arrays["usage"]


@dataclass(frozen=True)
class Measured:
    """Figures of one comparison.

    KL in nats, reference against engine, per position; `near_ties` positions (margin under the
    tolerance's `tie`) are left out of `kl_mean`, `kl_max` and `top1`, and have their own mean.
    """

    positions: int
    kl_mean: float
    kl_max: float
    top1: float
    max_abs: float
    near_ties: int
    near_ties_kl_mean: float


def log_softmax(logits: F32) -> F64:
    """Logits (..., V) -> log probabilities, float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def kl_divergence(reference: F32, engine: F32) -> F64:
    """KL(reference || engine) in nats for each position of (..., V)."""
    p, q = log_softmax(reference), log_softmax(engine)
    # Rounding can leave a value a little under zero where the two agree to the last bit.
    divergence: F64 = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return divergence


def clear_positions(margin: F32, tie: float) -> npt.NDArray[np.bool_]:
    """Which positions (n, T) hang on no near tie; all, when those were less than half.

    A check must be able to fail.
    """
    clear: npt.NDArray[np.bool_] = margin >= tie
    return clear if clear.mean() >= 0.5 else np.ones_like(clear)


def measure(reference: F32, engine: F32, margin: F32, tie: float) -> Measured:
    """Compare logits (n, T, V); positions whose routing margin is under `tie` are scored apart."""
    if not np.isfinite(engine).all():
        nan = float("nan")
        return Measured(margin.size, nan, nan, 0.0, nan, 0, nan)
    divergence = kl_divergence(reference, engine)
    clear = clear_positions(margin, tie)
    agree = reference.argmax(axis=-1) == engine.argmax(axis=-1)
    tied = divergence[~clear]
    return Measured(
        positions=int(clear.size),
        kl_mean=float(divergence[clear].mean()),
        kl_max=float(divergence[clear].max()),
        top1=float(agree[clear].mean()),
        max_abs=float(np.abs(reference - engine)[clear].max()),
        near_ties=int(tied.size),
        near_ties_kl_mean=float(tied.mean()) if tied.size else 0.0,
    )


def run_logits(runtime: Runtime, ids: Ids, step: int) -> F32:
    """Token ids (n, T) -> logits (n, T, V), in calls of `step` tokens (0: one call each)."""
    out = np.empty((*ids.shape, runtime.vocab_size), dtype=np.float32)
    for index, sequence in enumerate(ids):
        runtime.reset()
        size = step or len(sequence)
        for start in range(0, len(sequence), size):
            out[index, start : start + size] = runtime.forward(sequence[start : start + size])
    return out


def run_nll(runtime: Runtime, ids: Ids) -> F32:
    """Held-out ids (m, L), padded with PAD -> negative log likelihood, NaN for first tokens."""
    out = np.full(ids.shape, np.nan, dtype=np.float32)
    for index, padded in enumerate(ids):
        sequence = padded[padded != PAD]
        runtime.reset()
        logits = runtime.forward(sequence)
        if not np.isfinite(logits).all():
            # A mean that skips NaN would hide a text on which the engine breaks down.
            out[index, 1 : len(sequence)] = np.inf
            continue
        scores = log_softmax(logits[:-1])
        out[index, 1 : len(sequence)] = -scores[np.arange(len(sequence) - 1), sequence[1:]]
    return out


def perplexity(nll: F32) -> float:
    """Exp of the mean over the tokens that have a value."""
    return float(np.exp(np.nanmean(nll.astype(np.float64))))


def run_greedy(runtime: Runtime, prompt: Ids, steps: int) -> list[int]:
    """The `steps` most likely tokens after a prompt (T,)."""
    runtime.reset()
    tokens: list[int] = []
    ids = prompt
    for _ in range(steps):
        tokens.append(int(runtime.forward(ids)[-1].argmax()))
        ids = np.array(tokens[-1:], dtype=np.int64)
    return tokens


def first_difference(reference: Ids, tokens: list[int]) -> int | None:
    """The first step at which two texts differ, from 0; None when they are the same."""
    for step, (expected, found) in enumerate(zip(reference.tolist(), tokens, strict=True)):
        if expected != found:
            return step
    return None
