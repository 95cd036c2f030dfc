"""An Inspection as something that rich can print."""

from __future__ import annotations

import re

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from emo_export.inspect.checkpoint import Inspection

COLOURS = {"wrong": "bold red", "risk": "yellow", "note": "dim"}


def render(inspection: Inspection) -> RenderableType:
    """A title, a table of facts, the judgement, its findings, then all other warnings."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    before = ""
    for section, name, value in inspection.rows:
        shown = "" if section == before else section
        before = section
        table.add_row(_safe(_words(shown)), _safe(name), _safe(value))
    found = inspection.findings
    lines: list[RenderableType] = []
    if inspection.judgement:
        lines.append(Text("judgement: ", "bold") + _safe(inspection.judgement))
    for finding in found:
        lines.append(Text(f"{finding.level}: ", COLOURS[finding.level]) + _safe(finding.head))
        lines.append(Padding(_safe(finding.rest), (0, 0, 0, 2), expand=False))
    told = {finding.text for finding in found}
    others = [text for text in inspection.warnings if text not in told]
    lines += [Text("warning: ", "yellow") + _safe(text) for text in others]
    return Group(_safe(inspection.title), table, *lines)


def _words(name: str) -> str:
    """A key in words; a target (gguf:q4_k_m) or a type (Q4_K) stays as it is."""
    if ":" in name or not name.islower():
        return name
    return re.sub(r"(?<!\d)_|_(?!\d)", " ", name)


def _safe(text: str) -> Text:
    # Names come out of files: neither rich's markup nor a terminal's control codes may pass.
    return Text("".join(char if char.isprintable() else "\ufffd" for char in text))
