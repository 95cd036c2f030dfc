"""What quantisation costs emo-nano: a file in its engine beside the float original, held-out text.

Shared by the commands that measure. The reference runs once; every file is judged on its tokens by
the same code, on one thread, and llama.cpp with a float32 cache and no flash attention, as in
`validate`.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader

from emo_export.cli.main import cli
from emo_export.converters.onnx.data import LOCATION
from emo_export.families import FAMILIES
from emo_export.interfaces import F32, Ids, Runtime
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.parity.golden import log_softmax
from emo_export.parity.result import NotCompared
from emo_export.reference.passes import logits
from emo_export.reference.probes import HELDOUT
from emo_export.report.sentences import not_compared
from emo_export.runtimes.families import family_at
from emo_export.runtimes.opening import open_runtime
from emo_export.text.first import sequences_of
from emo_export.text.places import find_texts
from emo_export.text.tokenizer import open_tokenizer
from tests.kit.paths import NANO

CALIBRATION = NANO / "calibration"


@dataclass(frozen=True)
class Original:
    """Held-out sequences (T,) and the float original's log probabilities (T, V) of each."""

    sequences: list[Ids]
    log_probs: list[F32]

    @property
    def tokens(self) -> int:
        """How many positions are judged."""
        return sum(map(len, self.sequences))


@dataclass(frozen=True)
class Quality:
    """Over all positions: mean KL in nats, share of equal top tokens, ratio of perplexities."""

    kl: float
    top1: float
    perplexity_ratio: float


def original(tokens: int) -> Original:
    """Run the float reference over about so many tokens, shared evenly among kinds of text."""
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(NANO)
    config = checkpoint.config
    encode = open_tokenizer(NANO, config.vocab_size)
    assert encode is not None
    sequences = sequences_of(find_texts([NANO / "heldout"]).files, encode, tokens, HELDOUT)
    found = logits(config, Product.whole(checkpoint).rows, sequences)
    return Original(sequences, [log_softmax(rows).astype(np.float32) for rows in found])


def measure(path: Path, reference: Original) -> Quality:
    """Judge a GGUF or an ONNX folder as it is: engines may round activations beside its weights."""
    context = HELDOUT if family_at(path).reserves_cache else None
    return _judge(open_runtime(path, 1, context=context, parity=True), reference)


def measure_exact(path: Path, reference: Original) -> Quality:
    """Judge the weights alone, beside which activations stay float."""
    spec = family_at(path).entry_of(path).spec
    with FAMILIES[spec.family].exact(path, 1) as open_exact:
        if isinstance(open_exact, NotCompared):
            raise RuntimeError(not_compared(open_exact))
        return _judge(open_exact(), reference)


def _judge(runtime: Runtime, reference: Original) -> Quality:
    divergence, agree, lost = [], [], []
    try:
        for ids, wide in zip(reference.sequences, reference.log_probs, strict=True):
            runtime.reset()
            want, found = wide.astype(np.float64), log_softmax(runtime.forward(ids))
            divergence.append((np.exp(want) * (want - found)).sum(axis=1))
            agree.append(want.argmax(axis=1) == found.argmax(axis=1))
            rows = np.arange(len(ids) - 1)
            lost.append((want - found)[rows, ids[1:]])
    finally:
        runtime.close()
    ratio = np.exp(np.concatenate(lost).mean())
    kl, top1 = np.concatenate(divergence).mean(), np.concatenate(agree).mean()
    return Quality(float(kl), float(top1), float(ratio))


def export(out: Path, *options: object) -> None:
    """`emo-export export` of emo-nano, without judging, in this process and silently."""
    arguments = ["export", str(NANO), "-o", str(out), "--no-golden", "--no-validate"]
    with contextlib.redirect_stderr(io.StringIO()):
        cli.main([*arguments, *map(str, options)], standalone_mode=False)


def bits_per_weight(path: Path) -> float:
    """Of all tensors in a file."""
    tensors = GGUFReader(path).tensors
    return 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)


def megabytes(path: Path) -> float:
    """Size of a GGUF file, tokenizer and all, or of an ONNX folder's weights."""
    return (path / LOCATION if path.is_dir() else path).stat().st_size / 1e6


@contextlib.contextmanager
def workspace(name: str) -> Iterator[Path]:
    """A folder for the time of a measurement."""
    with tempfile.TemporaryDirectory(prefix=f"emo-export-{name}-") as folder:
        yield Path(folder)
