"""The matrix of emo-nano's model card: experts chosen on one kind of text, judged on another.

    python -m tests.bench.matrix [--keep K] [--json FILE]
    python -m tests.bench.matrix --own [--keep K] [--json FILE]

The card judged the first 256 tokens of 12 documents of each kind, and chose on the first 256 of 24.
The repository carries 5 or 6 documents of each kind to judge on, and 10 or so to choose on, so
perplexities differ from the card's; what is compared are the ratios to the full model's. Every
method is shown, random as the mean of three seeds, with means over the six kinds of text.

`--own` judges each choice on its own kind alone, with and without --rescale, on 3072 tokens of it,
in pieces of 256: enough to tell methods apart. The last column is the mean, over kinds, of the
change to the logarithm of perplexity against `router`.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from emo_export.exporting.steps import QUIET
from emo_export.jobs.domains import Chosen, judge_domains
from emo_export.jobs.options import DomainOptions
from emo_export.model.checkpoint import Checkpoint
from emo_export.parity.losses import Loss
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from tests.kit.paths import NANO

KINDS = ("c", "dictionary", "man", "perldoc", "python", "scripture")
LENGTH = 256
TOKENS = 3072
SEEDS = (0, 1, 2)

FULL = {"c": 2.9, "python": 32.4, "scripture": 28.8, "man": 10.5, "dictionary": 24.8}
FULL["perldoc"] = 56.5
OWN = {"c": 3.0, "python": 34.7, "scripture": 28.0, "man": 10.6, "dictionary": 24.3}
OWN["perldoc"] = 65.1
"""Of the card: perplexity with all experts, and with 8 chosen on the same kind of text."""

Ratios = dict[str, dict[str, float]]
"""Perplexity over the full model's, by method and kind of text."""


def cut(folder: Path, to: Path) -> None:
    """The first LENGTH tokens of each document."""
    tokenizer = Tokenizer.from_file(str(NANO / "tokenizer.json"))
    to.mkdir()
    for kind in KINDS:
        lines = (folder / f"{kind}.jsonl").read_text("utf-8").splitlines()
        with (to / f"{kind}.jsonl").open("w", encoding="utf-8") as out:
            for line in lines:
                ids = tokenizer.encode(json.loads(line)["text"], add_special_tokens=False).ids
                out.write(json.dumps({"text": tokenizer.decode(ids[:LENGTH])}) + "\n")


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def of_mean(errors: Iterable[float]) -> float:
    """The standard error of a mean of independent estimates."""
    listed = list(errors)
    return math.sqrt(sum(error**2 for error in listed)) / len(listed)


@click.command()
@click.option("--keep", default="8", show_default=True)
@click.option("--own", is_flag=True)
@click.option("--json", "to", type=click.Path(dir_okay=False, path_type=Path))
def main(keep: str, own: bool, to: Path | None) -> None:
    """Print the matrix for every method, and how it compares with the card."""
    ratios = judged_on_own(Keep.parse(keep)) if own else matrix(Keep.parse(keep))
    if to is not None:
        to.write_text(json.dumps({"keep": keep, "ratios": ratios}, indent=2) + "\n", "utf-8")


def judged_on_own(amount: Keep) -> Ratios:
    """Print what each method costs on the kind of text that it chose for."""
    checkpoint = Checkpoint.open(NANO)
    selections = [
        Selection(amount, method, rescale=rescale)
        for method, rescale in product([m for m in Method if m != Method.RANDOM], (False, True))
    ]
    found: dict[str, dict[str, Loss]] = {}
    for kind in KINDS:
        places = [(NANO / part / f"{kind}.jsonl",) for part in ("calibration", "heldout")]
        options = DomainOptions(places[0], TOKENS, 0, "text", places[1], TOKENS)
        for selection, row in zip(
            selections, judge_domains(checkpoint, options, selections, QUIET), strict=True
        ):
            name = selection.method.value + (" --rescale" if selection.rescale else "")
            found.setdefault(name, {})[kind] = row.loss[-1]
    title = f"its own kind of text, times the full model's, {amount.amount} experts a layer kept"
    table = Table("by", *KINDS, "mean", "against router", title=title)
    ratios: Ratios = {}
    for name, losses in found.items():
        ratios[name] = {kind: losses[kind].ratio for kind in KINDS}
        errors = [losses[kind].ratio * (losses[kind].stderr or 0.0) for kind in KINDS]
        base = found[Method.ROUTER.value]
        gained = mean(math.log(ratios[name][kind] / base[kind].ratio) for kind in KINDS)
        values = [ratios[name][kind] for kind in KINDS]
        cells = [f"{value:.3f} ± {error:.3f}" for value, error in zip(values, errors, strict=True)]
        total = f"{mean(values):.3f} ± {of_mean(errors):.3f}"
        table.add_row(name, *cells, total, f"{100 * gained:+.1f}%")
    Console().print(table)
    return ratios


def matrix(amount: Keep) -> Ratios:
    """Print what each choice costs on every kind of text, and the card's figures beside it."""
    checkpoint = Checkpoint.open(NANO)
    methods = [m for m in Method if m != Method.RANDOM]
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        cut(NANO / "calibration", here / "calibration")
        cut(NANO / "heldout", here / "heldout")
        options = DomainOptions(
            (here / "calibration",), 1 << 16, 0, "text", (here / "heldout",), 1 << 16
        )
        rows: list[Chosen] = []
        for method in methods:
            rows += judge_domains(checkpoint, options, [Selection(amount, method)], QUIET)
        one = DomainOptions(
            (here / "calibration" / "c.jsonl",), 1 << 16, 0, "text", (here / "heldout",), 1 << 16
        )
        drawn = [Selection(amount, Method.RANDOM, seed) for seed in SEEDS]
        random = judge_domains(checkpoint, one, drawn, QUIET)
    out = Console()
    table = Table(
        "chosen on", "by", *KINDS, title=f"perplexity, {amount.amount} experts a layer kept"
    )
    full = {loss.domain: loss.before for loss in rows[0].loss}
    table.add_row("all experts", "", *(f"{full[kind]:.1f}" for kind in KINDS))
    for row in rows:
        after = {loss.domain: loss.after for loss in row.loss}
        table.add_row(row.chosen_on, row.method, *(f"{after[kind]:.1f}" for kind in KINDS))
    spread = {
        kind: mean(loss.after for row in random for loss in row.loss if loss.domain == kind)
        for kind in KINDS
    }
    table.add_row("", "random", *(f"{spread[kind]:.1f}" for kind in KINDS))
    out.print(table)
    summary: Ratios = {"card": {kind: OWN[kind] / FULL[kind] for kind in KINDS}}
    for method in methods:
        summary[method.value] = {
            loss.domain: loss.ratio
            for row in rows
            if row.method == method
            for loss in row.loss
            if loss.domain == row.chosen_on and loss.domain in KINDS
        }
    summary["random"] = {kind: spread[kind] / full[kind] for kind in KINDS}
    own = Table("by", *KINDS, "mean", title="its own kind of text, times the full model's")
    for name, ratios in summary.items():
        values = [ratios[kind] for kind in KINDS]
        own.add_row(name, *(f"{value:.3f}" for value in values), f"{mean(values):.3f}")
    out.print(own)
    return summary


if __name__ == "__main__":
    main()
