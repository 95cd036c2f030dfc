"""Results for a terminal: a table for each target, or a line for each target on each device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emo_export.base.ram_size import shown
from emo_export.files.kv_cache import CACHE_F32
from emo_export.parity.golden import ORIGINAL
from emo_export.parity.result import FAIL, HERE, NOT_ENOUGH, PASS, Result, Row
from emo_export.report.pruning import losses_table
from emo_export.report.sentences import (
    decisive,
    faults,
    intervals,
    name,
    not_compared,
    sentences,
)

TITLE = "Parity with the reference"
TABLE_LEGEND = (
    "against: dequantised = the reference on the weights as the format stores them, original = the "
    "float checkpoint (of the experts that are kept); arithmetic: shipped = as the engine runs it, "
    "exact = with float activations; KL in nats per position; ties: positions whose routing hangs "
    "on a near tie, scored apart (rounding alone may choose another expert there)"
)


def show(results: Sequence[Result], out: Console) -> None:
    """Tables where all ran on this machine; else the matrix of targets and devices."""
    if any(result.kind != HERE for result in results):
        out.print(_fitting(results, out), "", sep="\n")
        found = [f"{name(result)}: {text}" for result in results for text in estimates(result)]
        legend = MATRIX_LEGEND + (DECIDED_LEGEND if any(map(decisive, results)) else "")
        lines = [legend, "", *found, *facts(results), *sentences(results)]
    else:
        lines = details(results, out)
    passed = [result for result in results if result.passed]
    if passed and len(passed) == len(results):
        lines += ["", _passed(passed)]
    for line in lines:  # a terminal would break words
        out.print(line, markup=False, highlight=False, soft_wrap=not out.is_terminal)


def _passed(results: Sequence[Result]) -> str:
    """The last word, where nothing failed: all targets, and where they ran."""
    targets = list(dict.fromkeys(result.target for result in results))
    devices = list(dict.fromkeys(result.device for result in results))
    where = "" if devices == [HERE] else f" on {', '.join(devices)}"
    return f"passed: {', '.join(targets)}{where}"


def details(results: Sequence[Result], out: Console) -> list[str]:
    """Print a table for each target that was judged; the lines that belong below them."""
    judged = [result for result in results if result.rows]
    for result in judged:
        out.print(_table(result), "", sep="\n")
        if result.losses is not None and result.losses.pruning:
            out.print(losses_table(result.target, result.losses), "", sep="\n")
    lines = [TABLE_LEGEND, "", *verdicts(judged)] if judged else []
    return lines + list(takes(results))


def _table(result: Result) -> Table:
    out = Table(
        title=f"{TITLE}: {result.target}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=0,  # beside the box's own blank; with more, 80 columns cut the verdict
    )
    for heading in ("against", "arithmetic", "mode"):
        out.add_column(heading, no_wrap=True)
    for heading in ("KL mean", "KL max", "top-1", "ties", "ppl ×"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("", max_width=10)  # `not enough text` takes two lines
    for row in result.rows:
        out.add_row(*_cells(row))
    return out


COLOURS = {PASS: "green", FAIL: "red", NOT_ENOUGH: "yellow"}


def verdict_cell(verdict: str) -> Text:
    """A verdict in its colour, for a terminal that has any and no NO_COLOR."""
    return Text(verdict, style=COLOURS[verdict])


def _cells(row: Row) -> list[str | Text]:
    m = row.measured
    return [
        row.against,
        row.arithmetic,
        row.mode,
        f"{m.kl_mean:.1e}",
        f"{m.kl_max:.1e}",
        f"{m.top1:.1%}",
        f"{m.near_ties}/{m.positions}",
        "" if row.perplexity_ratio is None else f"{row.perplexity_ratio:.4f}",
        verdict_cell(row.verdict),
    ]


def verdicts(results: Sequence[Result]) -> list[str]:
    """A line or two for each target: verdict, perplexity, greedy text, engine, failures."""
    lines = []
    for result in results:
        judged = next(row for row in result.rows if row.perplexity_ratio is not None)
        lines.append(
            f"{result.target}: {result.verdict}; perplexity "
            f"{judged.perplexity:.2f}, {judged.perplexity_ratio:.4f} times the original's; "
            f"{_greedy(result)}; {result.engine['version']}, threads {result.engine['threads']}"
            f"{_lossy_cache(result)}"
        )
        notes = estimates(result)
        notes += [not_compared(result.not_compared)] if result.not_compared else []
        lines += [f"  {text}" for text in (*notes, *faults(result))]
    first = results[0]
    lines.append(
        f"the judged positions use {first.experts_used} of {first.experts_routed} routed experts"
    )
    lines.append(f"perplexity over {first.heldout_tokens} tokens of {first.heldout_source}")
    return lines


def estimates(result: Result) -> list[str]:
    """The figures beside the float original with their intervals, a line where there are any."""
    told = [intervals(row) for row in result.rows if row.against == ORIGINAL]
    return [f"within 95%: {text}" for text in told if text]


def _lossy_cache(result: Result) -> str:
    found = result.engine.get("KV cache", CACHE_F32)
    return "" if found.startswith(CACHE_F32) else f", KV cache {found}"


def _greedy(result: Result) -> str:
    if result.greedy_difference is None:
        return f"greedy text identical for {result.greedy_steps} tokens"
    step = result.greedy_difference + 1
    return f"greedy text first differs at token {step} of {result.greedy_steps}"


MATRIX_LEGEND = (
    "Mean KL in nats, as shipped: from the reference on the weights as the format stores them (the "
    "worse of whole prompt and token by token), and from the float original, each with its limit; "
    "top-1 and perplexity beside the original's."
)
DECIDED_LEGEND = (
    " Beside a verdict other than pass: the first figure that decided, and its limit (~: the limit "
    "is within the figure's 95% interval)."
)
NONE = "–"


FIGURES = ("KL stored", "limit", "KL original", "limit", "top-1", "limit", "ppl ×", "positions")
LESS = ((), (7,), (5, 7), (3, 5, 7), (1, 3, 5, 7), (0, 1, 3, 5, 7), (0, 1, 3, 4, 5, 7))
"""Figures that a narrow terminal has no room for, fewer first."""


def matrix(results: Sequence[Result], without: Sequence[int] = ()) -> Table:
    """One line for each target on each device, its verdict in front, `without` some figures.

    The figure that kept a target from passing stands beside the verdict.
    """
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    decided = [decisive(result) for result in results]
    for heading in ("device", "target", "", *([""] if any(decided) else [])):
        out.add_column(heading, no_wrap=True)
    shown = [place for place in range(len(FIGURES)) if place not in without]
    for place in shown:
        out.add_column(FIGURES[place], justify="right", no_wrap=True)
    for result, by in zip(results, decided, strict=True):
        figures = _figures(result)
        why = [by] if any(decided) else []
        out.add_row(
            result.device,
            result.target,
            verdict_cell(result.verdict),
            *why,
            *(figures[i] for i in shown),
        )
    return out


def _fitting(results: Sequence[Result], out: Console) -> Table:
    """The matrix with as many figures as a terminal has room for."""
    tables = (matrix(results, without) for without in LESS)
    unbounded = out.options.update(max_width=10_000)  # else no table is wider than the terminal
    return next(
        (table for table in tables if out.measure(table, options=unbounded).maximum <= out.width),
        matrix(results, range(len(FIGURES))),
    )


def markdown(results: Sequence[Result]) -> str:
    """The same table as Markdown, for a README."""
    headings = ["device", "target", "", *FIGURES]
    rows = [[r.device, f"`{r.target}`", r.verdict, *_figures(r)] for r in results]
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(result: Result) -> list[str]:
    if not result.rows:
        return [NONE] * 8
    stored = max(
        (row for row in result.rows if row.against != ORIGINAL),
        key=lambda row: row.measured.kl_mean,
        default=None,
    )
    original = next(row for row in result.rows if row.against == ORIGINAL)
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


def facts(results: Sequence[Result]) -> Iterator[str]:
    """What each device is and which kernels ran, memory and speed."""
    for device in dict.fromkeys(result.device for result in results):
        same = [result for result in results if result.device == device]
        told = [*map(_cpu, same), *(text for _, text in engines(same))]
        yield from (f"{device}: {text}" for text in dict.fromkeys(told) if text)
    yield from takes(results)


def takes(results: Sequence[Result]) -> Iterator[str]:
    """Memory and speed, where they were measured."""
    yield from filter(None, map(_memory, results))
    yield from filter(None, map(_speed, results))


def _cpu(result: Result) -> str:
    machine = result.machine
    if features := machine.get("CPU features"):
        return f"{machine.get('emulation') or machine.get('CPU', '')}; the process saw {features}"
    return ""


def engines(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Each engine of a device, and what is known of its version and of the kernels it chose.

    Not every target is asked for kernels: what one was told holds for all of the engine.
    """
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in filter(lambda one: one.rows, results):
        said = [result.engine.get(key, "") for key in ("engine", "version", "CPU backend")]
        engine, version, backend = said
        found.setdefault((engine, version, backend), {}).update(result.kernels)
    return [
        (
            engine,
            "; ".join(
                [
                    version,
                    *([f"CPU backend {backend}"] if backend else []),
                    *(f"{operator}: {arithmetic}" for operator, arithmetic in kernels.items()),
                ]
            ),
        )
        for (engine, version, backend), kernels in found.items()
    ]


def _memory(result: Result) -> str:
    found = result.memory or {}
    if "needs" not in found:
        return ""
    need = found["needs"]
    text = (
        f"{name(result)}: {shown(need['total'])} with a KV cache of "
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


def _speed(result: Result) -> str:
    if result.speed is None:
        return ""
    return (
        f"{name(result)}: prefill "
        f"{result.speed['prefill_tokens_per_second']:.1f} tok/s, decode "
        f"{result.speed['decode_tokens_per_second']:.1f} tok/s"
    )
