"""`compare` as an HTML page, with the table, or as an SVG of the picture alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emo_export import __version__
from emo_export.base import disk
from emo_export.errors import EmoExportError
from emo_export.report.compare import HEADINGS, KL_UNIT, LEGEND, Compared, cells, notes
from emo_export.report.html.charts import STYLES
from emo_export.report.html.compare_chart import PANEL_WIDTH, panels
from emo_export.report.html.page import check_writable, environment

SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.5-3.5h7v7h-7z",
    "M0-5l4.5 8h-9z",
    "M0-5l5 5l-5 5l-5-5z",
    "M0 5l4.5-8h-9z",
    "M-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
)
"""A package's shape, so that colour is not all that tells it; as many as there are styles."""

KINDS = {".html": "compare.html.j2", ".svg": "compare.svg.j2"}


def check_picture(path: Path) -> None:
    """Raise EmoExportError, before the work, when a picture can't be written to a path.

    MissingDependencyError without jinja2.
    """
    if path.suffix not in KINDS:
        raise EmoExportError(f"{path}: name it .html (with the table) or .svg (the picture alone)")
    check_writable(path)


def write_comparison(path: Path, rows: Sequence[Compared], positions: float) -> None:
    """Write page or picture, as the path's ending says; it gets its name only when whole.

    `positions`: of the KV cache that a step reads. Raises EmoExportError when it can't be written.
    """
    text = comparison(path.suffix, rows, positions)
    disk.write_whole(path, text.encode("utf-8", "replace"))


def comparison(suffix: str, rows: Sequence[Compared], positions: float) -> str:
    """The page (`.html`) or the picture (`.svg`) as text."""
    packages = list(dict.fromkeys(row.package for row in rows))
    drawn = panels(rows, positions)
    placed, top = [], 16.0 * len(packages) + 12
    for panel in drawn:
        placed.append((panel, top))
        top += panel.height
    return (
        environment()
        .get_template(KINDS[suffix])
        .render(
            version=__version__,
            panels=drawn,
            placed=placed,
            width=PANEL_WIDTH,
            height=top,
            packages=packages,
            shapes=SHAPES,
            styles=STYLES,
            kl_unit=KL_UNIT,
            headings=HEADINGS,
            rows=[(row, cells(row)) for row in rows],
            legend=LEGEND,
            notes=notes(rows),
        )
    )
