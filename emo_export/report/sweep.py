"""What became of the variants of a sweep: a table, a line for each as it is done, sentences."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from emo_export.errors import EmoExportError
from emo_export.parity.losses import Loss
from emo_export.parity.outcome import Outcome
from emo_export.parity.result import NOT_ENOUGH, PASS
from emo_export.report.pruning import times
from emo_export.report.sentences import ERRORS

NONE = "–"
LEGEND = (
    "ppl: perplexity on held-out text as the engine computes it; ×: that of the full float model, "
    "with its standard error; KL: mean from the full float model, on the weights as stored"
)


def sweep_table(outcomes: Sequence[Outcome]) -> Table:
    """A line for each variant, a column for the perplexity on each domain's text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    domains = dict.fromkeys(one.domain for outcome in outcomes for one in outcome.judged)
    several = any(len(outcome.judged) > 1 for outcome in outcomes)
    perplexities = [f"ppl {name}" for name in domains] if several else ["ppl"]
    for name in ("domain", "keep", "method", "target"):
        table.add_column(name, no_wrap=True)
    for name in ("MB", *perplexities, "×", "KL", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for outcome in outcomes:
        label = outcome.label
        found = {one.domain: one for one in outcome.judged}
        shown = [found.get(name) for name in domains] if several else [outcome.own]
        table.add_row(
            label.domain,
            label.keep,
            label.method or NONE,
            label.target,
            NONE if outcome.bytes is None else f"{outcome.bytes / 1e6:.1f}",
            *(_perplexity(one) for one in shown),
            NONE if outcome.own is None else times(outcome.own),
            NONE if outcome.kl_full is None else f"{outcome.kl_full:.4f}",
            f"{outcome.seconds:.0f}",
            verdict(outcome),
        )
    return table


def _perplexity(loss: Loss | None) -> str:
    return NONE if loss is None else f"{loss.after:.4g}"


def verdict(outcome: Outcome) -> str:
    """In a word or two."""
    return "error" if outcome.error else outcome.verdict


def line(outcome: Outcome) -> str:
    """One variant, as soon as it is done."""
    name, seconds = outcome.label.name, f"{outcome.seconds:.0f} s"
    if outcome.error:
        return f"{name}: error after {seconds}: {_short(outcome.error)}"
    own = "" if outcome.own is None else f", perplexity × {times(outcome.own)}"
    return f"{name}: {verdict(outcome)}, {(outcome.bytes or 0) / 1e6:.1f} MB{own}, {seconds}"


def check(outcomes: Sequence[Outcome], out: str) -> None:
    """Raise the error whose exit code they have, the smallest, with a sentence for each."""
    wrong = [outcome for outcome in outcomes if outcome.exit_code]
    if not wrong:
        return
    told = [f"{one.label.name}: {_why(one, out)}" for one in wrong]
    least = min(outcome.exit_code for outcome in wrong)
    if least not in ERRORS:
        raise RuntimeError("\n".join(told))
    kind: type[EmoExportError] = ERRORS[least]
    raise kind("\n".join(told))


def _why(outcome: Outcome, out: str) -> str:
    if outcome.error:
        return outcome.error
    if outcome.verdict == NOT_ENOUGH:
        return f"not enough text to tell; emo-export validate {out}/{outcome.label.name}"
    if outcome.verdict == PASS:
        raise ValueError(f"{outcome.label.name} passed with exit code {outcome.exit_code}")
    return f"failed: outside of its limits; emo-export validate {out}/{outcome.label.name}"


def _short(text: str) -> str:
    return text.strip().splitlines()[-1]
