"""What the float weights of products say of the probes, run while they stream by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emo_export.errors import EmoExportError
from emo_export.exporting.steps import Steps
from emo_export.exporting.target import Rows
from emo_export.line import Line
from emo_export.model.product import Product
from emo_export.parity.golden import FULL, ORIGINAL, Golden
from emo_export.pipeline import OnBytes, Saving, Traffic, stream

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes, VariantSink


@dataclass(frozen=True)
class FloatRun:
    """What the float weights of a product say of the probes, and those of the full model.

    `full` is None for a product that leaves nothing out.
    """

    product: Product
    original: VariantSink
    full: VariantSink | None


def run_floats(
    lines: Sequence[Line],
    probes: Probes,
    on_bytes: OnBytes,
    device: str,
    traffic: Traffic | None = None,
    saving: Saving | None = None,
) -> list[FloatRun]:
    """Stream lines of one source with the probes going along, the full model's once for all."""
    from emo_export.reference.probes import VariantSink

    whole = Product.whole(lines[0].product.source)
    full, beside = None, []
    if not all(line.product.is_whole for line in lines):
        full = VariantSink(whole.config, probes, FULL)
        beside = [Line(whole, listeners=[full.listening(device)])]
    runs, heard = [], []
    for line in lines:
        original = VariantSink(line.product.config, probes)
        runs.append(FloatRun(line.product, original, None if line.product.is_whole else full))
        heard.append(replace(line, listeners=[*line.listeners, original.listening(device)]))
    stream([*heard, *beside], on_bytes, traffic, saving)
    return runs


def golden_of(
    run: FloatRun,
    artifacts: Mapping[str, Callable[[], Rows]],
    probes: Probes,
    steps: Steps,
    device: str,
    unreadable: dict[str, EmoExportError] | None = None,
) -> Golden:
    """The reference of a product, whose float weights have been run, and on what artifacts hold.

    A weight of an artifact is read only where a token needs it. `unreadable` gets why an artifact
    can't be read, which then has no variant; without it that is raised, as EmoExportError.

    The first artifact drafts the greedy text, which spares most of its reads of the source.
    """
    from emo_export.reference.passes import greedy
    from emo_export.reference.probes import VariantSink

    product, config = run.product, run.product.config
    variants = {ORIGINAL: run.original.variant()}
    if run.full is not None:
        variants[FULL] = run.full.variant()
    draft: Rows | None = None
    for spec, read_back in artifacts.items():
        steps.on_stage(f"reference on the weights that {spec} holds")
        sink = VariantSink(config, probes, spec)
        try:
            rows = read_back()
            sink.listening(device).run(rows)
        except EmoExportError as error:
            if unreadable is None:
                raise
            unreadable[spec] = error
        else:
            variants[spec], draft = sink.variant(), draft or rows
    steps.on_stage("greedy text of the reference")
    prompt, steps_after = probes.greedy_prompt, probes.greedy_steps
    return Golden(
        input_ids=probes.input_ids,
        heldout_ids=probes.heldout_ids,
        heldout_source=probes.heldout_source,
        text=probes.text,
        text_ids=probes.text_ids,
        stop_ids=probes.stop_ids,
        greedy_prompt=prompt,
        greedy=greedy(config, product.rows, prompt, steps_after, device, draft),
        variants=variants,
        domains=probes.domains,
        usage=run.original.usage,
    )
