"""The work of `plan`: what it prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emo_export.base.install import CONVERT, need
from emo_export.base.ram_size import shown
from emo_export.cli.progress import suggest
from emo_export.errors import EmoExportError
from emo_export.files.run_memory import Running
from emo_export.model.hub import locate
from emo_export.planning.choice import Choice
from emo_export.planning.export_need import ExportNeed
from emo_export.planning.export_time import ExportTime
from emo_export.planning.outline import Impossible, Planned
from emo_export.planning.plan import TARGETS, Plan, make_plan, target_facts
from emo_export.planning.profiles import DeviceProfile, device_profile, device_profiles
from emo_export.planning.source import open_source

SHORT = ("file\nMB", "memory\nMB", "read\nMB/token")
LONG = (
    "file\nMB",
    "weights\nMB",
    "KV cache\nMB",
    "engine\nMB",
    "in all\nMB",
    "read\nMB/token",
)
LEGEND = (
    "Memory on a device for a prompt of at most 512 tokens: weights, KV cache, and Python with the "
    "engine and its work space; estimated, within 10% of what validate --ram measured. tok/s: what "
    "the bandwidth of the device allows at most, with an empty cache. +: and those with more."
)


class DoesNotFitError(EmoExportError):
    """No planned target fits the device (exit 1)."""

    exit_code = 1


@dataclass(frozen=True)
class PlanOptions:
    """The options of `plan`, as its help describes them."""

    specs: tuple[str, ...]
    keeps: tuple[str, ...]
    context: int | None
    kv_cache: str | None
    fit: str | None
    timed: bool
    as_json: bool


def run_plan(source: str, options: PlanOptions, out: Console) -> None:
    """Plan, print the table, choose. Raises DoesNotFitError when nothing fits the profile."""
    need(CONVERT if options.timed else ("gguf", "onnx", "ml_dtypes"), "convert", "plan")
    profile = device_profile(options.fit) if options.fit else None
    checkpoint, nbytes = open_source(locate(source, weights=False))
    specs = options.specs or TARGETS
    plan = make_plan(
        checkpoint,
        nbytes,
        specs,
        options.keeps,
        options.context,
        options.timed,
        options.kv_cache,
    )
    choice = None if profile is None else plan.fit(profile)
    if options.as_json:
        click.echo(json.dumps(plan.as_dict() | _fit_facts(profile, choice), indent=2))
    else:
        _show(source, plan, profile, choice, out)
        if profile is None:  # with one, the table ends with its export
            fitted = ["plan", source, "--fit", "pi5-8gb"]
            ready = [str(one.spec) for one in plan.planned if not one.calibrated][:1]
            suggest(fitted, *(["export", source, "-o", "out", "--to", to] for to in ready))
    if profile is not None and choice is not None and choice.best is None:
        raise DoesNotFitError(_nothing_fits(profile, choice, plan))


def _fit_facts(profile: DeviceProfile | None, choice: Choice | None) -> dict[str, object]:
    if profile is None or choice is None:
        return {}
    best = None if choice.best is None else target_facts(choice.best)
    least = target_facts(choice.least)
    fit = {"profile": profile.name, "usable": choice.usable, "chosen": best}
    return {"fit": fit | {"short_by": choice.short_by, "least": least}}


def _show(
    source: str, plan: Plan, profile: DeviceProfile | None, choice: Choice | None, out: Console
) -> None:
    size = "weights not here" if plan.source_bytes is None else shown(plan.source_bytes)
    out.print(
        f"{source}: {plan.experts} experts a layer, {size}; KV cache for {plan.context} tokens",
        markup=False,
    )
    out.print(_table(plan, profile), "", sep="\n")
    for line in _lines(plan):
        out.print(line, markup=False, soft_wrap=True)
    if profile is not None and choice is not None and choice.best is not None:
        out.print("", Text(_chosen(source, profile, choice.best, plan)), sep="\n", soft_wrap=True)


def _table(plan: Plan, profile: DeviceProfile | None) -> Table:
    """One profile with what its memory is taken by, or a little of every kind of device."""
    profiles = device_profiles() if profile is None else {profile.name: profile}
    speeds = {name.split("-")[0]: found.bandwidth for name, found in profiles.items()}
    table = Table(box=None, pad_edge=False)
    table.add_column("keep", justify="right", no_wrap=True)
    table.add_column("target", no_wrap=True)
    columns = SHORT if profile is None else LONG
    for column in (*columns, *(f"{name}\ntok/s" for name in speeds)):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("held by" if profile is None else profile.name)
    for planned in plan.planned:
        cells = [_speed(planned, bandwidth) for bandwidth in speeds.values()]
        table.add_row(*_cells(planned, len(columns)), *cells, _verdict(planned, profile))
    return table


def _speed(planned: Planned, bandwidth: tuple[float, float]) -> str:
    low, high = (planned.ceiling(each, 1) for each in bandwidth)
    ends = [f"{end:.0f}" if end >= 10 else f"{end:.1f}" for end in (low, high)]
    return "–".join(dict.fromkeys(ends))


def _cells(planned: Planned, columns: int) -> list[str]:
    running = planned.running
    parts = [running.weights, running.cache, _engine(running)]
    sizes = [planned.nbytes, *(parts if columns == len(LONG) else []), running.total]
    name = f"{planned.spec}{' *' if planned.calibrated else ''}"
    megabytes = [f"{nbytes / 1e6:.1f}" for nbytes in (*sizes, planned.read.at(1))]
    return [str(planned.experts), name, *megabytes]


def _engine(running: Running) -> int:
    return running.engine + running.libraries + running.work


def _verdict(planned: Planned, profile: DeviceProfile | None) -> str:
    if profile is None:
        profiles = device_profiles()
        held = [p.name for p in profiles.values() if planned.running.total <= p.usable]
        smallest = {name.split("-")[0]: name for name in reversed(held)}  # later ones are larger
        shown_names = [f"{name}+" for name in reversed(smallest.values())]
        return "all" if len(held) == len(profiles) else ", ".join(shown_names) or "none"
    short = planned.running.total - profile.usable
    return "fits" if short <= 0 else f"{shown(short)} too much"


def _lines(plan: Plan) -> Iterator[str]:
    for kept in plan.kept:
        for target in kept.targets:
            if isinstance(target, Impossible):
                yield f"keep {kept.experts}, {target.spec}: cannot be made: {target.reason}"
    for kept in plan.kept:
        yield (
            f"keep {kept.experts}: one export to {len(kept.planned)} targets takes "
            f"{shown(kept.export.disk)} of disk; {_memory(kept.export)}; {_time(kept.time)}"
        )
    if any(planned.calibrated for planned in plan.planned):
        yield "* needs --calibration or --imatrix, whose name adds a few bytes to the file"
    yield LEGEND


def _memory(export: ExportNeed) -> str:
    return (
        f"about {shown(export.converting)} of memory with --no-golden, "
        f"{shown(export.with_reference)} with --no-validate, and more than "
        f"{shown(export.validated_least)} to validate too"
    )


def _time(time: ExportTime | None) -> str:
    if time is None:
        return "time not measured (--time measures this machine)"
    parts = {
        "reading": time.reading,
        "packing with --rounding nearest": time.packing,
        "calibration": time.calibrating,
        "the reference": time.reference,
    }
    named = ", ".join(f"{_clock(each)} {name}" for name, each in parts.items() if each)
    return f"about {_clock(time.total)} without validation ({named})"


def _clock(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _chosen(source: str, profile: DeviceProfile, best: Planned, plan: Plan) -> str:
    running, whole = best.running, best.experts == plan.experts
    kept = "all experts" if whole else f"{best.experts} of {plan.experts}"
    options = "" if whole else f" --keep {best.experts}"
    options += "" if whole and not best.calibrated else " --calibration TEXT"
    return (
        f"{profile.title}, of which {shown(profile.usable)} can be used "
        f"({profile.sources['usable']}): keep {kept} as {best.spec}. It needs "
        f"{shown(running.total)}: {shown(running.weights)} of weights, {shown(running.cache)} of "
        f"KV cache ({best.need.kv_cache}) at {best.need.context} tokens, "
        f"{shown(_engine(running))} for the engine and its work. Of all that were planned and fit "
        "it has the most experts, and among "
        f"those with as many the most bytes of weights. At most {_speed(best, profile.bandwidth)} "
        f"tokens a second ({profile.sources['bandwidth']}).\n\n"
        f"    emo-export export {source} -o OUT --to {best.spec}{options}"
    )


def _nothing_fits(profile: DeviceProfile, choice: Choice, plan: Plan) -> str:
    least = choice.least
    return (
        f"--fit {profile.name}: nothing fits in {shown(profile.usable)} "
        f"({profile.sources['usable']}); the least is {least.experts} of {plan.experts} experts as "
        f"{least.spec}, which needs {shown(least.running.total)}, {shown(choice.short_by)} too "
        "much: try fewer experts (--keep), a smaller type (--to) or a shorter --context"
    )
