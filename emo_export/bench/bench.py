"""Speed of several models measured in turns, each in a process of its own.

A round measures every model once, one after another, so that a machine that slows down or speeds
up meanwhile does so for all of them. Figures are medians over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from emo_export.base.child_process import Child, Memory, busy_seconds
from emo_export.bench.bandwidth import Bandwidth
from emo_export.files.read_per_token import PerToken

MEMORY_MARGIN = 0.95  # of what is available
LEAST_SECONDS = 1.0  # of measuring, below which the load of others can't be told


@dataclass(frozen=True)
class Settings:
    """Tokens of a prefill; tokens of a decode run and of the prompt before it; rounds; threads."""

    prefill: int
    decode: int
    depth: int
    rounds: int
    threads: int

    @property
    def positions(self) -> float:
        """The KV cache's length at a decode step, on average, its own position included."""
        return self.depth + (self.decode + 1) / 2


@dataclass(frozen=True)
class Subject:
    """One model: what the child that measures it is asked to open, and what is known before.

    `nbytes` is its size on disk, `needs` the memory that it is expected to take.
    """

    label: str
    opening: Mapping[str, Any]
    nbytes: int
    per_token: PerToken
    needs: int


@dataclass(frozen=True)
class Run:
    """One model in one round: seconds since the start, and what was measured.

    `seconds` is what all of it took, `others` the CPU seconds that other processes used meanwhile
    (the clocks tick in 10 ms, so that single runs are rough; None where it isn't known).
    """

    label: str
    round: int
    at_seconds: float
    prefill_seconds: float
    decode_seconds: float
    seconds: float
    others: float | None


@dataclass
class Result:
    """All that was measured of one model."""

    subject: Subject
    load_seconds: list[float] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    engine: Mapping[str, str] = field(default_factory=dict)
    memory: Memory | None = None


@dataclass(frozen=True)
class Figures:
    """What the table shows of one model; speeds are (median, least, most) tokens per second."""

    load_seconds: float
    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    bytes_per_token: float
    gb_per_s: float
    of_bandwidth: float


def figures(result: Result, settings: Settings, gb_per_s: float) -> Figures:
    """Medians, and the bytes that they move beside the machine's read bandwidth."""
    prefill = _spread([settings.prefill / run.prefill_seconds for run in result.runs])
    decode = _spread([settings.decode / run.decode_seconds for run in result.runs])
    nbytes = result.subject.per_token.at(settings.positions)
    reached = nbytes * decode[0] / 1e9
    load = median(result.load_seconds)
    return Figures(load, prefill, decode, nbytes, reached, reached / gb_per_s)


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def fit_together(subjects: Sequence[Subject], available: int | None, reserve: int) -> bool:
    """Whether all models can be open at once and still leave `reserve` bytes."""
    needed = reserve + sum(subject.needs for subject in subjects)
    return available is None or needed <= MEMORY_MARGIN * available


def measure(
    subjects: Sequence[Subject],
    settings: Settings,
    open_child: Callable[[str], Child],
    together: bool,
    say: Callable[[str], None],
) -> list[Result]:
    """Measure all models in turns: all open at once, or each opened anew for its turn.

    `open_child` starts a process that answers `open`, `prefill` and `decode`. Whatever happens, no
    child outlives this call. Raises EmoExportError when one dies or refuses.
    """
    results = [Result(subject) for subject in subjects]
    start = time.perf_counter()
    children: dict[str, Child] = {}
    try:
        if together:
            for result in results:
                children[result.subject.label] = _opened(result, settings, open_child, say)
        for turn in range(settings.rounds):
            for result in results:
                label = result.subject.label
                if not together:
                    children[label] = _opened(result, settings, open_child, say)
                _measure_one(result, children[label], settings, turn, start, say)
                if not together:
                    children.pop(label).kill()
    finally:
        for child in children.values():
            child.kill()
    return results


def _opened(
    result: Result,
    settings: Settings,
    open_child: Callable[[str], Child],
    say: Callable[[str], None],
) -> Child:
    """A child with the model open and warm, so that its pages are in memory."""
    subject = result.subject
    child = open_child(subject.label)
    try:
        needed = max(settings.prefill, settings.depth + settings.decode)
        opening = {"do": "open", "threads": settings.threads, "positions": needed}
        opening |= subject.opening
        answer = child.ask(opening, sample=True)
        result.load_seconds.append(answer["seconds"])
        result.engine = answer["engine"]
        say(f"{subject.label}: opened in {answer['seconds']:.1f} s")
        child.ask({"do": "prefill", "tokens": settings.prefill}, sample=True)
        child.ask({"do": "decode", "tokens": 2, "depth": settings.depth}, sample=True)
    except BaseException:
        child.kill()
        raise
    return child


def _measure_one(
    result: Result,
    child: Child,
    settings: Settings,
    turn: int,
    start: float,
    say: Callable[[str], None],
) -> None:
    began, others = time.perf_counter(), _others(child)
    prefill = child.ask({"do": "prefill", "tokens": settings.prefill})["seconds"]
    request = {"do": "decode", "tokens": settings.decode, "depth": settings.depth}
    decode = child.ask(request)["seconds"]
    taken, busy = time.perf_counter() - began, _others(child)
    used = None if others is None or busy is None else busy - others
    run = Run(child.label, turn, began - start, prefill, decode, taken, used)
    result.runs.append(run)
    result.memory = _most(result.memory, child.memory)
    say(
        f"round {turn + 1} of {settings.rounds}, {child.label}: prefill "
        f"{settings.prefill / prefill:.1f} tok/s, decode {settings.decode / decode:.1f} tok/s"
    )


def _others(child: Child) -> float | None:
    """CPU seconds that the machine has used for anything but the child."""
    all_of_it, own = busy_seconds(), child.cpu_seconds()
    return None if all_of_it is None or own is None else all_of_it - own


def _most(a: Memory | None, b: Memory | None) -> Memory | None:
    if a is None or b is None:
        return a or b
    pairs = zip(asdict(a).values(), asdict(b).values(), strict=True)
    return Memory(*(max(pair) for pair in pairs))


@dataclass(frozen=True)
class Report:
    """Everything that one call of the command found."""

    machine: Mapping[str, str]
    settings: Settings
    together: bool
    before: Bandwidth
    after: Bandwidth
    results: Sequence[Result]

    @property
    def gb_per_s(self) -> float:
        """The read bandwidth that the models are held against: the mean of before and after."""
        return (self.before.gb_per_s + self.after.gb_per_s) / 2

    @property
    def drift(self) -> float:
        """How much more (or, negative, less) was read in a second after than before."""
        return self.after.gb_per_s / self.before.gb_per_s - 1

    def others(self) -> float | None:
        """How many CPUs other processes kept busy while models were measured, on average.

        None where that isn't known, or the measuring was too short to tell.
        """
        runs = [run for result in self.results for run in result.runs]
        seconds = sum(run.seconds for run in runs)
        used = [run.others for run in runs if run.others is not None]
        if len(used) < len(runs) or seconds < LEAST_SECONDS:
            return None
        return max(0.0, sum(used) / seconds)

    def figures(self) -> list[Figures]:
        """The medians of each model."""
        return [figures(result, self.settings, self.gb_per_s) for result in self.results]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, every round's figures included."""
        bandwidth: dict[str, Any] = {"before": asdict(self.before), "after": asdict(self.after)}
        bandwidth |= {"gb_per_s": self.gb_per_s, "drift": self.drift}
        runs = [asdict(run) for result in self.results for run in result.runs]
        return {
            "machine": dict(self.machine),
            "settings": asdict(self.settings),
            "open_at_once": self.together,
            "cpus_used_by_others": self.others(),
            "bandwidth": bandwidth,
            "models": [_as_dict(*pair) for pair in zip(self.results, self.figures(), strict=True)],
            "runs": sorted(runs, key=lambda run: float(run["at_seconds"])),
        }


def _named(spread: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(("median", "least", "most"), spread, strict=True))


def _as_dict(result: Result, found: Figures) -> dict[str, Any]:
    subject = result.subject
    return {
        "target": subject.label,
        "path": str(Path(subject.opening["path"])),
        "bytes": subject.nbytes,
        "engine": dict(result.engine),
        "load_seconds": result.load_seconds,
        "weights_per_token": subject.per_token.weights,
        "cache_per_position": subject.per_token.cache,
        "figures": asdict(found)
        | {name: _named(getattr(found, name)) for name in ("prefill", "decode")},
        "memory": None if result.memory is None else asdict(result.memory),
    }
