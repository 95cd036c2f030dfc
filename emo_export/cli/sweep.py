"""The work of `sweep`: what it prints, around the tasks (emo_export/sweep/)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from emo_export.base.disk import write_whole, writing
from emo_export.base.install import CONVERT, need
from emo_export.cli.output import say
from emo_export.cli.work import open_checkpoint
from emo_export.errors import EmoExportError
from emo_export.report.sweep import LEGEND, check, line, sweep_table

if TYPE_CHECKING:
    from emo_export.parity.outcome import Outcome
    from emo_export.sweep.record import Asked
    from emo_export.sweep.variants import Variant


def run_sweep(
    spec: Path, out: Path, where: str, workers: int | None, console: Console, in_json: bool
) -> None:
    """Make what is not there yet, print the table. Raises what the verdicts call for."""
    need([*CONVERT, "dask", "distributed", "jinja2"], "sweep", "sweep")
    from emo_export.sweep.cluster import Place, outcomes
    from emo_export.sweep.record import Record
    from emo_export.sweep.spec_file import naming, read_spec
    from emo_export.sweep.variants import variants_of

    place = Place.parse(where, workers)
    read = read_spec(spec)
    checkpoint = open_checkpoint(str(read.checkpoint))
    with naming(str(spec)):
        variants = variants_of(read, checkpoint)
    out = out.resolve()
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    found, tasks = _found(variants, out)
    say(f"{len(variants)} variants: {len(found)} are there, {len(tasks)} to make")
    if tasks:
        for outcome in outcomes(tasks, out, place):
            name = outcome.label.name
            left = Record.load(out, name)
            if not outcome.error and (left is None or not left.is_done(out)):
                raise EmoExportError(
                    f"{out / name}: its worker made it, and it is not here; let all workers share "
                    "the disk"
                )
            found[name] = outcome
            say(f"{len(found)}/{len(variants)} {line(outcome)}")
    _tell([found[one.label.name] for one in variants], out, spec, console, in_json)


def _found(
    variants: tuple[Variant, ...], out: Path
) -> tuple[dict[str, Outcome], list[tuple[Variant, Asked]]]:
    """What an earlier run made of the same, by name, and what is to be made."""
    from emo_export.sweep.record import Inputs, Record, differing

    inputs, found, tasks = Inputs(), {}, []
    for variant in variants:
        name, asked = variant.label.name, inputs.asked(variant)
        record = Record.load(out, name)
        if record is not None and record.asked == asked and record.is_done(out):
            found[name] = record.outcome
            continue
        if record is not None and (others := differing(record.asked, asked)):
            say(f"{name}: made anew, for {', '.join(others)} changed")
        elif record is not None and not record.outcome.error:
            say(f"{name}: made anew, for its folder is not as it was left")
        tasks.append((variant, asked))
    return found, tasks


def _tell(outcomes: list[Outcome], out: Path, spec: Path, console: Console, in_json: bool) -> None:
    from emo_export.report.html.sweep_page import write_sweep_page

    content = {
        "passed": not any(outcome.exit_code for outcome in outcomes),
        "spec": spec.name,
        "variants": [outcome.as_dict() for outcome in outcomes],
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    write_whole(out / "sweep.json", (text + "\n").encode())
    write_sweep_page(out / "sweep.html", outcomes, spec.stem)
    if in_json:
        click.echo(json.dumps(content, indent=2, allow_nan=False))
    else:
        console.print(sweep_table(outcomes))
        console.print(LEGEND)
    say(f"{out}: {len(outcomes)} variants, sweep.json, sweep.html")
    check(outcomes, str(out))
