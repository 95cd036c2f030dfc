"""The work of `export` and `validate`: what they print, and in which order they call the core."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from emo_export.artifact import chosen_targets
from emo_export.cli_importance import (
    importance_of_folder,
    matrix_of,
    measure_of,
    read_importance,
    start_calibration,
    warn_unseen,
)
from emo_export.cli_make import TargetOptions, scheme_of, target_maker
from emo_export.cli_targets import SMALL_MODEL, missing_engine, need, validate_all
from emo_export.errors import EmoExportError, MissingDependencyError, ParityError
from emo_export.manifest import NAME as MANIFEST
from emo_export.manifest import verify

if TYPE_CHECKING:
    from emo_export.calibrate import Calibration
    from emo_export.checkpoint import Checkpoint
    from emo_export.export import Steps, Target
    from emo_export.importance import ImportanceMatrix
    from emo_export.parity import Golden
    from emo_export.validate import TargetReport

CONVERT = ("torch", "gguf", "onnx", "ml_dtypes", "tokenizers")


def _say(text: str) -> None:
    click.echo(text, err=True)


def open_checkpoint(source: str) -> Checkpoint:
    """A local folder or a Hugging Face id, opened and accounted for."""
    from emo_export.checkpoint import Checkpoint
    from emo_export.hub import locate

    checkpoint = Checkpoint.open(locate(source, progress=Console(stderr=True).is_terminal))
    if checkpoint.config.max_position_embeddings < 0:
        _say(
            f"{source}: max_position_embeddings is -1 (unknown); assuming "
            f"{checkpoint.config.context_length()} positions unless --context says otherwise"
        )
    return checkpoint


def heldout_files(given: Sequence[Path], checkpoint: Checkpoint) -> list[Path]:
    """The files named, the files of the folders named, or those of the checkpoint's heldout/."""
    from emo_export.texts import text_files

    inside = checkpoint.path / "heldout"
    return text_files(given or ([inside] if inside.is_dir() else []))


@contextmanager
def progress_steps() -> Iterator[Steps]:
    """A progress bar on stderr where that is a terminal, plain lines elsewhere."""
    from emo_export.export import Steps

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None, visible=False)

        def on_start(targets: Sequence[Target], source_bytes: int) -> None:
            for target in targets:
                _say(f"{target.spec}: {target.nbytes / 1e6:.1f} MB -> {target.path}")
                _warn_fallbacks(target)
            if not console.is_terminal:
                _say(f"reading {source_bytes / 1e6:.1f} MB once")
            bar.update(task, total=source_bytes, visible=True)

        def on_stage(text: str) -> None:
            # Through the bar's console, which moves a bar that is still shown out of the way.
            bar.update(task, visible=False)
            bar.console.print(text, markup=False, highlight=False)

        yield Steps(on_start, lambda count: bar.advance(task, count), on_stage)


def _warn_fallbacks(target: Target) -> None:
    kinds: dict[tuple[str, str], list[str]] = {}
    for tensor, change in target.scheme.fallbacks.items():
        kinds.setdefault(change, []).append(tensor)
    for (wanted, used), tensors in kinds.items():
        _say(
            f"warning: {target.spec}: rows of {len(tensors)} tensors (first: {tensors[0]}) "
            f"do not fit {wanted} and are written as {used}"
        )


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
    from emo_export.export import export

    checkpoint = open_checkpoint(source)
    importance = _importance(options, checkpoint)
    matrix = None if importance is None else matrix_of(importance)
    make = target_maker(specs, checkpoint, options.targets, matrix)
    if options.golden or options.calibration:
        _prepare_torch(options.device, checkpoint)
    validates = options.validate and options.golden
    if validates:
        _need_engines(specs)
    if not (checkpoint.path / "tokenizer.json").is_file():
        _say(f"warning: {source} has no tokenizer.json: the result takes token ids, not text")
    probes = None
    if options.golden:
        from emo_export.golden import choose_probes

        heldout = heldout_files(options.heldout, checkpoint)
        context = options.targets.context
        probes = choose_probes(checkpoint, heldout, options.heldout_tokens, context)
    with progress_steps() as steps:

        def judge(
            folder: Path, entries: Mapping[str, Mapping[str, Any]], golden: Golden
        ) -> Sequence[TargetReport]:
            return validate_all(folder, entries, golden, steps.on_stage)

        result = export(
            checkpoint,
            output,
            make,
            probes,
            steps,
            validate=judge if validates else None,
            measure=measure_of(importance, checkpoint, options.targets.arch),
            device=options.device,
            overwrite=options.overwrite,
        )
    if matrix is not None:
        warn_unseen(matrix)
    total = sum(entry.bytes for entry in result.manifest.files)
    _say(f"{output}: {len(result.manifest.files)} files, {total / 1e6:.1f} MB")
    if validates:
        show(result.reports, options.as_json, out)
    elif options.as_json:
        click.echo(json.dumps({"passed": None, "targets": []}))


def _importance(
    options: ExportOptions, checkpoint: Checkpoint
) -> Calibration | ImportanceMatrix | None:
    if options.calibration and options.imatrix is not None:
        raise EmoExportError("--calibration collects an importance matrix, --imatrix reads one")
    arch, context = options.targets.arch, options.targets.context
    if options.imatrix is not None:
        return read_importance(options.imatrix, checkpoint, arch)
    if not options.calibration:
        return None
    files, tokens = options.calibration, options.calibration_tokens
    return start_calibration(files, tokens, checkpoint, context, options.device)


def _need_engines(specs: Sequence[str]) -> None:
    if any(spec.startswith("gguf") for spec in specs):
        need(["xllamacpp"], "llama", "validating GGUF (or pass --no-validate)")
    if any(spec.startswith("onnx") for spec in specs):
        need(["onnxruntime"], "ort", "validating ONNX (or pass --no-validate)")


def _prepare_torch(device: str, checkpoint: Checkpoint) -> None:
    """Check the device; keep a small model on one thread, where several mostly wait."""
    import torch

    if checkpoint.nbytes < SMALL_MODEL:
        torch.set_num_threads(1)

    if device not in ("cpu", "cuda"):
        raise EmoExportError(f"--torch-device {device}: expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise EmoExportError("--torch-device cuda: torch sees no CUDA device here; use cpu")


def show(reports: Sequence[TargetReport], as_json: bool, out: Console) -> None:
    """Print tables or JSON. Raises ParityError when a target is out of tolerance."""
    from emo_export.report import LEGEND, tables, verdicts

    passed = all(report.passed for report in reports)
    if as_json:
        content = {"passed": passed, "targets": [report.as_dict() for report in reports]}
        click.echo(json.dumps(content, indent=2))
    else:
        for table in tables(reports):
            out.print(table, "", sep="\n")
        for line in (LEGEND, "", *verdicts(reports)):
            out.print(line, markup=False)
    if not passed:
        failed = ", ".join(report.target for report in reports if not report.passed)
        raise ParityError(f"parity failed for {failed}; the lines above say which limit")


def run_validate(
    path: Path,
    only: Sequence[str],
    reference: str | None,
    threads: int | None,
    device: str,
    as_json: bool,
    out: Console,
) -> None:
    """Validate an exported folder, some of its targets, or one artifact.

    Raises MissingDependencyError after the targets that can run when another's engine is missing.
    """
    from emo_export.parity import Golden

    folder, targets = chosen_targets(path, only)
    stored = Golden.load(folder / "golden.npz") if (folder / "golden.npz").is_file() else None
    missing = {spec: text for spec in targets if (text := missing_engine(spec))}
    ready = {spec: entry for spec, entry in targets.items() if spec not in missing}
    if reference is not None and ready:
        golden = _fresh_golden(reference, folder, targets, stored, device)
    elif stored is not None:
        golden = stored
    elif ready:
        raise EmoExportError(
            f"{path}: there is no golden.npz in {folder}; name the original with "
            "--reference CHECKPOINT"
        )
    if ready:
        show(validate_all(folder, ready, golden, _say, threads), as_json, out)
        _check_digests(folder, ready)
    if missing:
        told = "; ".join(f"{spec}: {text}" for spec, text in missing.items())
        advice = f" (or choose with --target {next(iter(ready))})" if ready else ""
        raise MissingDependencyError(f"not validated: {told}{advice}")


def _check_digests(folder: Path, targets: Mapping[str, Mapping[str, Any]]) -> None:
    """Token ids that happen not to use an expert can't show that it was damaged; digests can.

    Raises ParityError when a judged file is not the one that export wrote.
    """
    if not (folder / MANIFEST).is_file():
        return
    paths = [folder / str(entry["path"]) for entry in targets.values()] + [folder / "golden.npz"]
    problems = [p for p in verify(folder) if any(p.startswith(str(path)) for path in paths)]
    if problems:
        raise ParityError("\n".join(problems))


def _fresh_golden(
    source: str,
    folder: Path,
    targets: Mapping[str, Mapping[str, Any]],
    stored: Golden | None,
    device: str,
) -> Golden:
    """The reference computed now, on the token ids of the stored golden where there is one."""
    need(CONVERT, "convert", "--reference")
    from emo_export.export import make_golden
    from emo_export.golden import Probes, choose_probes

    checkpoint = open_checkpoint(source)
    _prepare_torch(device, checkpoint)
    if stored is None:
        probes = choose_probes(checkpoint, heldout_files((), checkpoint), 4096)
    else:
        probes = Probes.of(stored)
    schemes = {spec: scheme_of(spec, checkpoint, entry) for spec, entry in targets.items()}
    importance = importance_of_folder(folder, targets, checkpoint)
    with progress_steps() as steps:
        return make_golden(checkpoint, schemes, probes, steps, device, importance=importance)
