"""What became of one exported target in one place: here, emulated, over ssh or over adb.

Facts alone; `emo_export.report` makes sentences, tables, XML and HTML of them.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from emo_export.base.strict_dataclass import read_dataclass
from emo_export.errors import EmoExportError, NotEnoughTextError, ParityError
from emo_export.files.verifying import Problem
from emo_export.parity.by_position import ByPosition, DomainFigures
from emo_export.parity.estimates import Interval
from emo_export.parity.golden import ORIGINAL, Measured
from emo_export.parity.losses import Losses

HERE = "here"
SHIPPED, EXACT = "shipped", "exact"
PREFILL, DECODE = "prefill", "decode"
MISSING, SPACE = "missing", "space"
FAILED, UNTOLD = ParityError.exit_code, NotEnoughTextError.exit_code
PASS, FAIL, NOT_ENOUGH = "pass", "FAIL", "not enough text"


@dataclass(frozen=True)
class Failure:
    """A limit that a comparison exceeds: the figure's name, its value, the limit.

    A `perplexity_ratio` must lie between 1 / limit and limit.
    """

    figure: str
    value: float
    limit: float


@dataclass(frozen=True)
class Doubt:
    """A limit that lies inside of a figure's interval: these `tokens` can't tell.

    `enough` is about how many would, if the figure stayed what it is; 0 where there are so few
    that it has no interval.
    """

    figure: str
    value: float
    limit: float
    tokens: int
    enough: int


@dataclass(frozen=True)
class Row:
    """One comparison and its verdict.

    `against` is `dequantised` or `original`; `arithmetic` is `shipped` (what a user runs) or
    `exact` (float activations, where the engine would quantise them); `mode` is the whole prompt at
    once or token by token through the KV cache. `positions` has all of them, near ties too;
    `domains` only the comparison with the original, and only where golden.npz recorded them.
    `intervals` are those of the figures that are judged by one: of the comparison with the
    original, where there are enough tokens for one, and of a top-1 under its limit in the others.
    """

    against: str
    arithmetic: str
    mode: str
    measured: Measured
    limits: Mapping[str, float]
    positions: ByPosition
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    domains: tuple[DomainFigures, ...] = ()
    failures: tuple[Failure, ...] = ()
    doubts: tuple[Doubt, ...] = ()
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`pass` (every limit holds), `FAIL` (one doesn't) or `not enough text`."""
        return FAIL if self.failures else NOT_ENOUGH if self.doubts else PASS


@dataclass(frozen=True)
class NotCompared:
    """Why float activations were not compared.

    `reason` is `missing` (the converters, which make the graph for it) or `space` (the float twin
    takes `nbytes` in `folder`, which has no room for it).
    """

    reason: str
    nbytes: int = 0
    folder: str = ""


@dataclass(frozen=True)
class TokenizerFailure:
    """What the artifact's tokenizer does otherwise than the checkpoint's.

    `differs_from`: the first token (from 0) that is another; None when all are the same. `endless`:
    the tokens that should end a text and do not.
    """

    differs_from: int | None
    endless: tuple[int, ...]


@dataclass(frozen=True)
class Crash:
    """A signal ended a process: its number, the engine, the last words on stderr.

    `measuring`: it was the run that measures memory, not the one that judges.
    """

    signal: int
    engine: str
    said: str
    measuring: bool = False

    @property
    def name(self) -> str:
        """As SIGILL; a number that has none here is `signal N`."""
        try:
            return signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"


@dataclass(frozen=True)
class Refusal:
    """An error that kept a target from being judged (or timed): its text, its exit code."""

    text: str
    exit_code: int


@dataclass(frozen=True)
class Smaller:
    """Another target, which the memory holds, and the bytes that it needs.

    `ran`: they were measured. `there`: it is one of this package. `known`: what it needs beside
    weights is known from another run. `weighed`: importance of the inputs makes its type better.
    """

    target: str
    nbytes: int
    ran: bool
    there: bool
    known: bool
    weighed: bool


@dataclass(frozen=True)
class TooLittle:
    """The memory that was asked for does not hold a target; `Result.memory` has what it needs.

    `smaller`: the largest of the smaller targets of its `family` that fit, if any does. `early`:
    the run ended before a model was opened, so that none can.
    """

    family: str
    smaller: Smaller | None = None
    early: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """One target, judged or not, in one place.

    `device` is `here` or what `--device` names, `kind` here, emulated, ssh or adb. `rows` is empty
    where the run did not get to an end; then `crash`, `refusal` or `too_little` tells why. A
    `refusal` beside rows: what was asked for beside parity, such as speed, could not be had.
    `damage`: files that are not those that export wrote. `losses`: what pruning and bits cost.

    `greedy_difference` is the first step at which greedy text differs from the float original's
    (None: never in `greedy_steps`). The judged positions use `experts_used` of `experts_routed`
    routed experts; the digests of the manifest speak for the others.

    `machine` is what the machine says of itself and what is known of it, `kernels` (operator ->
    arithmetic) what ONNX Runtime was found to compute there. `memory` is in bytes, `speed` what was
    measured there, `command` the process that judged (folders in it may be gone), `repeat` the
    command line of emo-export that does it again.
    """

    target: str
    device: str = HERE
    kind: str = HERE
    engine: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    losses: Losses | None = None
    greedy_steps: int = 0
    greedy_difference: int | None = None
    experts_used: int = 0
    experts_routed: int = 0
    heldout_tokens: int = 0
    heldout_source: str = ""
    not_compared: NotCompared | None = None
    tokenizer: TokenizerFailure | None = None
    damage: tuple[Problem, ...] = ()
    crash: Crash | None = None
    refusal: Refusal | None = None
    too_little: TooLittle | None = None
    machine: Mapping[str, str] = field(default_factory=dict)
    kernels: Mapping[str, str] = field(default_factory=dict)
    memory: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] | None = None
    command: str = ""
    repeat: str = ""

    @property
    def passed(self) -> bool:
        """It was judged, is within every limit, and nothing failed beside that."""
        return self.exit_code == 0

    @property
    def exit_code(self) -> int:
        """0, or that of the error which this result is (see `errors`)."""
        if any(row.failures for row in self.rows) or self.tokenizer or self.damage:
            return FAILED
        if self.crash or self.too_little:
            return FAILED
        if self.refusal:
            return self.refusal.exit_code
        if any(row.doubts for row in self.rows):
            return UNTOLD
        return 0 if self.rows else FAILED

    @property
    def verdict(self) -> str:
        """`pass`, `FAIL` (also what could not be judged) or `not enough text`."""
        return {0: PASS, UNTOLD: NOT_ENOUGH}.get(self.exit_code, FAIL)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity: they become null."""
        return {**without_nan(asdict(self)), "passed": self.passed, "verdict": self.verdict}

    @classmethod
    def from_dict(cls, raw: object, where: str = "result") -> Result:
        """What `as_dict` made, read back; figures that were not finite are NaN.

        Raises EmoExportError, which names `where`, for anything else.
        """
        stated = dict(raw) if isinstance(raw, dict) else {}
        passed, verdict = stated.pop("passed", None), stated.pop("verdict", None)
        result = read_dataclass(cls, stated if isinstance(raw, dict) else raw, where)
        if result.passed is not passed:
            raise EmoExportError(f"{where}: passed is {passed!r}, its rows say {result.passed}")
        if result.verdict != verdict:
            raise EmoExportError(f"{where}: verdict is {verdict!r}, its rows say {result.verdict}")
        nan = float("nan")  # a perplexity of null is one that was not finite, not one not measured
        rows = tuple(
            replace(row, perplexity=nan, perplexity_ratio=nan)
            if row.against == ORIGINAL and row.perplexity_ratio is None
            else row
            for row in result.rows
        )
        return replace(result, rows=rows)


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """What `validate --json` prints and parity.json holds."""
    return {
        "passed": all(r.passed for r in results),
        "verdict": worst(results),
        "targets": [r.as_dict() for r in results],
    }


def worst(results: Sequence[Result]) -> str:
    """The verdict on all of them."""
    found = {result.verdict for result in results}
    return next((verdict for verdict in (FAIL, NOT_ENOUGH) if verdict in found), PASS)


def refused(target: str, error: EmoExportError, device: str = HERE, kind: str = HERE) -> Result:
    """The result of a target that an error kept from being judged."""
    refusal = Refusal(str(error), error.exit_code)
    return Result(target=target, device=device, kind=kind, refusal=refusal)


def without_nan(value: Any) -> Any:
    """Plain values for JSON, which has no NaN and no infinity: they become None."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
