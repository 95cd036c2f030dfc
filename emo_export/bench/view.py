"""A bench report as something that rich can print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from emo_export.bench.bench import Figures, Report, Result

MIB = 1 << 20
BUSY = 0.1  # CPUs that others used from which on the figures are doubtful
COLUMNS = (
    "size\nMB",
    "load\ns",
    "prefill\ntok/s",
    "decode\ntok/s",
    "read\nMB/token",
    "reached\nGB/s",
    "of band-\nwidth",
    "anonymous\nMiB",
    "files\nMiB",
)
LEGEND = (
    "tok/s: the median of the rounds, below it least–most. read: weights and KV cache of a decode "
    "step. reached: read x decode. anonymous, files: the most memory of the process, of its own "
    "and mapped from files."
)


def render(report: Report) -> Iterator[RenderableType]:
    """Machine and bandwidth, the table, the ratios, what to beware of."""
    figures = report.figures()
    yield from (Text(line) for line in _head(report))
    yield ""
    table = Table(box=None, pad_edge=False)
    table.add_column("target", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for result, found in zip(report.results, figures, strict=True):
        table.add_row(Text(result.subject.label), *_cells(result, found))
    yield table
    yield ""
    yield from (Text(line) for line in _ratios(report.results, figures))
    yield Text(LEGEND)
    yield from (Text(line, "yellow") for line in _warnings(report))


def _head(report: Report) -> Iterator[str]:
    for name, value in report.machine.items():
        yield f"{name}: {value}"
    engines: dict[str, list[str]] = {}
    for result in report.results:
        keys = [key for key in result.engine if key not in ("engine", "threads", "context")]
        said = ", ".join(f"{key} {result.engine[key]}" for key in keys)
        engines.setdefault(f"{result.engine['engine']}: {said}", []).append(result.subject.label)
    for engine, labels in engines.items():
        yield f"{', '.join(labels)}: {engine}"
    settings, before = report.settings, report.before
    way = "all open at once" if report.together else "one open at a time, for lack of memory"
    yield (
        f"{settings.threads} threads, {settings.rounds} rounds, {way}: prefill of "
        f"{settings.prefill} tokens, decode of {settings.decode} after {settings.depth}"
    )
    yield (
        f"read bandwidth: {before.gb_per_s:.1f} GB/s before, {report.after.gb_per_s:.1f} after "
        f"({report.drift:+.0%}), by {before.kernel}"
    )


def _cells(result: Result, found: Figures) -> Iterator[str]:
    memory = result.memory
    yield f"{result.subject.nbytes / 1e6:.0f}"
    yield f"{found.load_seconds:.1f}"
    yield _speed(found.prefill)
    yield _speed(found.decode)
    yield f"{found.bytes_per_token / 1e6:.1f}"
    yield f"{found.gb_per_s:.1f}"
    yield f"{found.of_bandwidth:.2f}"
    yield f"{memory.anonymous / MIB:.0f}" if memory else "unknown"
    yield f"{memory.file / MIB:.0f}" if memory else "unknown"


def _speed(values: tuple[float, float, float]) -> str:
    middle, least, most = values
    return f"{middle:.1f}\n{least:.1f}–{most:.1f}"


def _ratios(results: Sequence[Result], figures: Sequence[Figures]) -> Iterator[str]:
    """Each model's figures as a multiple of the first's."""
    (first, *others), base = results, figures[0]
    for result, found in zip(others, figures[1:], strict=True):
        prefill, decode = found.prefill[0] / base.prefill[0], found.decode[0] / base.decode[0]
        nbytes = found.bytes_per_token / base.bytes_per_token
        text = f"prefill x {prefill:.2f}, decode x {decode:.2f}, bytes per token x {nbytes:.2f}"
        if result.memory and first.memory:
            text += f", anonymous memory x {result.memory.anonymous / first.memory.anonymous:.2f}"
        yield f"{result.subject.label} beside {first.subject.label}: {text}"


def _warnings(report: Report) -> Iterator[str]:
    others = report.others()
    if others is not None and others > BUSY:
        yield (
            f"warning: other processes kept {others:.1f} CPUs busy while models were measured: "
            "the figures are too low; repeat on a quiet machine"
        )
    if abs(report.drift) > BUSY:
        yield (f"warning: the bandwidth changed by {report.drift:+.0%}: fractions of it are rough")
