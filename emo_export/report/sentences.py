"""What is wrong with a result, in sentences; each renderer shows these."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence

from emo_export.base.install import install_command
from emo_export.errors import (
    EmoExportError,
    MissingDependencyError,
    NotEnoughTextError,
    ParityError,
)
from emo_export.files.parts import HEADER, PADDING, TENSOR
from emo_export.files.verifying import (
    ABSENT,
    CONTENT,
    LINK,
    SIZE,
    SPECIAL,
    UNLISTED,
    UNREADABLE,
    Place,
    Problem,
    Shared,
)
from emo_export.parity.estimates import SEQUENCES, Interval
from emo_export.parity.golden import ORIGINAL
from emo_export.parity.result import (
    HERE,
    MISSING,
    NOT_ENOUGH,
    SPACE,
    Crash,
    Doubt,
    Failure,
    NotCompared,
    Result,
    Row,
    TokenizerFailure,
)
from emo_export.report.memory import too_little

NO_RESULT = "the run ended without a result"
AGAINST = {ORIGINAL: "the float original", "dequantised": "the dequantised reference"}
ARITHMETIC = {"shipped": "as shipped", "exact": "float activations"}
MODE = {"prefill": "whole prompt", "decode": "token by token"}
MORE_TEXT = (
    "--heldout and --heldout-tokens of export give more text (6 sequences of 48 positions for each "
    "4096 tokens, at least as many), --device-tokens judges more of it on a device"
)
MOST_TIMES = 100  # beyond, an estimate of how much text would do means nothing
ERRORS = {
    error.exit_code: error
    for error in (ParityError, EmoExportError, MissingDependencyError, NotEnoughTextError)
}


def check(results: Sequence[Result]) -> None:
    """Raise the error whose exit code the results have, with every sentence of all of them.

    Of several the one with the smallest exit code: ParityError, then EmoExportError for a target
    that could not be judged, then MissingDependencyError, then NotEnoughTextError.
    """
    wrong = [result for result in results if not result.passed]
    if not wrong:
        return
    told = sentences(wrong)
    kind = ERRORS[min(result.exit_code for result in wrong)]
    if kind is ParityError:
        failed = [name(result) for result in wrong if result.exit_code == ParityError.exit_code]
        told.insert(0, f"failed: {', '.join(failed)}")
    if kind is NotEnoughTextError:
        told.append(MORE_TEXT)
    raise kind("\n".join(told))


def name(result: Result) -> str:
    """A result in a sentence: its target, and where it ran if that is not here."""
    return result.target if result.device == HERE else f"{result.target} on {result.device}"


def sentences(results: Sequence[Result]) -> list[str]:
    """What is wrong, one sentence each, beginning with the target and the device."""
    return [f"{name(result)}: {text}" for result in results for text in faults(result)]


def faults(result: Result) -> list[str]:
    """What is wrong with one result."""
    rows = [f"{comparison(row)}: {text}" for row in result.rows for text in about_row(row)]
    found = [*beside(result), *tokenizer(result.tokenizer), *rows]
    return found if found or result.passed else [NO_RESULT]


def beside(result: Result) -> list[str]:
    """What is wrong beside the comparisons: crash, refusal, memory, files not the export's."""
    found = [crash(result.crash)] if result.crash else []
    if result.refusal:
        found.append(result.refusal.text if result.rows else f"not judged: {result.refusal.text}")
    if result.too_little:
        needs = (result.memory or {})["needs"]
        found.append(f"not judged: {too_little(result.target, needs, result.too_little)}")
    return found + [problem(one) for one in result.damage]


def comparison(row: Row) -> str:
    """What was compared with what, and how."""
    how = f"{ARITHMETIC[row.arithmetic]}, {MODE[row.mode]}"
    return f"compared with {AGAINST[row.against]} ({how})"


def about_row(row: Row) -> list[str]:
    """What is wrong with a comparison, then what could not be told."""
    return [*map(limit, row.failures), *(doubt(one, row.intervals) for one in row.doubts)]


def doubt(found: Doubt, intervals: Mapping[str, Interval]) -> str:
    """Which limit could not be judged, and how much text would do."""
    figure, shown, bound = _FIGURES[found.figure]
    units = "tokens" if found.figure == "perplexity_ratio" else "positions"
    if not found.enough:
        return f"{NOT_ENOUGH} to judge {figure}: it takes at least two {units}"
    end = intervals[found.figure]
    much = f"about {_two_digits(found.enough)}"
    if found.enough > MOST_TIMES * found.tokens:
        much = f"more than {MOST_TIMES} times as many"
    return (
        f"{NOT_ENOUGH} to judge {figure}: {shown(found.value)} is between {shown(end.low)} and "
        f"{shown(end.high)} (95%), the limit is {bound(found.limit)}; {found.tokens} {units} were "
        f"scored, {much} would do"
    )


def _two_digits(count: int) -> int:
    """Rounded up to two digits, which is more than an estimate of it is worth."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // unit) * unit


def intervals(row: Row) -> str:
    """The figures that are judged by their intervals; empty where there is none."""
    values = {
        "kl_mean": row.measured.kl_mean,
        "top1": row.measured.top1,
        "perplexity_ratio": row.perplexity_ratio,
    }
    return ", ".join(
        f"{_FIGURES[key][0]} {_FIGURES[key][1](value)} ({interval(key, row)})"
        for key, value in values.items()
        if value is not None and key in row.intervals
    )


def interval(figure: str, row: Row) -> str:
    """`0.9936 to 1.0254`, and whether sequences were taken as independent, not tokens."""
    found, shown = row.intervals[figure], _FIGURES[figure][1]
    by = ", by sequence" if found.independent == SEQUENCES else ""
    return f"{shown(found.low)} to {shown(found.high)}{by}"


_FIGURES: Mapping[str, tuple[str, Callable[[float], str], Callable[[float], str]]] = {
    "kl_mean": ("mean KL", "{:.2e}".format, "{:.0e}".format),
    "top1": ("top-1", "{:.1%}".format, "{:.0%}".format),
    "perplexity_ratio": ("perplexity ratio", "{:.4f}".format, "{}".format),
}
"""Figure -> its name, and how a value and a limit of it are written."""


def limit(failure: Failure) -> str:
    """Which limit is exceeded, and by what."""
    value, bound = failure.value, failure.limit
    if failure.figure == "kl_mean":
        return _beyond("mean KL", value, f"{value:.2e}", "above", f"{bound:.0e}")
    if failure.figure == "top1":
        return _beyond("top-1", value, f"{value:.2%}", "below", f"{bound:.0%}")
    if failure.figure == "perplexity_ratio":
        told = f"{value:.4f} is" if math.isfinite(value) else "is not finite, so it is"
        return f"perplexity ratio {told} not within {1 / bound:.4f} to {bound}"
    raise ValueError(f"{failure.figure} is no figure that has a limit")


def decisive(result: Result) -> str:
    """The figure that kept a target from passing, as `KL stored 9.1e-03 > 8e-03`; empty: none did.

    `~`: the limit is within the figure's interval.
    """
    decided: list[tuple[Row, Failure | Doubt, str]] = [
        *((row, one, "") for row in result.rows for one in row.failures),
        *((row, one, "~") for row in result.rows for one in row.doubts),
    ]
    for row, one, sign in decided:
        against = "original" if row.against == ORIGINAL else "stored"
        if one.figure == "kl_mean":
            return f"KL {against} {one.value:.1e} {sign or '>'} {one.limit:.0e}"
        if one.figure == "top1":
            return f"top-1 {against} {one.value:.1%} {sign or '<'} {one.limit:.0%}"
        if one.figure == "perplexity_ratio":
            bound = one.limit if not one.value < 1 else 1 / one.limit
            return f"ppl × {one.value:.4f} {sign or ('<' if one.value < 1 else '>')} {bound:.4g}"
        raise ValueError(f"{one.figure} is no figure that has a limit")
    return ""


def _beyond(figure: str, value: float, shown: str, side: str, bound: str) -> str:
    if math.isfinite(value):
        return f"{figure} {shown} is {side} the limit of {bound}"
    return f"{figure} is not finite, the limit is {bound}"


def tokenizer(failure: TokenizerFailure | None) -> Iterator[str]:
    """What a tokenizer does otherwise than the original's."""
    if failure is None:
        return
    if failure.differs_from is not None:
        token = failure.differs_from + 1
        yield f"the tokenizer's ids differ from the original's from token {token} on"
    if failure.endless:
        yield f"tokens {list(failure.endless)} do not end a text"


MOST_PLACES = 8


def problem(found: Problem) -> str:
    """What is wrong with a file, beginning with its path in the folder."""
    if found.what == SIZE:
        return f"{found.path}: has {found.bytes} bytes, expected {found.expected}"
    told = {
        ABSENT: "is missing",
        CONTENT: "its content differs from the manifest's SHA-256",
        UNLISTED: "is not in the manifest",
        LINK: "is a symbolic link, where export wrote a file",
        SPECIAL: "is no file",
        UNREADABLE: "can't be read",
    }
    text = f"{found.path}: {told[found.what]}"
    if not found.places:
        return text
    named = [place(one) for one in found.places[:MOST_PLACES]]
    left = len(found.places) - len(named)
    more = f" and {left} more" if left else ""
    return f"{text}, in {', '.join(named)}{more}"


def place(found: Place) -> str:
    """A part of a file."""
    if found.kind == HEADER:
        return "the header"
    if found.kind == TENSOR:
        return f"tensor {found.name}"
    if found.kind == PADDING:
        return f"the padding after {f'tensor {found.name}' if found.name else 'the header'}"
    raise ValueError(f"{found.kind} is no part of a file that is known")


def shared(found: Shared) -> str:
    """That a file is reached from elsewhere."""
    names = "another name" if found.names == 1 else f"{found.names} other names"
    return (
        f"{found.path}: has {names} outside the folder (hard links); what is written there "
        "changes it"
    )


def not_compared(why: NotCompared) -> str:
    """Why float activations were not compared, and what helps."""
    if why.reason == MISSING:
        return f"float activations not compared: {install_command('convert')}"
    if why.reason == SPACE:
        return (
            f"float activations NOT COMPARED: the float32 twin needs {why.nbytes / 1e9:.1f} GB in "
            f"{why.folder}; set TMPDIR to a larger disk"
        )
    raise ValueError(f"{why.reason} is no reason that is known")


def crash(found: Crash) -> str:
    """Which signal ended a process, with the advice that fits it."""
    engine = found.engine or "the engine"
    advice: dict[int, str] = {
        signal.SIGILL: f"{engine} ran an instruction that this CPU does not have; it would crash "
        "there in the same way, so install another version of it",
        signal.SIGKILL: "the system killed it, as it does when memory runs out",
        signal.SIGSEGV: f"{engine} crashed; try another version of it",
        signal.SIGALRM: "it took longer than --timeout allows; is the file damaged, or the device "
        "slow?",
        signal.SIGABRT: f"{engine} gave up: {found.said}",
    }
    what = "the run that measures its memory was " if found.measuring else ""
    return f"{what}ended by {found.name}: {advice.get(found.signal, found.said)}"
