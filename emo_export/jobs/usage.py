"""Which experts of a checkpoint text uses: one pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emo_export.exporting.steps import Steps
from emo_export.jobs.heldout import choose_heldout
from emo_export.jobs.torch_device import prepare_torch
from emo_export.line import Line
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.parity.golden import domain_order
from emo_export.pipeline import stream
from emo_export.report.html.view import Usage


def usage_of(
    checkpoint: Checkpoint, texts: Sequence[Path], tokens: int, steps: Steps
) -> list[Usage]:
    """How many tokens chose each expert, for each file of the texts; `tokens` at most in all.

    Raises EmoExportError for texts that can't be read and for weights that are not finite.
    """
    from emo_export.reference.probes import VariantSink

    prepare_torch("cpu", checkpoint.nbytes)
    whole = Product.whole(checkpoint)
    probes = choose_heldout(whole, texts, steps, tokens)
    sink = VariantSink(whole.config, probes)
    steps.on_start((), checkpoint.nbytes)
    stream([Line(whole, listeners=[sink.listening("cpu")])], steps.on_bytes)
    lengths = dict.fromkeys(domain_order(probes.domains), 0)
    for domain, ids in zip(probes.domains, probes.heldout, strict=True):
        lengths[domain] += len(ids)
    return [
        Usage(domain, length, counts)
        for (domain, length), counts in zip(lengths.items(), sink.usage, strict=True)
    ]
