"""The work of `export`: what it prints, and in which order it calls the core."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from emo_export.base.install import need
from emo_export.cli.importance import (
    matrix_of,
    measure_of,
    read_importance,
    start_calibration,
    warn_unseen,
)
from emo_export.cli.work import (
    CONVERT,
    heldout_files,
    open_checkpoint,
    prepare_torch,
    progress_steps,
    say,
)
from emo_export.errors import EmoExportError
from emo_export.families import FAMILIES, target_maker
from emo_export.families.options import TargetOptions
from emo_export.model.product import Product
from emo_export.parity.result import as_json
from emo_export.report.sentences import check
from emo_export.report.text import show
from emo_export.spec import Spec
from emo_export.validating import validate_new

if TYPE_CHECKING:
    from emo_export.exporting import Exported, Steps
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.model.importance import ImportanceMatrix
    from emo_export.reference.calibrate import Calibration


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`, as its help describes them."""

    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    calibration: tuple[Path, ...] = ()
    calibration_tokens: int = 16384
    imatrix: Path | None = None
    targets: TargetOptions = field(default_factory=TargetOptions)
    device: str = "cpu"
    overwrite: bool = False
    golden: bool = True
    validate: bool = True
    as_json: bool = False


def run_export(
    source: str, output: Path, specs: Sequence[str], options: ExportOptions, out: Console
) -> None:
    """Export, print the parity table. Raises ParityError when a target is out of tolerance."""
    need(CONVERT, "convert", "export")
    _check(options)
    checkpoint = open_checkpoint(source)
    if not (checkpoint.path / "tokenizer.json").is_file():
        say(f"warning: {source} has no tokenizer.json: the result takes token ids, not text")
    used: list[ImportanceMatrix] = []
    with progress_steps() as steps:
        made = export_package(checkpoint, output, specs, options, steps, used.append)
    for matrix in used:
        warn_unseen(matrix)
    total = sum(entry.bytes for entry in made.manifest.files)
    say(f"{output}: {len(made.manifest.files)} files, {total / 1e6:.1f} MB")
    if options.validate and options.golden:
        if options.as_json:
            click.echo(json.dumps(as_json(made.results), indent=2))
        else:
            show(made.results, out)
        check(made.results)
    elif options.as_json:
        click.echo(json.dumps({"passed": None, "targets": []}))


def export_package(
    checkpoint: Checkpoint,
    output: Path,
    specs: Sequence[str],
    options: ExportOptions,
    steps: Steps | None = None,
    on_matrix: Callable[[ImportanceMatrix], None] = lambda matrix: None,
) -> Exported:
    """Export a checkpoint as the options say, and tell `steps` what goes on.

    `on_matrix` gets the importance matrix that was used, once it is filled. Raises EmoExportError
    when it can't be made; a target that is out of tolerance is told in the results.
    """
    need(CONVERT, "convert", "export")
    from emo_export.exporting import QUIET, export

    _check(options)
    steps = steps or QUIET
    product = Product.whole(checkpoint)
    importance = _importance(options, product)
    matrix = None if importance is None else matrix_of(importance)
    asked = [Spec.parse(spec) for spec in specs]
    make = target_maker(asked, product, options.targets, matrix)
    if options.golden or options.calibration:
        prepare_torch(options.device, product.nbytes)
    validates = options.validate and options.golden
    if validates:
        for family in dict.fromkeys(spec.family for spec in asked):
            FAMILIES[family].need_engine("validating")
    probes = None
    if options.golden:
        from emo_export.reference.probes import choose_probes

        heldout = heldout_files(options.heldout, product.path)
        context = options.targets.context
        probes = choose_probes(product, heldout, options.heldout_tokens, context)
    made = export(
        product,
        output,
        make,
        probes,
        steps,
        validate=partial(validate_new, on_stage=steps.on_stage) if validates else None,
        measure=measure_of(importance, product, options.targets.arch),
        device=options.device,
        overwrite=options.overwrite,
    )
    if matrix is not None:
        on_matrix(matrix)
    return made


def _check(options: ExportOptions) -> None:
    if options.heldout and not options.golden:
        raise EmoExportError("--heldout is of no use with --no-golden, which computes no reference")


def _importance(options: ExportOptions, product: Product) -> Calibration | ImportanceMatrix | None:
    if options.calibration and options.imatrix is not None:
        raise EmoExportError("--calibration collects an importance matrix, --imatrix reads one")
    arch, context = options.targets.arch, options.targets.context
    if options.imatrix is not None:
        return read_importance(options.imatrix, product, arch)
    if not options.calibration:
        return None
    files, tokens = options.calibration, options.calibration_tokens
    return start_calibration(files, tokens, product, context, options.device)
