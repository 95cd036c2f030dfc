"""What devices said, as a table and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from emo_export.base.ram_size import shown
from emo_export.parity.golden import ORIGINAL
from emo_export.parity.judge import Row
from emo_export.runtimes.devices.device import DeviceReport
from emo_export.runtimes.ort.path import PATH

LEGEND = (
    "Mean KL in nats, as shipped: from the reference on the weights as the format stores them (the "
    "worse of whole prompt and token by token), and from the float original, each with its limit; "
    "top-1 and perplexity beside the original's."
)
NONE = "–"


def matrix(reports: Sequence[DeviceReport]) -> Table:
    """One line for each target on each device."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for heading in ("device", "target"):
        out.add_column(heading, no_wrap=True)
    for heading in ("KL stored", "limit", "KL original", "limit", "top-1", "limit", "ppl ×"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("positions", justify="right", no_wrap=True)
    out.add_column("", no_wrap=True)
    for report in reports:
        out.add_row(report.device, report.target, *_figures(report), _verdict(report))
    return out


def markdown(reports: Sequence[DeviceReport]) -> str:
    """The same table as Markdown, for a README."""
    headings = [str(column.header) for column in matrix(()).columns]
    rows = [[r.device, f"`{r.target}`", *_figures(r), _verdict(r)] for r in reports]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(report: DeviceReport) -> list[str]:
    if report.report is None:
        return [NONE] * 8
    rows = report.report.rows
    stored = max(
        (row for row in rows if row.against != ORIGINAL),
        key=lambda row: row.measured.kl_mean,
        default=None,
    )
    original = next(row for row in rows if row.against == ORIGINAL)
    ratio = original.perplexity_ratio
    return [
        *(_limited(stored) if stored else (NONE, NONE)),
        *_limited(original),
        f"{original.measured.top1:.1%}",
        f"{original.limits['top1']:.0%}",
        NONE if ratio is None else f"{ratio:.4f}",
        str(original.measured.positions),
    ]


def _limited(row: Row) -> tuple[str, str]:
    return f"{row.measured.kl_mean:.1e}", f"{row.limits['kl_mean']:.0e}"


def _verdict(report: DeviceReport) -> str:
    return "pass" if report.passed else "FAIL"


def lines(reports: Sequence[DeviceReport]) -> Iterator[str]:
    """What each device is and which kernels ran, memory, and why something failed."""
    yield from facts(reports)
    yield from sentences(reports)


def facts(reports: Sequence[DeviceReport]) -> Iterator[str]:
    """What each device is and which kernels ran, memory and speed."""
    told: set[str] = set()
    for report in reports:
        for line in _device(report):
            # Only the first ONNX target is asked for kernels: the others' lines say less.
            if not any(other.startswith(line) for other in told):
                told.add(line)
                yield line
    yield from filter(None, map(_memory, reports))
    yield from filter(None, map(_speed, reports))


def sentences(reports: Sequence[DeviceReport]) -> Iterator[str]:
    """What is wrong, one sentence each, beginning with the target and the device."""
    for report in reports:
        for failure in failures(report):
            yield f"{report.target} on {report.device}: {failure}"


def failures(report: DeviceReport) -> list[str]:
    """Every sentence about what is wrong."""
    found = list(report.failures)
    if report.report is not None:
        found += report.report.tokenizer_failures
        found += [
            f"{row.against}, {row.mode}: {failure}"
            for row in report.report.rows
            for failure in row.failures
        ]
    return found


def _device(report: DeviceReport) -> Iterator[str]:
    machine = report.machine
    if features := machine.get("CPU features"):
        how = machine.get("emulation") or machine.get("CPU", "")
        yield f"{report.device}: {how}; the process saw {features}"
    if report.report is not None:
        yield f"{report.device}: {'; '.join(kernels(report))}"


def kernels(report: DeviceReport) -> list[str]:
    """The engine of a report and what can be told of the kernels that it chose."""
    engine: Mapping[str, str] = report.report.engine if report.report else {}
    said = [engine.get("version", "")]
    said += [f"{key} {engine[key]}" for key in ("CPU backend",) if key in engine]
    if engine.get("engine") == "ONNX Runtime":
        said += [
            f"{key.removeprefix(PATH)}: {value}"
            for key, value in report.machine.items()
            if key.startswith(PATH)
        ]
    return said


def _memory(report: DeviceReport) -> str:
    found = report.memory or {}
    if "needs" not in found:
        return ""
    need = found["needs"]
    text = (
        f"{report.target} on {report.device}: {shown(need['total'])} with a KV cache of "
        f"{shown(need['cache'])} at {need['context']} tokens: {shown(need['anonymous'])} anonymous "
        f"and {shown(need['weights_mapped'] + need['libraries'])} file-backed"
    )
    if found.get("emulator_bytes"):
        text += f" (the emulator's own {shown(found['emulator_bytes'])} apart)"
    if found.get("held_by"):
        text += f"; held by {', '.join(found['held_by'])}"
    if found.get("too_small"):
        text += f"; too much for {', '.join(found['too_small'])}"
    if "enforced" in found:
        text += f"; the limit was {'' if found['enforced'] else 'not '}enforced ({found['how']})"
    return text


def _speed(report: DeviceReport) -> str:
    if report.speed is None:
        return ""
    return (
        f"{report.target} on {report.device}: prefill "
        f"{report.speed['prefill_tokens_per_second']:.1f} tok/s, decode "
        f"{report.speed['decode_tokens_per_second']:.1f} tok/s"
    )
