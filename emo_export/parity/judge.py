"""Judge an exported target against golden.npz with its own engine. A Pi runs this: no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources

from emo_export.errors import EmoExportError
from emo_export.interfaces import F32, Runtime, Tokenizer
from emo_export.parity.by_position import by_domain, by_position
from emo_export.parity.estimates import (
    Interval,
    logit_intervals,
    ratio_interval,
    share_interval,
)
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
from emo_export.parity.losses import losses
from emo_export.parity.result import (
    DECODE,
    EXACT,
    PREFILL,
    SHIPPED,
    Doubt,
    Failure,
    NotCompared,
    Result,
    Row,
    TokenizerFailure,
)
from emo_export.spec import Spec

OpenRuntime = Callable[[], Runtime]
OpenTokenizer = Callable[[Runtime], Tokenizer]

MOST = 1e4  # times the tokens: what is so near to its limit can't be told
TINY = 5e-324  # the logarithm of a ratio that fell to zero


def tolerances(target: Spec, profile: str = "") -> Mapping[str, Mapping[str, float]]:
    """The limits of one target, from tolerances.json: its own, or those of its type in any graph.

    On the device of a `profile` its kernels' limits replace them where it has any.

    Raises EmoExportError for a target without any.
    """
    table = json.loads(
        resources.files("emo_export.parity").joinpath("tolerances.json").read_text("utf-8")
    )
    special = table["devices"].get(profile, {}) if profile else {}
    for name in map(str, (target, replace(target, graph=""))):
        if name in table:
            return {**table[name], **special.get(name, {})}
    raise EmoExportError(f"{target}: tolerances.json has no limits for this target")


def validate_target(
    target: Spec,
    golden: Golden,
    open_shipped: OpenRuntime,
    open_tokenizer: OpenTokenizer,
    open_exact: OpenRuntime | None = None,
    not_compared: NotCompared | None = None,
    profile: str = "",
    open_lossy: OpenRuntime | None = None,
) -> Result:
    """Run one target and compare: shipped arithmetic, then exact where there is another way to run.

    With `open_lossy`, a runtime that loses more than rounding (in its KV cache), what is compared
    with the float original is what that one computes.
    `not_compared` tells why there is no `open_exact`; `profile` names the device whose limits hold.

    Raises EmoExportError when the engine can't open the model.
    """
    limits = tolerances(target, profile)
    runtime = (open_lossy or open_shipped)()
    try:
        _check_fits(target, golden, runtime)
        nll = run_nll(runtime, golden.heldout_ids)
        original = _original_row(golden, runtime, nll, limits[ORIGINAL])
        greedy = run_greedy(runtime, golden.greedy_prompt, len(golden.greedy))
        engine = dict(runtime.describe())
        tokenizer = _compare_tokenizer(golden, open_tokenizer, runtime)
        if open_lossy is not None:
            runtime.close()
            runtime = open_shipped()
        rows = [*_dequantised_rows(str(target), golden, runtime, SHIPPED, limits), original]
    finally:
        runtime.close()
    if open_exact is not None and EXACT in limits:
        runtime = open_exact()
        try:
            rows += _dequantised_rows(str(target), golden, runtime, EXACT, limits)
        finally:
            runtime.close()
    return Result(
        target=str(target),
        engine=engine,
        rows=tuple(rows),
        losses=losses(golden, nll),
        greedy_steps=len(golden.greedy),
        greedy_difference=first_difference(golden.greedy, greedy),
        experts_used=int(golden.variants[ORIGINAL].experts[0]),
        experts_routed=int(golden.variants[ORIGINAL].experts[1]),
        heldout_tokens=int((golden.heldout_ids[:, 1:] >= 0).sum()),
        heldout_source=golden.heldout_source,
        not_compared=not_compared,
        tokenizer=tokenizer,
    )


def _compare_tokenizer(
    golden: Golden, open_tokenizer: OpenTokenizer, runtime: Runtime
) -> TokenizerFailure | None:
    """What the tokenizer in the artifact does otherwise than the checkpoint's."""
    if not golden.text:
        return None
    tokenizer = open_tokenizer(runtime)
    found, expected = tokenizer.encode(golden.text), golden.text_ids.tolist()
    place = None
    if found != expected:
        pairs = enumerate(zip(found, expected, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), min(len(found), len(expected)))
    endless = tuple(sorted(set(golden.stop_ids.tolist()) - tokenizer.stop_ids))
    return TokenizerFailure(place, endless) if endless or place is not None else None


def _check_fits(target: Spec, golden: Golden, runtime: Runtime) -> None:
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
    """Judged by the figures themselves: a bug at one position must not drown in a spread.

    But a top-1 under its limit is a share of what may be few positions.
    """
    reference, limit = golden.variant(target), limits[arithmetic]
    rows = []
    for mode, step in ((PREFILL, 0), (DECODE, 1)):
        logits = run_logits(runtime, golden.input_ids, step)
        figures = measure(reference.logits, logits, reference.margin, limit["tie"])
        verdicts, interval = beyond(figures, limit)
        places = by_position(reference.logits, logits)
        rows.append(
            Row(
                "dequantised",
                arithmetic,
                mode,
                figures,
                limit,
                places,
                failures=tuple(one for one in verdicts if isinstance(one, Failure)),
                doubts=tuple(one for one in verdicts if isinstance(one, Doubt)),
                intervals={} if interval is None else {"top1": interval},
            )
        )
    return rows


def _original_row(golden: Golden, runtime: Runtime, nll: F32, limit: Mapping[str, float]) -> Row:
    """Judged by intervals: what quantisation costs is estimated from the tokens at hand."""
    reference = golden.variants[ORIGINAL]
    logits = run_logits(runtime, golden.input_ids, 0)
    figures = measure(reference.logits, logits, reference.margin, limit["tie"])
    found = perplexity(nll)
    ratio = found / perplexity(reference.heldout_nll)
    intervals = {
        **logit_intervals(reference.logits, logits, reference.margin, limit["tie"]),
        "perplexity_ratio": ratio_interval(nll, reference.heldout_nll),
    }
    values = {"kl_mean": figures.kl_mean, "top1": figures.top1, "perplexity_ratio": ratio}
    verdicts = [judged(name, values[name], limit[name], intervals[name]) for name in values]
    return Row(
        ORIGINAL,
        SHIPPED,
        PREFILL,
        figures,
        limit,
        by_position(reference.logits, logits),
        found,
        ratio,
        by_domain(golden, reference, nll),
        tuple(one for one in verdicts if isinstance(one, Failure)),
        tuple(one for one in verdicts if isinstance(one, Doubt)),
        {name: one for name, one in intervals.items() if one is not None},
    )


def judged(
    figure: str, value: float, limit: float, interval: Interval | None
) -> Failure | Doubt | None:
    """A failure when the whole interval is outside of the limit, nothing when all of it is inside.

    Between them there is doubt. The half width of an interval shrinks with the root of the tokens,
    so (half width / distance to the limit) squared is how many times as many would tell.
    """
    if not math.isfinite(value):
        return Failure(figure, value, limit)
    if figure == "top1" and limit == 1:  # no number of tokens shows that all agree
        return None if value == 1 else Failure(figure, value, limit)
    if interval is None:
        return Doubt(figure, value, limit, 1, 0)
    least, most, scale = _bounds(figure, limit)
    low, middle, high = (scale(x) for x in (interval.low, value, interval.high))
    if high < least or low > most:
        return Failure(figure, value, limit)
    times = [
        ((high if middle < bound else low) - middle) / (bound - middle) if bound != middle else MOST
        for bound in (least, most)
        if low < bound < high
    ]
    if not times:
        return None
    enough = math.ceil(interval.tokens * min(max(times) ** 2, MOST))
    return Doubt(figure, value, limit, interval.tokens, enough)


def _bounds(figure: str, limit: float) -> tuple[float, float, Callable[[float], float]]:
    """The least and the most that a figure may be, on the scale on which it is symmetric."""
    if figure == "kl_mean":
        return -math.inf, limit, float
    if figure == "top1":
        return limit, math.inf, float
    if figure == "perplexity_ratio":  # much better than the original is as wrong as much worse
        return -math.log(limit), math.log(limit), lambda ratio: math.log(max(ratio, TINY))
    raise ValueError(f"{figure} is no figure that has a limit")


def beyond(
    figures: Measured, limit: Mapping[str, float]
) -> tuple[list[Failure | Doubt], Interval | None]:
    """What a comparison with the dequantised reference finds beyond its limits.

    A top-1 within its limit is a pass. One under it is a failure when its whole interval is, else
    a doubt: 7 of 9 positions are no sign of a bug where 85% may be expected. The interval is given
    where it decided.
    """
    # Written so that a NaN fails.
    found: list[Failure | Doubt] = []
    if not figures.kl_mean <= limit["kl_mean"]:
        found.append(Failure("kl_mean", figures.kl_mean, limit["kl_mean"]))
    if figures.top1 >= limit["top1"]:
        return found, None
    scored = figures.positions - figures.near_ties
    interval = share_interval(round(figures.top1 * scored), scored)
    verdict = judged("top1", figures.top1, limit["top1"], interval)
    found.append(verdict or Failure("top1", figures.top1, limit["top1"]))
    return found, interval
