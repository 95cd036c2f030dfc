"""Chosen on one kind of text, judged on another: the matrix that tells what a choice is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.parity.losses import Loss, by_domain
from emo_export.pipeline import Line, stream

if TYPE_CHECKING:
    from emo_export.exporting import Steps
    from emo_export.reference.probes import Probes
    from emo_export.selection.keep import Selection
    from emo_export.text.sample import Sample


@dataclass(frozen=True)
class Chosen:
    """One row: experts that were chosen on a kind of text, and what they cost on each.

    `kept` are the source's numbers for each layer, `unsteady` how many of them another half of the
    text would replace, a layer on average (None: one sequence can't tell).
    """

    chosen_on: str
    method: str
    keep: int
    seed: int
    tokens: int
    kept: list[list[int]]
    unsteady: float | None
    loss: tuple[Loss, ...]


def choose_on_each(
    checkpoint: Checkpoint,
    samples: Mapping[str, Sample],
    selections: Sequence[Selection],
    probes: Probes,
    steps: Steps,
    device: str = "cpu",
) -> list[Chosen]:
    """Choose on each sample with each selection, all in one pass over the weights.

    Every choice has its own states, so memory grows with their number. Raises EmoExportError.
    """
    from emo_export.reference.calibrate import Calibration
    from emo_export.reference.probes import VariantSink
    from emo_export.selection.choice import Choice

    whole = Product.whole(checkpoint)
    full = VariantSink(checkpoint.config, probes)
    lines, made = [Line(whole, listeners=[full.listening(device)])], []
    for selection in selections:
        for name, sample in samples.items():
            product = selection.awaiting(checkpoint)
            text = Calibration(product.config, sample.sequences, sample.source, device)
            choice = Choice(text.states, checkpoint.config, selection)
            sink = VariantSink(product.config, probes)
            lines.append(Line(product, listeners=[text, sink.listening(device)], choice=choice))
            made.append((name, selection, sample, product, choice, sink))
    steps.on_start((), checkpoint.nbytes)
    stream(lines, steps.on_bytes)
    before = full.variant().heldout_nll
    return [
        Chosen(
            name,
            selection.method.value,
            product.config.num_experts,
            selection.seed,
            sample.tokens,
            product.all_kept,
            choice.unsteady,
            by_domain(before, sink.variant().heldout_nll, probes.domains),
        )
        for name, selection, sample, product, choice, sink in made
    ]
