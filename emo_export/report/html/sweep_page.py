"""The page of a sweep: its picture, and the table of its variants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emo_export import __version__
from emo_export.base import disk
from emo_export.parity.outcome import Outcome
from emo_export.report import sweep
from emo_export.report.html.page import environment
from emo_export.report.html.sweep_chart import panels


def write_sweep_page(path: Path, outcomes: Sequence[Outcome], name: str) -> None:
    """Write the page of what came of the spec `name`; it appears under its name only when whole.

    Raises EmoExportError when it can't be written.
    """
    text = sweep_page(outcomes, name)
    disk.write_whole(path, text.encode("utf-8", "replace"))


def sweep_page(outcomes: Sequence[Outcome], name: str) -> str:
    """The page as text."""
    table = sweep.sweep_table(outcomes)
    columns = list(table.columns)
    return (
        environment()
        .get_template("sweep.html.j2")
        .render(
            name=name,
            version=__version__,
            panels=panels(outcomes),
            headings=[str(column.header) for column in columns],
            rows=list(zip(*(list(map(str, column.cells)) for column in columns), strict=True)),
            legend=sweep.LEGEND,
        )
    )
