"""Chosen on one kind of text, judged on another: the matrix that tells what a choice is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.exporting.steps import Steps
from emo_export.jobs.heldout import choose_heldout
from emo_export.jobs.options import DomainOptions
from emo_export.jobs.torch_device import prepare_torch
from emo_export.line import Line
from emo_export.measuring import CalibrationText, read_sample
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.model.source import Source
from emo_export.parity.losses import ALL, Loss, by_domain
from emo_export.pipeline import stream
from emo_export.text.places import find_texts

if TYPE_CHECKING:
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


def judge_domains(
    checkpoint: Checkpoint,
    options: DomainOptions,
    selections: Sequence[Selection],
    steps: Steps,
) -> list[Chosen]:
    """Choose on each file of the calibration text, and on all together; judge on each kind."""
    from emo_export.reference.probes import domain_names

    prepare_torch(options.device, checkpoint.nbytes)
    product = Product.whole(checkpoint)
    texts = find_texts(options.calibration)
    steps.on_texts(texts)
    names = domain_names(texts.files)
    places: dict[str, tuple[Path, ...]] = {
        name: (file,) for name, file in zip(names, texts.files, strict=True)
    }
    if len(places) > 1:
        places[ALL] = tuple(texts.files)
    samples = {
        name: read_sample(
            CalibrationText(
                files, options.calibration_tokens * len(files), options.seed, options.text_field
            ),
            product,
        )
        for name, files in places.items()
    }
    probes = choose_heldout(
        product, options.heldout, steps, options.heldout_tokens, options.text_field
    )
    return choose_on_each(checkpoint, samples, selections, probes, steps, options.device)


def choose_on_each(
    source: Source,
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

    whole = Product.whole(source)
    full = VariantSink(source.config, probes)
    lines, made = [Line(whole, listeners=[full.listening(device)])], []
    for selection in selections:
        for name, sample in samples.items():
            product = selection.awaiting(source)
            text = Calibration(product.config, sample.sequences, sample.source, device)
            choice = Choice(text.states, source.config, selection)
            sink = VariantSink(product.config, probes)
            lines.append(Line(product, listeners=[text, sink.listening(device)], choice=choice))
            made.append((name, selection, sample, product, choice, sink))
    steps.on_start((), source.nbytes)
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
