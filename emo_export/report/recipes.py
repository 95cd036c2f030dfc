"""Types that were chosen for a budget, as a table and in words."""

from __future__ import annotations

from rich import box
from rich.table import Table

from emo_export.base.ram_size import shown
from emo_export.budget.budget import Budget, Found, Limit
from emo_export.model.recipes import LayerTypes


def shown_types(types: LayerTypes) -> str:
    """`q6_k`, or `q6_k in 0-3, q4_k in 4` where layers differ."""
    if isinstance(types, str):
        return types
    spans: list[tuple[str, int, int]] = []
    for layer, name in enumerate(types):
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], layer)
        else:
            spans.append((name, layer, layer))
    return ", ".join(
        f"{name} in {first}" + (f"-{last}" if last > first else "") for name, first, last in spans
    )


def types_table(found: Found) -> Table:
    """The type of each site, its bytes and the KL that it costs alone."""
    table = Table(title=str(found.spec), title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("part", "layers", "type"):
        table.add_column(name)
    for name in ("MB", "MB/token", "KL alone"):
        table.add_column(name, justify="right")
    for one in found.chosen:
        first, last = one.site.first, one.site.last
        table.add_row(
            ", ".join(part.value.replace("_", " ") for part in one.site.parts),
            "" if last < 0 else str(first) + (f"-{last}" if last > first else ""),
            one.type,
            f"{one.stored / 1e6:.2f}",
            f"{one.read / 1e6:.2f}",
            f"{one.kl:.5f}",
        )
    return table


def types_sentence(found: Found) -> str:
    """What was spent of what, and what it costs."""
    return (
        f"{found.spec}: {_spent(found.budget, found.used)}; KL from the float model "
        f"{found.kl:.5f} with all of them on {found.tokens} tokens of {found.text} "
        f"(the sum of each alone: {found.kl_sum:.5f})"
    )


def _spent(budget: Budget, used: float) -> str:
    if budget.limit == Limit.BITS:
        return f"{used:.2f} bits a weight of {budget.amount:g}"
    spent = {
        Limit.SIZE: "the file has",
        Limit.READ: "a token reads",
        Limit.FIT: "running it takes",
    }
    return f"{spent[budget.limit]} {shown(used)} of {shown(budget.amount)}"
