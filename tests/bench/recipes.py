"""What every GGUF recipe costs and buys on emo-nano, and why two of them are as they are.

    python -m tests.bench.recipes [--types q4_k_m,q3_k_m] [--tokens 6000] [--json]

First every recipe: its types, its size, and how far it is from the float original on held-out text.
Then, for each of --steps, what one part of the model costs one type lower and buys one type higher.
The files are those that `export` writes, with importance from emo-nano's calibration text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from emo_export.model.importance import IMATRIX
from emo_export.model.recipes import GGUF_RECIPES, Part
from tests.bench.quality import (
    CALIBRATION,
    Original,
    Quality,
    bits_per_weight,
    export,
    measure,
    megabytes,
    original,
    workspace,
)

LADDER = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
PARTS = {
    Part.EXPERT: "gate/up",
    Part.EXPERT_DOWN: "down",
    Part.ATTENTION: "attention",
    Part.SHARED_EXPERT: "shared",
    Part.HEAD: "head",
    Part.EMBED: "embed",
}
WIDTH = 100


@dataclass(frozen=True)
class Made:
    """One file: its size and how near it is to the original."""

    megabytes: float
    bits: float
    quality: Quality


@dataclass(frozen=True)
class Step:
    """A recipe with another type for one part; `up` when it is the next better one."""

    part: str
    up: bool
    kind: str
    made: Made


@dataclass
class Found:
    """All that was measured."""

    tokens: int
    recipes: dict[str, Made] = field(default_factory=dict)
    steps: dict[str, list[Step]] = field(default_factory=dict)


@click.command()
@click.option("--types", default=",".join(GGUF_RECIPES), help="Recipes.  [default: all]")
@click.option("--steps", default="q4_k_m,q3_k_m", show_default=True, help="Recipes to take apart.")
@click.option("--tokens", default=6000, show_default=True, help="Of held-out text.")
@click.option("--calibration-tokens", default=16384, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(types: str, steps: str, tokens: int, calibration_tokens: int, as_json: bool) -> None:
    """Measure recipes on emo-nano."""
    started = time.monotonic()
    taken_apart = [name for name in steps.split(",") if name]
    names = list(dict.fromkeys([*types.split(","), *taken_apart]))
    with workspace("recipes") as folder:
        _say(f"{len(names)} recipes in one pass over emo-nano")
        specs = [word for name in names for word in ("--to", f"gguf:{name}")]
        collect = ("--calibration", CALIBRATION, "--calibration-tokens", calibration_tokens)
        export(folder / "all", *specs, *collect)
        _say(f"the float original ({time.monotonic() - started:.0f} s so far)")
        reference = original(tokens)
        found = Found(reference.tokens)
        for name in names:
            found.recipes[name] = _judge(_file(folder / "all", name), reference)
            _say(f"{name}: KL {found.recipes[name].quality.kl:.5f}")
        for name in taken_apart:
            found.steps[name] = list(_take_apart(name, folder, reference))
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _show(found)
    _say(f"{time.monotonic() - started:.0f} s")


def _file(folder: Path, name: str) -> Path:
    return folder / f"model-{name.upper()}.gguf"


def _judge(path: Path, reference: Original) -> Made:
    return Made(megabytes(path), bits_per_weight(path), measure(path, reference))


def _take_apart(name: str, folder: Path, reference: Original) -> Iterator[Step]:
    """Export and judge a recipe with each part one type lower, and one higher."""
    for part in PARTS:
        for up in (False, True):
            kind = _neighbour(GGUF_RECIPES[name][part], up)
            if kind is None:
                continue
            change = f"{part.value}={kind}"
            out = folder / f"{name}-{change}"
            importance = ("--imatrix", folder / "all" / IMATRIX)
            export(out, "--to", f"gguf:{name}", "--tensor-type", change, *importance)
            made = _judge(_file(out, name), reference)
            _file(out, name).unlink()
            _say(f"{name} with {change}: KL {made.quality.kl:.5f}")
            yield Step(part.value, up, kind, made)


def _neighbour(kind: str, up: bool) -> str | None:
    """The next type of the ladder, or None where there is none."""
    if kind not in LADDER:
        return None
    place = LADDER.index(kind) + (1 if up else -1)
    return LADDER[place] if 0 <= place < len(LADDER) else None


def _show(found: Found) -> None:
    out = Console(width=WIDTH, highlight=False)
    out.print(_recipe_table(found))
    for name, steps in found.steps.items():
        out.print(_step_table(name, found.recipes[name], steps))
    out.print(
        "MB: the file. bits: of a weight, over all tensors. KL: mean over positions, in nats, of\n"
        "llama.cpp running the file as shipped from the float original. ppl: ratio to the\n"
        "original's. mnat/MB: thousandths of a nat of mean KL for each MB; a recipe is in balance\n"
        "when no part loses less by one type lower than another gains by one higher.",
        soft_wrap=True,
    )


def _recipe_table(found: Found) -> Table:
    title = f"GGUF recipes on emo-nano, {found.tokens} held-out tokens"
    table = _table(title, ["type", *PARTS.values()], ["MB", "bits", "KL", "top-1", "ppl"])
    for name, made in found.recipes.items():
        quality = made.quality
        table.add_row(
            name,
            *_kinds(GGUF_RECIPES[name]),
            f"{made.megabytes:.2f}",
            f"{made.bits:.2f}",
            f"{quality.kl:.5f}",
            f"{quality.top1:.1%}",
            f"{quality.perplexity_ratio:.4f}",
        )
    return table


def _kinds(recipe: Mapping[Part, str]) -> Iterator[str]:
    return (recipe[part] for part in PARTS)


def _step_table(name: str, base: Made, steps: list[Step]) -> Table:
    title = f"{name} ({base.megabytes:.2f} MB, KL {base.quality.kl:.5f}) with one part changed"
    columns = ("MB", "KL", "mnat/MB")
    table = _table(title, ["part", "now"], [])
    for heading in ("lower", "higher"):
        table.add_column(heading)
        for column in columns:
            table.add_column(column, justify="right")
    for part, shown in PARTS.items():
        cells: list[str] = []
        for up in (False, True):
            match = [s for s in steps if s.part == part.value and s.up == up]
            cells += _change(base, match[0]) if match else ["", "", "", ""]
        table.add_row(shown, GGUF_RECIPES[name][part], *cells)
    return table


def _change(base: Made, step: Step) -> list[str]:
    size = step.made.megabytes - base.megabytes
    loss = step.made.quality.kl - base.quality.kl
    rate = "" if size == 0 else f"{-1000 * loss / size:.2f}"
    return [step.kind, f"{size:+.2f}", f"{loss / base.quality.kl:+.1%}", rate]


def _table(title: str, left: list[str], right: list[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _say(text: Any) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
