"""Expert usage as one HTML page: a heat map for each kind of text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emo_export import __version__
from emo_export.base import disk
from emo_export.report.html.page import check_writable, environment
from emo_export.report.html.view import Usage, expert_usage

__all__ = ["Usage", "check_writable", "expert_usage", "usage_page", "write_usage_page"]


def write_usage_page(path: Path, name: str, usage: Sequence[Usage]) -> None:
    """Write the page of a checkpoint or package; it appears under its name only when whole.

    Raises MissingDependencyError without jinja2, EmoExportError when it can't be written.
    """
    disk.write_whole(path, usage_page(name, usage).encode("utf-8", "replace"))


def usage_page(name: str, usage: Sequence[Usage]) -> str:
    """The page as text."""
    template = environment().get_template("usage.html.j2")
    return template.render(name=name, usage=usage, version=__version__)
