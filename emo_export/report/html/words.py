"""What the page says in words: the verdict, and the message of each chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from emo_export.files.manifest import Manifest
from emo_export.interfaces import Ids
from emo_export.parity.result import FAIL, HERE, NOT_ENOUGH, Result, Row
from emo_export.report.sentences import interval as interval_of
from emo_export.report.sentences import name as name_of

NOTHING = "Nothing to draw: every value is zero or not finite."
KINDS = {
    "here": "this machine",
    "emulated": "emulated: the device's own builds and kernels; speed says nothing",
    "ssh": "another machine, over ssh",
    "adb": "another device, over adb",
}


def number(value: float | None) -> str:
    """Three significant digits, as a reader writes them."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.2e}"


def ratio(value: float | None) -> str:
    """A factor with four decimals."""
    return f"{value:.4f}" if value is not None and math.isfinite(value) else "not finite"


def perplexity(value: float | None) -> str:
    """Two decimals."""
    return f"{value:.2f}" if value is not None and math.isfinite(value) else "not finite"


def percent(value: float) -> str:
    """A share as per cent."""
    return f"{value:.1%}" if math.isfinite(value) else "not finite"


def change(value: float) -> str:
    """A relative change as per cent with its sign."""
    return f"{value:+.2%}".replace("-", "−") if math.isfinite(value) else "not finite"


def megabytes(value: float) -> str:
    """Bytes in MB, the unit of the other results."""
    return f"{value / 1e6:.1f} MB"


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def place(device: str) -> str:
    """A device in a sentence."""
    return "this machine" if device == HERE else device


def verdict(results: Sequence[Result]) -> str:
    """A sentence or two: what passed or failed where, and what could not be told."""
    failed = [result for result in results if result.verdict == FAIL]
    untold = [name_of(result) for result in results if result.verdict == NOT_ENOUGH]
    if untold:
        text = f"Too little text to judge {joined(_some(untold))}."
        return f"{_failed(failed, len(results))} {text}" if failed else text
    targets = list(dict.fromkeys(result.target for result in results))
    devices = joined([place(name) for name in dict.fromkeys(r.device for r in results)])
    if not failed:
        stay = "stays within its" if len(targets) == 1 else "stay within their"
        return f"{joined(targets)} {stay} limits on {devices}."
    return _failed(failed, len(results))


def _failed(failed: Sequence[Result], of: int) -> str:
    names = [name_of(result) for result in failed]
    if of == 1:
        return f"{names[0]} failed."
    return f"{len(failed)} of {of} checks failed: {joined(_some(names))}."


def _some(names: Sequence[str]) -> list[str]:
    """At most four names."""
    return [*names] if len(names) <= 4 else [*names[:3], f"{len(names) - 3} more"]


def interval(row: Row, figure: str) -> str:
    """The interval of a figure; empty where it has none."""
    return interval_of(figure, row) if figure in row.intervals else ""


def limits(row: Row) -> str:
    """The limits of a comparison."""
    known = {
        "kl_mean": "KL\u00a0≤\u00a0{:g}",
        "top1": "top-1\u00a0≥\u00a0{:.0%}",
        "perplexity_ratio": "ppl\u00a0×\u00a0≤\u00a0{:g}",
    }
    return ", ".join(
        text.format(row.limits[key]) for key, text in known.items() if key in row.limits
    )


def about_lines(what: str, lines: Mapping[str, Sequence[float]], unit: str = "") -> str:
    """The message of a chart by position: the line that is highest on average, and its peak."""
    means = {name: _mean(values) for name, values in lines.items()}
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not finite:
        return f"{what}: no position has a finite figure."
    name = max(finite, key=lambda key: finite[key])
    values = [v if math.isfinite(v) else -1.0 for v in lines[name]]
    peak = max(range(len(values)), key=lambda i: values[i])
    half = len(values) // 2
    early, late = _mean(values[:half]), _mean(values[half:])
    text = f"{what}. Highest on average: {name}, {number(finite[name])}{unit}"
    text += f" (at most {number(values[peak])}{unit}, at position {peak + 1})"
    if early > 0 and late > 0:
        text += f"; the second half of the sequence has {late / early:.2g} times the first half's"
    broken = [key for key, line in lines.items() if not all(map(math.isfinite, line))]
    return text + (f". Not finite somewhere: {joined(broken)}." if broken else ".")


def about_domains(groups: Mapping[str, Mapping[str, float]]) -> str:
    """The message of the bars: the largest change."""
    changes = [
        (abs(value), domain, name)
        for domain, group in groups.items()
        for name, value in group.items()
        if math.isfinite(value)
    ]
    if not changes:
        return "Perplexity by domain: no finite figure."
    _, domain, name = max(changes)
    return (
        "Perplexity by domain, change from the float original's. Largest: "
        f"{name} on {domain}, {change(groups[domain][name])}."
    )


def about_usage(domain: str, usage: Ids, tokens: int) -> str:
    """The message of a heat map: the busiest expert and how many were never chosen."""
    layer, expert = divmod(int(usage.argmax()), usage.shape[1])
    routed, never = int((usage >= 0).sum()), int((usage == 0).sum())
    return (
        f"{domain}: {tokens} tokens. Busiest: expert {expert} of layer {layer}, chosen by "
        f"{percent(usage[layer, expert] / tokens)} of them; {never} of {routed} routed experts "
        "never chosen."
    )


def about_pruning(manifest: Manifest | None, results: Sequence[Result]) -> str:
    """What is known of pruning, and of its loss."""
    if any(r.losses is not None and r.losses.pruning for r in results):
        return (
            "Pruning, bits and both: held-out perplexity times that of the model before, with its "
            "standard error. Pruning leads from all experts to those kept, both in float; bits "
            "from there to the file. The float original of the other figures is the pruned model."
        )
    if manifest is None:
        return (
            "There is no manifest.json, so nothing is known of pruning; its loss was not measured."
        )
    pruning = manifest.source.get("pruning")
    if not pruning:
        return (
            "Pruning loss: none by emo-export, which pruned nothing here, and the checkpoint has "
            "no pruning_metadata.json that would tell of an earlier pruning."
        )
    return (
        "Pruning loss: not in this package. The checkpoint was pruned before the export (from "
        f"{pruning.get('original_model')}, {pruning.get('prune_keep_k')} experts kept a layer, "
        f"method {pruning.get('pruning_method')}), and what is called the float original here is "
        "that pruned checkpoint: the figures above are quantisation loss alone."
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
