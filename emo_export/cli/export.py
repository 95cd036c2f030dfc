"""The work of `export`: what it prints, around the job itself (emo_export/jobs/export.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from emo_export.base.install import CONVERT, need
from emo_export.cli.command_line import command_line
from emo_export.cli.output import say
from emo_export.cli.progress import progress, suggest
from emo_export.cli.work import open_checkpoint, progress_steps
from emo_export.errors import EmoExportError
from emo_export.exporting.package import ALONE
from emo_export.model.rounding import Rounding
from emo_export.parity.result import as_json
from emo_export.report.sentences import check
from emo_export.report.text import show

if TYPE_CHECKING:
    from emo_export.budget.budget import Budget
    from emo_export.budget.budget import Found as Types
    from emo_export.exporting.export import Exported
    from emo_export.jobs.options import ExportOptions
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.model.importance import ImportanceMatrix

MOST_NAMED = 8
NOT_JUDGED: Mapping[str, object] = {"passed": None, "targets": []}


def run_export(
    source: str,
    output: Path,
    specs: Sequence[str],
    options: ExportOptions,
    out: Console,
    in_json: bool = False,
) -> None:
    """Export, print the parity table. Raises what the verdict calls for."""
    from emo_export.jobs.export import export_checkpoint

    checkpoint = _open(source, options)
    used: list[ImportanceMatrix] = []
    types: list[Types] = []
    with progress_steps() as steps:

        def on_types(found: Types) -> None:
            types.append(found)
            steps.on_types(found)

        heard = replace(steps, on_types=on_types)
        made = export_checkpoint(
            checkpoint, output, specs, options, heard, used.append, command_line()
        )
    for matrix in used:
        warn_unseen(matrix)
        if options.chosen_rounding == Rounding.GPTQ:
            warn_few(matrix)
    for name, one in made.items():
        _say_size(output / name, one)
    for name, one in made.items():
        _say_kept(name, one, options)
    judged = options.validate and options.golden
    if in_json:
        each = {n: as_json(one.results) if judged else NOT_JUDGED for n, one in made.items()}
        whole = {"domains": each} if options.domains else each[ALONE]
        if types:
            whole = {**whole, "types": {str(found.spec): found.as_dict() for found in types}}
        click.echo(json.dumps(whole, indent=2))
    results = [
        replace(result, target=f"{name}/{result.target}" if name else result.target)
        for name, one in made.items()
        for result in one.results
    ]
    if judged and not in_json:
        show(results, out)
    check(results)
    if not in_json:
        first = str(output / next(iter(made)))
        unjudged = options.golden and not judged
        suggest(["validate", first] if unjudged else ["run", first, "Once upon a time"])


def domain_places(given: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """NAME=PLACE of --domain, by name. Raises EmoExportError for anything else."""
    found: dict[str, tuple[Path, ...]] = {}
    for text in given:
        name, sign, place = text.partition("=")
        if not sign or not place:
            raise EmoExportError(f"--domain {text}: expected NAME=PLACE, as c=texts/c.jsonl")
        if not Path(place).exists():
            raise EmoExportError(f"--domain {text}: there is no file or folder {place}")
        found[name] = (*found.get(name, ()), Path(place))
    return found


def budget_of(
    bits: float | None, size: str | None, read_per_token: str | None, fit: str | None
) -> Budget | None:
    """The one that was given, if one was. Raises a UsageError for several."""
    from emo_export.base.ram_size import SMALLEST, parse_size
    from emo_export.budget.budget import Budget, Limit
    from emo_export.planning.profiles import device_profile

    if sum(each is not None for each in (bits, size, read_per_token, fit)) > 1:
        raise click.UsageError("give one of --bits, --size, --read-per-token and --fit")
    if bits is not None:
        return Budget(Limit.BITS, bits)
    if size is not None:
        return Budget(Limit.SIZE, parse_size(size, SMALLEST))
    if read_per_token is not None:
        return Budget(Limit.READ, parse_size(read_per_token, SMALLEST))
    return None if fit is None else Budget(Limit.FIT, device_profile(fit).usable, fit)


def _open(source: str, options: ExportOptions) -> Checkpoint:
    from emo_export.text.tokenizer import why_no_tokenizer

    need(CONVERT, "convert", "export")
    options.check()
    checkpoint = open_checkpoint(source)
    if not (checkpoint.path / "tokenizer.json").is_file():
        why = why_no_tokenizer(checkpoint.path)
        say(f"warning: the result will take token ids, not text: {source} {why}")
    return checkpoint


def _say_size(folder: Path, made: Exported) -> None:
    total = sum(entry.bytes for entry in made.manifest.files)
    progress(f"{folder}: {len(made.manifest.files)} files, {total / 1e6:.1f} MB")


def _say_kept(name: str, made: Exported, options: ExportOptions) -> None:
    """How many experts stayed, and that the verdicts leave out what that costs."""
    kept, start = made.manifest.kept, f"{name}: " if name else ""
    if kept is None:
        return
    counts = sorted({len(layer) for layer in kept if layer})
    told = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    progress(f"{start}{told} experts of a layer were kept")
    if options.golden:
        text = "" if options.heldout else "; it is judged on sample text: --heldout takes yours"
        say(
            f"note: {start}pass or fail is about the bits alone; what leaving experts out costs "
            f"is in the columns `pruning` and `both`{text}"
        )


def warn_unseen(matrix: ImportanceMatrix) -> None:
    """Name the experts that the calibration text never reached."""
    unseen = dict.fromkeys((slot.layer, slot.expert) for slot in matrix.unseen())
    if unseen:
        say(
            f"warning: {_experts(len(unseen))} saw no token of {matrix.source}: quantised with "
            f"even weights ({_named([f'{expert} of layer {at}' for at, expert in unseen])}); more "
            "text, or of more kinds, helps"
        )


def warn_few(matrix: ImportanceMatrix) -> None:
    """Name the experts of which GPTQ learns more from their layer than from their own tokens."""
    few = sorted(matrix.few().items(), key=lambda pair: pair[1])
    if few:
        told = [f"{expert} of layer {at}: {count:,}" for (at, expert), count in few]
        say(
            f"note: {_experts(len(few))} saw fewer tokens of {matrix.source} than their matrices "
            f"have columns ({_named(told)}); GPTQ leans on the mean of their layer there, more "
            "text helps"
        )


def _experts(count: int) -> str:
    return f"{count} expert{'s' * (count > 1)}"


def _named(every: Sequence[str]) -> str:
    more = f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else ""
    return ", ".join(every[:MOST_NAMED]) + more
