"""Making golden.npz: which token ids, and the sink that keeps what the reference says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Ids
from emo_export.model.config import EmoConfig
from emo_export.model.finite import first
from emo_export.model.product import Product
from emo_export.model.stop_tokens import stop_tokens
from emo_export.parity.golden import (
    ORIGINAL,
    PAD,
    SEQUENCE,
    Golden,
    Variant,
    domain_order,
    sequences_kept,
)
from emo_export.reference.passes import Pass
from emo_export.reference.states import States
from emo_export.text.documents import FIELD
from emo_export.text.first import sequences_of, split
from emo_export.text.places import legible, named
from emo_export.text.tokenizer import Encode, open_tokenizer, why_no_tokenizer

HELDOUT = 256  # tokens of a held-out sequence, of which only likelihoods are kept
MOST_DOMAINS = 16  # of the held-out text; the files beyond share the last
PROMPT = 16
GREEDY = 24
SEED = 20260507

BUILT_IN_TEXT = "emo-export's own sample text"
SAMPLE = resources.files("emo_export.reference").joinpath("sample.txt").read_text("utf-8")

# What engines split differently when a tokenizer is converted wrongly.
TRICKY = (
    SAMPLE + "  two  spaces\t\ttabs\r\nDon't we'LL 1234567 3.14 naïve Ünïcödé 東京 привет 🙂👍🏽 "
    "(a+b)==c; \n\n\n trailing   "
)


@dataclass(frozen=True)
class Probes:
    """The token ids to score: `input_ids` (n, T) with all logits, `heldout` with likelihoods.

    `domains` names the kind of text of each held-out sequence (empty: not known).
    """

    input_ids: Ids
    heldout: tuple[Ids, ...]
    heldout_source: str
    context: int
    text: str = ""
    text_ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    stop_ids: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    domains: tuple[str, ...] = ()

    @classmethod
    def of(cls, golden: Golden) -> Probes:
        """The token ids of a golden.npz, to compute its reference anew."""
        heldout = tuple(row[row != PAD] for row in golden.heldout_ids)
        context = len(golden.greedy_prompt) + len(golden.greedy)
        return cls(
            golden.input_ids,
            heldout,
            golden.heldout_source,
            context,
            golden.text,
            golden.text_ids,
            golden.stop_ids,
            golden.domains,
        )

    def golden_bytes(self, targets: int, config: EmoConfig) -> int:
        """At most the size of golden.npz, which is compressed a little."""
        return (targets + 1) * 4 * self.input_ids.size * config.vocab_size

    @property
    def sequences(self) -> list[Ids]:
        """All of them, in the order in which a run takes them."""
        return [*self.input_ids, *self.heldout]

    @property
    def greedy_prompt(self) -> Ids:
        """The beginning of the first sequence, short enough to leave room for an answer."""
        return self.input_ids[0, : min(PROMPT, max(1, self.context // 2))]

    @property
    def greedy_steps(self) -> int:
        """How many tokens follow it."""
        return min(GREEDY, self.context - len(self.greedy_prompt))

    @property
    def heldout_ids(self) -> Ids:
        """Held-out sequences (m, L), padded with PAD."""
        longest = max(len(ids) for ids in self.heldout)
        padded = np.full((len(self.heldout), longest), PAD, dtype=np.int64)
        for row, ids in zip(padded, self.heldout, strict=True):
            row[: len(ids)] = ids
        return padded


def choose_probes(
    product: Product,
    heldout: Sequence[Path],
    tokens: int,
    context: int | None = None,
    field: str = FIELD,
    encode: Encode | None = None,
) -> Probes:
    """Pick token ids: from held-out files, else a built-in text, else (no tokenizer) at random.

    `tokens` bounds the held-out tokens, shared evenly among files; `context` the length of a
    sequence (default: the config's); `field` holds the text in JSON lines; `encode` (default: that
    of the product's folder) is the tokenizer. Raises EmoExportError for a file that holds no text,
    and for held-out files without a tokenizer.
    """
    config = product.config
    context = config.context_length(context)
    tokenizer = encode or open_tokenizer(product.path, config.vocab_size)
    if tokenizer is None and heldout:
        raise EmoExportError(
            f"--heldout needs the checkpoint's tokenizer, and {product.path} "
            f"{why_no_tokenizer(product.path)}"
        )
    if tokenizer is None:
        rng = np.random.default_rng(SEED)
        texts = [rng.integers(0, config.vocab_size, min(HELDOUT, context)) for _ in range(4)]
        source = "random token ids (the checkpoint has no tokenizer)"
        domains = ["random token ids"] * len(texts)
    elif heldout:
        each = [
            sequences_of([file], tokenizer, tokens // len(heldout), min(HELDOUT, context), field)
            for file in heldout
        ]
        texts = [ids for inside in each for ids in inside]
        source = named(heldout)
        names = domain_names(heldout)
        domains = [name for name, inside in zip(names, each, strict=True) for _ in inside]
    else:
        texts = list(split(tokenizer(SAMPLE), min(HELDOUT, context)))
        source = BUILT_IN_TEXT
        domains = ["built-in text"] * len(texts)
    if not texts:
        raise EmoExportError(f"{source}: too short to judge; give at least two tokens of text")
    width = min(SEQUENCE, context, max(len(t) for t in texts))
    windows = [t[s : s + width] for t in texts for s in range(0, len(t) - width + 1, width)]
    count = sequences_kept(width, config.vocab_size, sum(map(len, texts)))
    # Spread over the files, which are ordered by kind of text.
    picks = np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int)
    kept = np.stack([windows[i] for i in picks])
    rest = tuple(t.astype(np.int64) for t in texts)
    probes = Probes(kept.astype(np.int64), rest, source, context, domains=tuple(domains))
    if tokenizer is None:
        return probes
    stops = np.array(stop_tokens(product.path, config), dtype=np.int64)
    return replace(probes, text=TRICKY, text_ids=tokenizer(TRICKY), stop_ids=stops)


def domain_names(files: Sequence[Path]) -> list[str]:
    """A name for the kind of text in each held-out file: its stem.

    Two files of one stem are told apart by folder and ending; beyond MOST_DOMAINS files the rest
    share one name.
    """
    stems = [legible(file.stem) for file in files]
    counts = Counter(stems)
    names = [
        stem if counts[stem] == 1 else legible(str(Path(file.parent.name, file.name)))
        for stem, file in zip(stems, files, strict=True)
    ]
    kept = names if len(names) <= MOST_DOMAINS else names[: MOST_DOMAINS - 1]
    rest = len(names) - len(kept)
    return kept + [f"{rest} other files"] * rest


class VariantSink:
    """Keeps the logits of the first n sequences and the likelihoods of the rest, piece by piece.

    Raises EmoExportError for logits that are not finite; `name` is what it calls the weights then.
    """

    def __init__(self, config: EmoConfig, probes: Probes, name: str = ORIGINAL) -> None:
        self._config, self._probes, self._name = config, probes, name
        n, width = probes.input_ids.shape
        self._logits = np.empty((n, width, config.vocab_size), np.float32)
        self._margin = np.full(sum(map(len, probes.sequences)), np.inf, np.float32)
        self._experts = np.zeros(2, np.int64)
        shape = probes.heldout_ids.shape
        self._peak = np.full(shape, -np.inf)
        self._sum = np.zeros(shape)
        self._target = np.full(shape, np.nan)
        names = domain_order(probes.domains)
        places = np.array([names.index(name) for name in probes.domains], np.int64)
        lengths = [len(ids) for ids in probes.heldout] if probes.domains else []
        self._domain = np.repeat(places, lengths)
        widest = max(shape.num_experts for shape in config.layers)
        self._usage = np.full((len(names), len(config.layers), widest), -1, np.int64)

    def listening(self, device: str) -> Pass:
        """A pass over the sequences that this sink listens to."""
        states = States.of(self._config, self._probes.sequences, device=device)
        return Pass(states, self._take_logits, self._take_router, self)

    def save(self) -> Mapping[str, npt.NDArray[Any]]:
        """What the routers have told so far."""
        return {"margin": self._margin, "experts": self._experts, "usage": self._usage}

    def load(self, saved: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from there."""
        self._margin, self._experts = saved["margin"], saved["experts"]
        self._usage = saved["usage"]

    def _take_router(self, layer: int, logits: F32) -> None:
        self._check(logits, f"router logits of layer {layer}", "token", "expert")
        shape = self._config.layers[layer]
        k, routed = shape.num_routed_per_tok, logits[:, list(shape.routed)]
        judged = routed[: self._logits.shape[0] * self._logits.shape[1]]
        self._experts += [len(np.unique(np.argsort(-judged, axis=1)[:, :k])), routed.shape[1]]
        if 0 < k < routed.shape[1]:
            ranked = -np.partition(-routed, (k - 1, k), axis=1)
            self._margin = np.minimum(self._margin, ranked[:, k - 1] - ranked[:, k])
        self._count(layer, routed[self._logits.shape[0] * self._logits.shape[1] :])

    def _count(self, layer: int, heldout: F32) -> None:
        """Count the choices that held-out tokens make: router logits (tokens, routed experts)."""
        shape = self._config.layers[layer]
        columns = np.array(shape.routed, dtype=np.int64)
        for domain, counts in enumerate(self._usage[:, layer]):
            logits = heldout[self._domain == domain]
            chosen = np.argsort(-logits, axis=1)[:, : shape.num_routed_per_tok]
            counts[columns] = np.bincount(chosen.ravel(), minlength=len(columns))

    def _take_logits(self, sequence: int, start: int, piece: F32) -> None:
        self._check(piece, f"logits of text {sequence}", "position", "token", start)
        stop, n = start + piece.shape[1], len(self._logits)
        if sequence < n:
            self._logits[sequence, :, start:stop] = piece
            return
        row, ids = sequence - n, self._probes.heldout[sequence - n]
        span = slice(1, len(ids))
        scores = piece[:-1].astype(np.float64)
        peak = np.maximum(self._peak[row, span], scores.max(axis=1))
        scaled = self._sum[row, span] * np.exp(self._peak[row, span] - peak)
        self._sum[row, span] = scaled + np.exp(scores - peak[:, None]).sum(axis=1)
        self._peak[row, span] = peak
        inside = (ids[1:] >= start) & (ids[1:] < stop)
        self._target[row, span][inside] = scores[inside, ids[1:][inside] - start]

    def _check(self, values: F32, what: str, row: str, column: str, start: int = 0) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            at = first(~finite)
            raise EmoExportError(
                f"{self._name}: the reference's {what} are not finite ({row} {at[0]}, {column} "
                f"{start + at[1]}: {values[at]}); the products of these weights are beyond float32"
            )

    @property
    def usage(self) -> Ids:
        """How many held-out tokens chose each expert: (domains, layers, experts), as in Golden."""
        return self._usage

    def variant(self) -> Variant:
        """What was kept, once the run is over."""
        n, width = self._probes.input_ids.shape
        with np.errstate(divide="ignore"):
            nll = self._peak + np.log(self._sum) - self._target
        margin: npt.NDArray[np.float32] = self._margin[: n * width].reshape(n, width)
        return Variant(self._logits, margin, nll.astype(np.float32), self._experts)
