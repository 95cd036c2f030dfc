"""The work of `bench`: which models a path means, what they need, and the report."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
from rich.console import Console

from emo_export.base.child_process import TIMEOUT, Child
from emo_export.base.disk import size_of
from emo_export.base.threads import physical_cores
from emo_export.bench.bandwidth import buffer_bytes
from emo_export.bench.bandwidth import measure as measure_bandwidth
from emo_export.bench.bench import MEMORY_MARGIN, Report, Settings, Subject, fit_together, measure
from emo_export.bench.doctor import available_memory, cpu_checks, memory_check
from emo_export.bench.view import render
from emo_export.cli.output import say
from emo_export.cli.progress import progress
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.read_per_token import (
    check_olmoe,
    olmoe_bytes,
    olmoe_per_token,
)
from emo_export.model.config import EmoConfig
from emo_export.report.html.bench_page import check_writable, write_bench_page
from emo_export.runtimes.families import LIGHT
from emo_export.runtimes.opening import SMALL_MODEL, missing_engine
from emo_export.runtimes.package import chosen_targets
from emo_export.spec import Spec

CHILD = "emo_export.cli.bench_child"
OLMOE_MEMORY = 1.1  # memory beside the size on disk
STAND_IN = "olmoe:bf16"


@dataclass(frozen=True)
class BenchOptions:
    """What the command line was given beside the paths, as its help describes it."""

    only: tuple[str, ...]
    threads: int | None
    kv_cache: str | None
    prefill: int
    decode: int
    depth: int
    rounds: int
    timeout: float | None
    olmoe: Path | None
    one_at_a_time: bool
    as_json: bool
    html: Path | None


def run_bench(paths: Sequence[Path], options: BenchOptions, out: Console) -> None:
    """Measure, then print a table or JSON; what goes on is told on stderr."""
    if options.html is not None:
        check_writable(options.html)
    report = measured(paths, options)
    if options.html is not None:
        labels = [result.subject.label for result in report.results]
        found = report.figures()
        speeds = {
            "Prefill": dict(zip(labels, (one.prefill for one in found), strict=True)),
            "Decode": dict(zip(labels, (one.decode for one in found), strict=True)),
        }
        write_bench_page(options.html, list(render(report)), speeds)
        progress(f"wrote {options.html}")
    if options.as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
        return
    for part in render(report):
        out.print(part)


def measured(paths: Sequence[Path], options: BenchOptions) -> Report:
    """Measure every model that the paths mean.

    Raises EmoExportError for what can't be measured, MissingDependencyError without its engine.
    """
    subjects = _subjects(paths, options)
    small = all(subject.nbytes < SMALL_MODEL for subject in subjects)
    threads = options.threads or (1 if small else physical_cores())
    settings = Settings(options.prefill, options.decode, options.depth, options.rounds, threads)
    available = available_memory()
    machine = {check.name: check.found for check in (*cpu_checks(), memory_check())}
    together = _together(subjects, options, available)
    opening = partial(Child, module=CHILD, timeout=options.timeout or TIMEOUT)
    progress("measuring read bandwidth")
    before = measure_bandwidth(threads)
    results = measure(subjects, settings, opening, together, progress)
    progress("measuring read bandwidth")
    after = measure_bandwidth(threads, before.kernel)
    return Report(machine, settings, together, before, after, results)


def _subjects(paths: Sequence[Path], options: BenchOptions) -> list[Subject]:
    """Every model to measure; what can't be is refused before anything large is opened."""
    found = [(spec, path) for given in paths for spec, path in _targets(given, options.only)]
    count = Counter(spec for spec, _ in found)
    subjects = [
        _subject(spec, path, f"{path} ({spec})" if count[spec] > 1 else str(spec), options.kv_cache)
        for spec, path in found
    ]
    if options.olmoe is not None:
        subjects.append(_stand_in(options.olmoe))
    labels = Counter(subject.label for subject in subjects)
    for label, times in labels.items():
        if times > 1:
            raise EmoExportError(f"{label} was given {times} times; give each model once")
    if not subjects:
        raise EmoExportError("nothing to measure: give an exported folder or a model")
    return subjects


def _targets(given: Path, only: Sequence[str]) -> Iterator[tuple[Spec, Path]]:
    folder, targets = chosen_targets(given, only)
    for spec, entry in targets.items():
        if lacks := missing_engine(entry.spec.family):
            raise MissingDependencyError(f"{spec}: {lacks}; or choose others with --target")
        yield entry.spec, folder / entry.path


def _subject(spec: Spec, path: Path, label: str, kv_cache: str | None) -> Subject:
    nbytes, family = size_of(path), LIGHT[spec.family]
    opening = {"path": str(path), "kind": "model", "kv_cache": kv_cache}
    needs = int(family.memory_factor * nbytes)
    return Subject(label, opening, nbytes, family.per_token(path, kv_cache), needs)


def _stand_in(given: Path) -> Subject:
    """The OLMoE of a checkpoint's shape; its size is that of its weights in memory."""
    missing = [m for m in ("torch", "transformers") if importlib.util.find_spec(m) is None]
    if missing:
        raise MissingDependencyError(
            f"--olmoe-bf16 needs {', '.join(missing)}: pip install transformers torch"
        )
    path = given / "config.json" if given.is_dir() else given
    config = EmoConfig.from_json(path)
    check_olmoe(config, path)
    nbytes = olmoe_bytes(config)
    opening = {"path": str(path), "kind": "olmoe"}
    return Subject(STAND_IN, opening, nbytes, olmoe_per_token(config), int(OLMOE_MEMORY * nbytes))


def _together(subjects: Sequence[Subject], options: BenchOptions, available: int | None) -> bool:
    """Whether all can be open at once; refuses a stand-in for which there is no room at all."""
    for subject in subjects:
        if subject.label == STAND_IN and not fit_together([subject], available, 0):
            raise EmoExportError(
                f"--olmoe-bf16: {subject.needs / 1e9:.1f} GB of memory are needed and "
                f"{(available or 0) / 1e9:.1f} GB are available, of which {MEMORY_MARGIN:.0%} may "
                "be used; end other programs or leave it out"
            )
    if options.one_at_a_time:
        return False
    together = fit_together(subjects, available, buffer_bytes())
    if not together:
        needed = buffer_bytes() + sum(subject.needs for subject in subjects)
        say(
            f"all models at once would take about {needed / 1e9:.1f} GB of memory, more than "
            f"{MEMORY_MARGIN:.0%} of the {(available or 0) / 1e9:.1f} GB that are available: each "
            "is opened anew in every round"
        )
    return together
