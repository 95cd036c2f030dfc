"""What types found for a budget cost on emo-nano, beside the fixed recipes that read as much.

    python -m tests.bench.budget [--tokens 6000] [--family onnx|gguf] [--gptq] [--json]

What each type costs each part and layer is measured once a family on calibration text, as `export`
does it. Then each budget, of bytes that a decoded token reads, is spent, exported with `--recipe`
and judged on held-out text beside the fixed recipes. The budgets of ONNX are parts of what int4
reads, those of GGUF what fixed recipes read, so that their KLs are at equal bytes. `sum` and
`measured` are of the calibration text: the KLs of single sites added, and that of all at once. With
`--gptq` all files are rounded by it; what types cost is measured with each format's own rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from emo_export.budget.budget import Budget, Found, Limit
from emo_export.exporting.steps import QUIET
from emo_export.families import FAMILIES
from emo_export.families.options import TargetOptions
from emo_export.files.manifest import Manifest
from emo_export.files.recipe_file import RECIPE, write_recipes
from emo_export.jobs.budget import Layout, Measure, choose, judged_and_told, table_of
from emo_export.measuring import CalibrationText, read_sample
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.importance import IMATRIX, ImportanceMatrix
from emo_export.model.product import Product
from emo_export.report.recipes import shown_types
from emo_export.runtimes.families import family_at
from emo_export.spec import GGUF, ONNX, Spec
from tests.bench.quality import (
    CALIBRATION,
    Original,
    export,
    measure,
    measure_exact,
    original,
    workspace,
)
from tests.kit.paths import NANO

FIXED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    ONNX: {
        "int8": ("onnx:int8",),
        "int4": ("onnx:int4",),
        "int4, head int4b32": ("onnx:int4", "--tensor-type", "head=int4b32"),
        "int4, attention int4b32": ("onnx:int4", "--tensor-type", "attention=int4b32"),
        "int4 everywhere": (
            "onnx:int4",
            *(
                word
                for part in ("attention", "shared_expert", "head", "embed")
                for word in ("--tensor-type", f"{part}=int4")
            ),
        ),
    },
    GGUF: {
        name: (f"gguf:{name}",)
        for name in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
    },
}
PARTS_OF_INT4 = (1.2, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
SAME_AS = ("q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")


@dataclass(frozen=True)
class Row:
    """One export. `exact`: KL of the weights alone; `sum` and `measured` are None of a recipe."""

    family: str
    name: str
    megabytes_per_token: float
    exact: float
    shipped: float
    sum: float | None = None
    measured: float | None = None
    types: Mapping[str, str] | None = None


@click.command()
@click.option("--tokens", default=6000, show_default=True, help="Of held-out text.")
@click.option("--family", "families", multiple=True, default=(ONNX, GGUF))
@click.option("--gptq", is_flag=True, help="Round the files so.")
@click.option("--json", "as_json", is_flag=True)
def main(tokens: int, families: tuple[str, ...], gptq: bool, as_json: bool) -> None:
    """Spend budgets on emo-nano."""
    with workspace("budget") as folder:
        reference = original(tokens)
        rows = [row for name in families for row in _family(name, folder, reference, gptq)]
    if as_json:
        click.echo(json.dumps({"tokens": reference.tokens, "rows": [asdict(row) for row in rows]}))
    else:
        _show(rows, reference.tokens)


def _family(family: str, folder: Path, reference: Original, gptq: bool) -> Iterator[Row]:
    read = {}
    measured = ("--calibration", CALIBRATION, "--rounding", "weighted")
    export(folder / "importance", "--to", f"{family}:f32", *measured)
    told: tuple[object, ...] = ("--imatrix", folder / "importance" / IMATRIX)
    if gptq:
        told = ("--calibration", CALIBRATION, "--rounding", "gptq")
    for name, (spec, *options) in FIXED[family].items():
        path = _exported(folder / f"{family}-{name}", spec, *options, *told)
        read[name] = family_at(path).per_token(path).weights
        yield _row(family, name, path, reference)
    if family == ONNX:
        budgets = {f"auto, {part:.0%} of int4": part * read["int4"] for part in PARTS_OF_INT4}
    else:
        budgets = {f"auto, as {name}": read[name] for name in SAME_AS}
    spec = Spec(family, "auto")
    find = _finder(spec)
    for name, nbytes in budgets.items():
        found = find(nbytes)
        place = folder / f"{family}-{name}"
        recipe = folder / f"{place.name}-{RECIPE}"
        write_recipes(folder, {spec: found.as_dict()})
        (folder / RECIPE).rename(recipe)
        path = _exported(place, str(spec), "--recipe", recipe, *told)
        yield _row(family, name, path, reference, found)


def _finder(spec: Spec) -> Callable[[float], Found]:
    """Measures on calibration text once; gives the types for so many bytes read by a token."""
    source = Checkpoint.open(NANO)
    product = Product.whole(source)
    sample = read_sample(CalibrationText((CALIBRATION,), 32768), product)
    judged, told = judged_and_told(sample.sequences)
    measuring = Measure(source, judged, told, sample.source, QUIET, "cpu")
    _say(f"{spec}: what each type costs each part and layer")
    table = measuring.measured(
        spec, table_of(source.config, FAMILIES[spec.family].candidates(spec))
    )
    importance = ImportanceMatrix(sample.source, sample.tokens)

    def find(nbytes: float) -> Found:
        layout = Layout(product, spec, Budget(Limit.READ, nbytes), TargetOptions(), importance)
        return choose(layout, layout.rest(table), table, measuring)

    return find


def _exported(out: Path, spec: str, *options: object) -> Path:
    export(out, "--to", spec, *options)
    return out / Manifest.load(out).targets[spec].path


def _row(
    family: str, name: str, path: Path, reference: Original, found: Found | None = None
) -> Row:
    exact, shipped = measure_exact(path, reference).kl, measure(path, reference).kl
    read = family_at(path).per_token(path).weights / 1e6
    _say(f"{family} {name}: {read:.2f} MB a token, KL {exact:.5f}, shipped {shipped:.5f}")
    if found is None:
        return Row(family, name, read, exact, shipped)
    types = {part.value: shown_types(each) for part, each in found.recipe.items()}
    return Row(family, name, read, exact, shipped, found.kl_sum, found.kl, types)


def _show(rows: list[Row], tokens: int) -> None:
    title = f"Budgets and recipes on emo-nano, {tokens} held-out tokens"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("export")
    for column in ("MB/token", "KL weights", "KL shipped", "sum", "measured"):
        table.add_column(column, justify="right")
    for row in rows:
        told = ["" if each is None else f"{each:.5f}" for each in (row.sum, row.measured)]
        figures = f"{row.megabytes_per_token:.2f}", f"{row.exact:.5f}", f"{row.shipped:.5f}"
        table.add_row(f"{row.family} {row.name}", *figures, *told)
    out = Console(width=100, highlight=False)
    out.print(table)
    for row in rows:
        if row.types:
            parts = "; ".join(f"{part} {types}" for part, types in row.types.items())
            out.print(f"{row.family} {row.name}: {parts}", soft_wrap=True)


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
