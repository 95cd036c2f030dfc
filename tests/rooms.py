"""Which folder imports which, in which order they stand.

    python -m tests.rooms

Prints every room of the package, lowest first, with the rooms that it imports, and exits 1 where an
import goes up or sideways. Imports inside functions count; those for type checking alone do not,
since nothing runs through them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kit.paths import ROOT

PLACES = {"emo_export": "emo_export", "converters": "emo_export.converters"}
PLACES["runtimes"] = "emo_export.runtimes"

ORDER = (
    {"errors", "interfaces"},
    {"spec"},
    {"base"},
    {"model"},
    {"files"},
    {"parity"},
    {"reference"},
    {"converters", "runtimes"},
    {"pipeline"},
    {"report", "inspect", "bench"},
    {"card_running"},
    {"card"},
    {"exporting"},
    {"families", "measuring"},
    {"validating"},
    {"job"},
    {"testing"},
    {"pytest_plugin"},
    {"cli"},
    {"__main__"},
)
"""A room may import those of earlier lines, and itself; rooms of one line never each other."""

LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package and its file."""
    found = {}
    for folder, package in PLACES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            if folder == "emo_export" and inside.parts[0] in ("converters", "runtimes"):
                continue  # the links
            parts = inside.with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            found[name] = path
    return found


def room_of(module: str) -> str:
    """The first folder or file below emo_export."""
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of each import that runs; the name may be a module of its own."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        yield from imported(node)


def edges() -> dict[tuple[str, str], list[str]]:
    """(room, room that it imports) -> the modules that do."""
    known, found = modules(), {}
    for module, path in known.items():
        for target, name in imported(ast.parse(path.read_text("utf-8"))):
            if target.split(".")[0] != "emo_export":
                continue
            whole = f"{target}.{name}"
            pair = room_of(module), room_of(whole if whole in known else target)
            if pair[1] and pair[0] != pair[1]:
                found.setdefault(pair, []).append(f"{module} -> {target}")
    return found


def upward() -> list[str]:
    """Imports that do not go down."""
    return [
        text
        for (room, other), texts in edges().items()
        for text in texts
        if room and LEVEL[other] >= LEVEL[room]
    ]


def main() -> None:
    """Print the rooms and what each imports."""
    pairs = edges()
    for rooms in ORDER:
        for room in sorted(rooms):
            below = sorted({other for first, other in pairs if first == room})
            if below or any(other == room for _, other in pairs):
                print(f"{room:14} imports {', '.join(below) or 'nothing'}")
    wrong = upward()
    print("\n".join(["", *wrong]) if wrong else "\nevery import goes down")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
