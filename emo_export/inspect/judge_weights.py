"""What only the weights tell: in which order q and k rows lie, and whether an expert is folded in.

llama.cpp's rope turns either neighbouring rows of a head together (deepseek, llama) or row i with
row i + d/2 (glm4moe, qwen). EMO's checkpoints have the second order. Which one a file has can be
seen in a trained model, since the two rows of a rope pair share a frequency: training gives them
similar norms, and makes q and k overlap across the pair. Measured on emo-nano (examples/), in
F32, Q8_0 and Q4_0 alike, and on random weights:

                            norms of    permuted  halves  random (n pairs)
    norm agreement          neighbours      0.57    0.56   0 +- 1/sqrt(n)
                            halves         -0.39    0.57   0 +- 1/sqrt(n)
    overlap (1: background) neighbours      1.70    1.20   1 +- 1/sqrt(n)
                            halves          0.99    1.70   1 +- 1/sqrt(n)

(Neighbours agree in both orders: next to a frequency lies a similar one.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from emo_export.errors import EmoExportError
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.files.tensor_names import Form
from emo_export.inspect.finding import AGAIN, Finding, Subject
from emo_export.inspect.judge_graph import NORM_KEY
from emo_export.inspect.rows import F32, read_rows
from emo_export.model.names import Role

NEIGHBOURS, HALVES = "neighbours", "halves"
ROPE = dict.fromkeys(("deepseek", "bailingmoe", "llama", "granitemoe"), NEIGHBOURS)
ROPE |= dict.fromkeys(("glm4moe", "qwen2moe", "qwen3moe", "olmoe", "smallthinker"), HALVES)
MAX_BLOCKS, MAX_HEADS = 4, 16  # of which q and k are read: some 30 MB of a released model
MAX_HEAD = 512
LEAST = 0.25  # norm agreement from which rows are called paired, with enough of them
SIGMAS = 5  # and so many standard errors of random weights
TINY = 1e-4  # of the other rows: a router row that training never moved, and decay shrank
SURE = "To be sure: emo-export validate FILE --reference CHECKPOINT"

F64 = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class RowOrder:
    """How rows of q and k go together when paired as neighbours, and as halves of a head.

    `norms`: 1 - (mean squared difference of log |q||k| in a pair) / (2 x its variance in the head);
    `overlap`: mean squared cosine of q's row with k's other row, over that of any two rows.
    `error`: the standard error of both on random weights.
    """

    norms: Mapping[str, float]
    overlap: Mapping[str, float]
    error: float

    @property
    def order(self) -> str | None:
        """The order that the rows are in, or None when the weights do not tell."""
        sure = max(LEAST, SIGMAS * self.error)
        more = self.overlap[HALVES] - self.overlap[NEIGHBOURS]
        if self.norms[HALVES] >= sure and more > 3 * self.error:
            return HALVES
        if self.norms[NEIGHBOURS] >= sure > 2 * self.norms[HALVES] and more < -3 * self.error:
            return NEIGHBOURS
        return None

    @property
    def text(self) -> str:
        """The statistic."""
        norms, overlap = (
            f"{found[NEIGHBOURS]:.2f} of {NEIGHBOURS}, {found[HALVES]:.2f} of {HALVES}"
            for found in (self.norms, self.overlap)
        )
        random = f"random weights: 0 and 1, each +-{self.error:.2f}"
        return f"norm agreement {norms}; overlap {overlap}; {random}"


def weight_findings(subject: Subject) -> Iterator[Finding]:
    """Findings from the rows of q, k, routers and shared experts of an EMO."""
    for judge in (_row_order, _router, _shared):
        try:
            yield from judge(subject)
        except EmoExportError as error:
            name = {_row_order: "q and k rows", _router: "router rows"}.get(judge, "shared expert")
            yield Finding("note", f"{name} were not checked", str(error))


def _row_order(subject: Subject) -> Iterator[Finding]:
    expected = ROPE.get(subject.arch)
    measured = row_order(subject) if expected else None
    if measured is None:
        return
    if measured.order is None:
        yield Finding(
            "note",
            "the order of q and k rows can't be told from these weights",
            f"{subject.arch} needs rope pairs as {expected}; {measured.text}",
            SURE,
        )
    elif measured.order == expected:
        what = f"q and k rows lie as {subject.arch} needs them ({expected} are rope pairs)"
        yield Finding("note", what, measured.text)
    else:
        permuted = "are not permuted" if expected == NEIGHBOURS else "are permuted"
        yield Finding(
            "wrong",
            f"q and k rows {permuted}: rope pairs lie as {measured.order}, {subject.arch} turns "
            f"{expected}",
            "attention turns unrelated rows together and misreads the order of words: the text "
            "loses its sense, without an error message (measured: KL 2.9 on a random EMO). Seen "
            f"from the weights: {measured.text}",
            f"{AGAIN}. {SURE}",
        )


def row_order(subject: Subject) -> RowOrder | None:
    """Measure the order of q and k rows; None where there are none to measure.

    Raises EmoExportError when they can't be read.
    """
    heads, keys = (subject.number(f"attention.head_count{kv}") for kv in ("", "_kv"))
    by_block = {
        block: [subject.tensors.get(GGUF_NAMES.name(role, block)) for role in (Role.Q, Role.K)]
        for block in subject.blocks
    }
    pairs = [(q, k) for q, k in by_block.values() if q is not None and k is not None]
    if not isinstance(heads, int) or heads < 1 or not pairs:
        return None
    keys = keys if isinstance(keys, int) and keys > 0 and heads % keys == 0 else heads
    found = []
    for q, k in _some(pairs, MAX_BLOCKS):
        size = q.shape[0] // heads
        fits = len(q.shape) == len(k.shape) == 2 and q.shape[1] == k.shape[1]
        if not fits or size * keys != k.shape[0] or size % 4 or not 4 <= size <= MAX_HEAD:
            return None
        for head in _some(range(heads), MAX_HEADS):
            key = head // (heads // keys)
            rows = (read_rows(subject.path, t, i * size, size) for t, i in ((q, head), (k, key)))
            found.append(_agreement(*rows))
    means = np.mean(found, axis=0)
    if not np.isfinite(means).all():
        return None
    kinds = (NEIGHBOURS, HALVES)
    norms, overlap = (dict(zip(kinds, map(float, row), strict=True)) for row in means)
    return RowOrder(norms, overlap, float(1 / np.sqrt(len(found) * size / 2)))


def _some(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, spread evenly."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(most, len(items))).astype(int)]


def _agreement(q: F32, k: F32) -> F64:
    """Of one head: norm agreement and overlap (rows), as neighbours and as halves (columns)."""
    with np.errstate(all="ignore"):  # a head of zeros or of infinities gives NaN: told by no one
        lengths = [np.linalg.norm(m.astype(np.float64), axis=1) for m in (q, k)]
        log = np.log(lengths[0] * lengths[1])
        cosines = (q / lengths[0][:, None]) @ (k / lengths[1][:, None]).T
        squared = cosines.astype(np.float64) ** 2
        background = (squared.sum() - np.trace(squared)) / (squared.size - len(q))
        i = np.arange(len(q) // 2)
        result = np.empty((2, 2))
        for column, (a, b) in enumerate(((2 * i, 2 * i + 1), (i, i + len(q) // 2))):
            result[0, column] = 1 - ((log[a] - log[b]) ** 2).mean() / (2 * log.var())
            result[1, column] = (squared[a, b] + squared[b, a]).mean() / 2 / background
    return result


def _router(subject: Subject) -> Iterator[Finding]:
    """A shared expert's router row gets no gradient: decay shrinks it far below all others."""
    rows = _router_sizes(subject)
    if not rows:
        return
    last = [sizes[-1] / np.median(sizes[:-1]) for sizes in rows.values()]
    gap = all(sizes[-1] < 0.5 * sizes[:-1].min() for sizes in rows.values())
    chance = float(np.prod([1 / len(sizes) for sizes in rows.values()]))
    if not (max(last) < TINY or (gap and chance < 1e-3)):
        return
    count = len(next(iter(rows.values())))
    yield Finding(
        "wrong",
        f"the shared expert is folded in: in each of {len(rows)} routers seen, the last of {count} "
        f"rows looks never trained (at most {max(last):.1g} of the others' size)",
        "the shared expert competes for a place among the routed ones, with a small weight instead "
        "of 1, and takes its share from theirs: many tokens go without it",
        AGAIN,
    )


def _router_sizes(subject: Subject) -> dict[int, F64]:
    """Block -> the largest magnitude in each row of its router; without empty or hidden rows."""
    found: dict[int, F64] = {}
    for block in _some(subject.expert_blocks, MAX_BLOCKS):
        router = subject.tensors[GGUF_NAMES.name(Role.ROUTER, block)]
        if len(router.shape) != 2 or router.shape[0] < 3:
            continue
        sizes = (
            np.abs(read_rows(subject.path, router, 0, router.shape[0])).max(1).astype(np.float64)
        )
        bias = subject.tensors.get(GGUF_NAMES.name(Role.ROUTER, block, form=Form.GLM4MOE))
        if bias is not None and bias.shape == router.shape[:1]:
            sizes = sizes[read_rows(subject.path, bias, 0, 1)[0] > -1e6]
        if len(sizes) > 2 and np.isfinite(sizes).all() and np.median(sizes) > 0:
            found[block] = sizes
    return found


def _shared(subject: Subject) -> Iterator[Finding]:
    """Whether a shared expert is one of zeros, and what renormalised weights then mean."""
    routed = _router_sizes(subject)
    names = [GGUF_NAMES.name(Role.DOWN, block, form=Form.SHARED) for block in routed]
    shared = [subject.tensors[name] for name in names if name in subject.tensors]
    normalised = subject.arch in NORM_KEY and bool(subject.number("expert_weights_norm"))
    zeros = [not read_rows(subject.path, t, 0, min(64, t.shape[0])).any() for t in shared]
    empty = bool(zeros) and all(zeros)
    if empty:
        what = "the shared expert is all zeros"
        yield Finding("note", what, "right only for a checkpoint with num_shared_experts 0")
    if normalised and not empty:
        yield Finding(
            "wrong",
            "expert_weights_norm is true",
            "the routed experts' weights are scaled to a sum of 1, EMO's are not when it has a "
            "shared expert: they count too much beside it in every layer",
            f"Set {subject.arch}.expert_weights_norm to false",
        )
    elif normalised:
        what = "expert_weights_norm is true"
        yield Finding("note", what, "right only for a checkpoint with norm_topk_prob true")
