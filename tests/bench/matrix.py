"""The matrix of emo-nano's model card: experts chosen on one kind of text, judged on another.

    python -m tests.bench.matrix [--json FILE]

The card judged the first 256 tokens of 12 documents of each kind, and chose on the first 256 of 24.
The repository carries 5 or 6 documents of each kind to judge on, and 10 or so to choose on, so
perplexities differ from the card's; what is compared are the ratios to the full model's. Every
method is shown, random as the mean of three seeds, with means over the six kinds of text.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from emo_export.exporting.steps import QUIET
from emo_export.jobs.domains import Chosen, judge_domains
from emo_export.jobs.options import DomainOptions
from emo_export.model.checkpoint import Checkpoint
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from tests.kit.paths import NANO

KINDS = ("c", "dictionary", "man", "perldoc", "python", "scripture")
LENGTH = 256
SEEDS = (0, 1, 2)

FULL = {"c": 2.9, "python": 32.4, "scripture": 28.8, "man": 10.5, "dictionary": 24.8}
FULL["perldoc"] = 56.5
OWN = {"c": 3.0, "python": 34.7, "scripture": 28.0, "man": 10.6, "dictionary": 24.3}
OWN["perldoc"] = 65.1
"""Of the card: perplexity with all experts, and with 8 chosen on the same kind of text."""


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


@click.command()
@click.option("--keep", default="8", show_default=True)
@click.option("--json", "to", type=click.Path(dir_okay=False, path_type=Path))
def main(keep: str, to: Path | None) -> None:
    """Print the matrix for every method, and how it compares with the card."""
    checkpoint = Checkpoint.open(NANO)
    amount = Keep.parse(keep)
    methods = [m for m in Method if m != Method.RANDOM]
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        cut(NANO / "calibration", here / "calibration")
        cut(NANO / "heldout", here / "heldout")
        options = DomainOptions((here / "calibration",), 1 << 16, 0, "text", (here / "heldout",))
        rows: list[Chosen] = []
        for method in methods:
            rows += judge_domains(checkpoint, options, [Selection(amount, method)], QUIET)
        one = DomainOptions(
            (here / "calibration" / "c.jsonl",), 1 << 16, 0, "text", (here / "heldout",)
        )
        drawn = [Selection(amount, Method.RANDOM, seed) for seed in SEEDS]
        random = judge_domains(checkpoint, one, drawn, QUIET)
    out = Console()
    table = Table("chosen on", "by", *KINDS, title=f"perplexity, {keep} experts a layer kept")
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
    summary: dict[str, Any] = {"card": {kind: OWN[kind] / FULL[kind] for kind in KINDS}}
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
    if to is not None:
        to.write_text(json.dumps({"keep": keep, "ratios": summary}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
