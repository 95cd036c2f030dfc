"""docs/measurements.md, made from the figures recorded in docs/measurements/*.json.

    python -m tests.docs.measurements

A file has a title, the command that printed the figures, when (a date, or how they got here), what
they are, and a table. To record new ones, run the command and put its table into the file.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.kit.paths import ROOT

PAGE = ROOT / "docs" / "measurements.md"
FOLDER = ROOT / "docs" / "measurements"
KEYS = {"title", "command", "printed", "says", "columns", "rows"}
HEAD = """# Measurements

Every figure that the documents quote, with the command that printed it. Machines are shared and
noisy: ratios and bytes mean much, seconds little. `python -m tests.docs.measurements` makes this
page from `docs/measurements/`.
"""


def section(path: Path) -> str:
    """One recorded table. Raises ValueError for a file of another form."""
    found = json.loads(path.read_text("utf-8"))
    if set(found) != KEYS:
        raise ValueError(f"{path}: has the keys {sorted(found)}, expected {sorted(KEYS)}")
    widths = {len(found["columns"]), *(len(row) for row in found["rows"])}
    if len(widths) != 1:
        raise ValueError(f"{path}: rows of {sorted(widths)} cells")
    lines = ["| " + " | ".join(row) + " |" for row in (found["columns"], *found["rows"])]
    lines.insert(1, "|---" * len(found["columns"]) + "|")
    table = "\n".join(lines)
    return (
        f"## {found['title']}\n\n{found['says']} Printed by `{found['command']}` "
        f"({found['printed']}).\n\n{table}\n"
    )


def page() -> str:
    """The whole document."""
    return "\n".join([HEAD, *(section(path) for path in sorted(FOLDER.glob("*.json")))])


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
