"""The matrix `chosen on x, judged on y` as one HTML page with a heat map; no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from emo_export import __version__
from emo_export.base import disk
from emo_export.report import domains
from emo_export.report.domains import Chosen
from emo_export.report.html.page import check_writable, environment

__all__ = ["check_writable", "write"]


def write(path: Path, name: str, rows: Sequence[Chosen]) -> None:
    """Write the page; it appears under its name only when whole.

    Raises MissingDependencyError without jinja2, EmoExportError when it can't be written.
    """
    source = resources.files("emo_export.report.html").joinpath("domains.html.j2")
    template = environment().from_string(source.read_text("utf-8"))
    text = template.render(name=name, rows=rows, version=__version__, domains=domains)
    disk.write_whole(path, text.encode("utf-8", "replace"))
