"""Judge an exported target against golden.npz with its own engine. A Pi runs this: no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from typing import Any

from emo_export.base.strict_dataclass import read_dataclass
from emo_export.errors import EmoExportError
from emo_export.interfaces import Runtime, Tokenizer
from emo_export.parity.by_position import ByPosition, DomainFigures, by_domain, by_position
from emo_export.parity.golden import (
    ORIGINAL,
    Golden,
    Measured,
    first_difference,
    measure,
    perplexity,
    run_greedy,
    run_logits,
    run_nll,
)

OpenRuntime = Callable[[], Runtime]
OpenTokenizer = Callable[[Runtime], Tokenizer]
SHIPPED, EXACT = "shipped", "exact"
PREFILL, DECODE = "prefill", "decode"


@dataclass(frozen=True)
class Row:
    """One comparison and its verdict.

    `against` is `dequantised` or `original`; `arithmetic` is `shipped` (what a user runs) or
    `exact` (float activations, where the engine would quantise them); `mode` is the whole prompt at
    once or token by token through the KV cache. `failures` says which limit was exceeded.
    `positions` has all of them, near ties too; `domains` only the comparison with the original,
    and only where golden.npz recorded them.
    """

    target: str
    against: str
    arithmetic: str
    mode: str
    measured: Measured
    limits: Mapping[str, float]
    positions: ByPosition
    perplexity: float | None = None
    perplexity_ratio: float | None = None
    domains: tuple[DomainFigures, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Within every limit."""
        return not self.failures


@dataclass(frozen=True)
class TargetReport:
    """All comparisons of one target, and the engine that made them.

    `greedy_difference` is the first step at which greedy text differs from the float original's
    (None: never in `greedy_steps`). The judged positions use `experts_used` of `experts_routed`
    routed experts; the digests of the manifest speak for the others. `notes` tells what was not
    compared and why.
    """

    target: str
    engine: Mapping[str, str]
    rows: tuple[Row, ...]
    greedy_steps: int
    greedy_difference: int | None
    experts_used: int
    experts_routed: int
    heldout_tokens: int
    heldout_source: str
    notes: tuple[str, ...] = ()
    tokenizer_failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Every row within its limits, and the tokenizer's ids the original's."""
        return all(row.passed for row in self.rows) and not self.tokenizer_failures

    def as_dict(self) -> dict[str, Any]:
        """For parity.json and `--json`."""
        return {**_without_nan(asdict(self)), "passed": self.passed}

    @classmethod
    def from_dict(cls, raw: object, where: str = "report") -> TargetReport:
        """What `as_dict` made, read back; figures that were not finite are NaN.

        Raises EmoExportError, which names `where`, for anything else.
        """
        stated = raw.get("passed") if isinstance(raw, dict) else None
        rest = {k: v for k, v in raw.items() if k != "passed"} if isinstance(raw, dict) else raw
        report = read_dataclass(cls, rest, where)
        if report.passed is not stated:
            raise EmoExportError(f"{where}: passed is {stated!r}, its rows say {report.passed}")
        nan = float("nan")  # a perplexity of null is one that was not finite, not one not measured
        rows = tuple(
            replace(row, perplexity=nan, perplexity_ratio=nan)
            if row.against == ORIGINAL and row.perplexity_ratio is None
            else row
            for row in report.rows
        )
        return replace(report, rows=rows)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tolerances(target: str, profile: str = "") -> Mapping[str, Mapping[str, float]]:
    """The limits of one target, from tolerances.json: its own, or those of its type in any graph.

    On the device of a `profile` its kernels' limits replace them where it has any.

    Raises EmoExportError for an unknown target.
    """
    table = json.loads(
        resources.files("emo_export.parity").joinpath("tolerances.json").read_text("utf-8")
    )
    special = table["devices"].get(profile, {}) if profile else {}
    for name in (target, target.partition("@")[0]):
        if name in table:
            return {**table[name], **special.get(name, {})}
    raise EmoExportError(f"{target}: tolerances.json has no limits for this target")


def validate_target(
    target: str,
    golden: Golden,
    open_shipped: OpenRuntime,
    open_tokenizer: OpenTokenizer,
    open_exact: OpenRuntime | None = None,
    notes: tuple[str, ...] = (),
    dequantised: bool = True,
    profile: str = "",
) -> TargetReport:
    """Run one target and compare: shipped arithmetic, then exact where there is another way to run.

    Without `dequantised` it is compared with the float original alone, as a file must be whose
    quantisation can't be repeated. `profile` names the device whose limits hold.

    Raises EmoExportError when the engine can't open the model.
    """
    limits = tolerances(target, profile)
    rows: list[Row] = []
    runtime = open_shipped()
    try:
        _check_fits(target, golden, runtime)
        if dequantised:
            rows += _dequantised_rows(target, golden, runtime, SHIPPED, limits)
        rows.append(_original_row(target, golden, runtime, limits[ORIGINAL]))
        greedy = run_greedy(runtime, golden.greedy_prompt, len(golden.greedy))
        engine = dict(runtime.describe())
        tokenizer_failures = _compare_tokenizer(golden, open_tokenizer, runtime)
    finally:
        runtime.close()
    if open_exact is not None and EXACT in limits:
        runtime = open_exact()
        try:
            rows += _dequantised_rows(target, golden, runtime, EXACT, limits)
        finally:
            runtime.close()
    return TargetReport(
        target=target,
        engine=engine,
        rows=tuple(rows),
        greedy_steps=len(golden.greedy),
        greedy_difference=first_difference(golden.greedy, greedy),
        experts_used=int(golden.variants[ORIGINAL].experts[0]),
        experts_routed=int(golden.variants[ORIGINAL].experts[1]),
        heldout_tokens=int((golden.heldout_ids[:, 1:] >= 0).sum()),
        heldout_source=golden.heldout_source,
        notes=notes,
        tokenizer_failures=tokenizer_failures,
    )


def _compare_tokenizer(
    golden: Golden, open_tokenizer: OpenTokenizer, runtime: Runtime
) -> tuple[str, ...]:
    """What the tokenizer in the artifact does otherwise than the checkpoint's."""
    if not golden.text:
        return ()
    tokenizer = open_tokenizer(runtime)
    failures = []
    found, expected = tokenizer.encode(golden.text), golden.text_ids.tolist()
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
        failures.append(f"the tokenizer's ids differ from the original's from token {place + 1} on")
    missing = set(golden.stop_ids.tolist()) - tokenizer.stop_ids
    if missing:
        failures.append(f"tokens {sorted(missing)} do not end a text")
    return tuple(failures)


def _check_fits(target: str, golden: Golden, runtime: Runtime) -> None:
    size = golden.variants[ORIGINAL].logits.shape[-1]
    if runtime.vocab_size != size:
        raise EmoExportError(
            f"{target}: the model has {runtime.vocab_size} tokens, golden.npz {size}; "
            "they are not of the same export"
        )


def _dequantised_rows(
    target: str,
    golden: Golden,
    runtime: Runtime,
    arithmetic: str,
    limits: Mapping[str, Mapping[str, float]],
) -> list[Row]:
    reference, limit = golden.variant(target), limits[arithmetic]
    rows = []
    for mode, step in ((PREFILL, 0), (DECODE, 1)):
        logits = run_logits(runtime, golden.input_ids, step)
        figures = measure(reference.logits, logits, reference.margin, limit["tie"])
        failures = tuple(_exceeded(figures, limit))
        places = by_position(reference.logits, logits)
        rows.append(
            Row(target, "dequantised", arithmetic, mode, figures, limit, places, failures=failures)
        )
    return rows


def _original_row(target: str, golden: Golden, runtime: Runtime, limit: Mapping[str, float]) -> Row:
    reference = golden.variants[ORIGINAL]
    logits = run_logits(runtime, golden.input_ids, 0)
    figures = measure(reference.logits, logits, reference.margin, limit["tie"])
    nll = run_nll(runtime, golden.heldout_ids)
    found = perplexity(nll)
    ratio = found / perplexity(reference.heldout_nll)
    failures = list(_exceeded(figures, limit))
    high = limit["perplexity_ratio"]
    if not 1 / high <= ratio <= high:  # much better than the original is as wrong as much worse
        failures.append(f"perplexity ratio {ratio:.4f} is not within {1 / high:.4f} to {high}")
    return Row(
        target,
        ORIGINAL,
        SHIPPED,
        PREFILL,
        figures,
        limit,
        by_position(reference.logits, logits),
        found,
        ratio,
        by_domain(golden, reference, nll),
        tuple(failures),
    )


def _exceeded(figures: Measured, limit: Mapping[str, float]) -> list[str]:
    # Written so that a NaN fails.
    failures = []
    if not figures.kl_mean <= limit["kl_mean"]:
        failures.append(f"mean KL {figures.kl_mean:.2e} > {limit['kl_mean']:.0e}")
    if not figures.top1 >= limit["top1"]:
        failures.append(f"top-1 {figures.top1:.2%} < {limit['top1']:.0%}")
    return failures
