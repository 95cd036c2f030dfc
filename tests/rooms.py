"""Which folder imports which, in which order they stand.

    python -m tests.rooms

Prints every room of the package, lowest first, with the rooms that it imports, and exits 1 where an
import goes up or sideways. Imports inside functions count; those for type checking alone do not,
since nothing runs through them.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.kit.paths import ROOT

PLACES = {"emo_export": "emo_export", "converters": "emo_export.converters"}
PLACES["runtimes"] = "emo_export.runtimes"

ORDER = (
    {"errors", "interfaces"},
    {"spec"},
    {"base"},
    {"model", "text"},
    {"files"},
    {"parity"},
    {"reference"},
    {"converters", "runtimes"},
    {"line"},
    {"pipeline", "rounding", "selection", "budget"},
    {"report", "inspect", "bench", "resuming"},
    {"card_running"},
    {"card"},
    {"exporting"},
    {"families", "measuring"},
    {"planning", "judging"},
    {"validating", "pruning"},
    {"jobs"},
    {"testing", "sweep", "service"},
    {"pytest_plugin"},
    {"cli"},
    {"__main__"},
)
"""A room may import those of earlier lines, and itself; rooms of one line never each other."""

LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}

WITHIN = {
    "converters": ({"placed_file", "row_tasks", "split"}, {"gguf", "onnx", "safetensors"}),
    "runtimes": (
        {"sampling", "remembering"},
        {"checks", "generate", "history", "serving", "template", "timing"},
        {"llama", "ort"},
        {"families"},
        {"opening", "package"},
        {"loading", "prompt_cache"},
        {"answering"},
        {"devices"},
    ),
}
"""The same inside the rooms that hold several subjects."""


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


def pairs() -> Iterator[tuple[str, str]]:
    """(module, module that it imports) of this package."""
    known = modules()
    for module, path in known.items():
        for target, name in imported(ast.parse(path.read_text("utf-8"))):
            if target.split(".")[0] == "emo_export":
                whole = f"{target}.{name}"
                yield module, whole if whole in known else target


def edges() -> dict[tuple[str, str], list[str]]:
    """(room, room that it imports) -> the modules that do."""
    found: dict[tuple[str, str], list[str]] = {}
    for module, target in pairs():
        rooms = room_of(module), room_of(target)
        if rooms[1] and rooms[0] != rooms[1]:
            found.setdefault(rooms, []).append(f"{module} -> {target}")
    return found


def goes_down(module: str, target: str) -> bool:
    """Whether a module may import another. KeyError for one that has no place in the order."""
    above, below = module.split(".")[1:], target.split(".")[1:]
    if not above or not below:  # the package itself
        return True
    order: Sequence[set[str]] = ORDER
    if above[0] == below[0]:
        room, *above = above
        below = below[1:]
        if room not in WITHIN or above[:1] == below[:1]:
            return True
        order = WITHIN[room]
    level = {room: level for level, rooms in enumerate(order) for room in rooms}
    return level[below[0]] < level[above[0]]


def upward() -> list[str]:
    """Imports that do not go down."""
    return [f"{module} -> {target}" for module, target in pairs() if not goes_down(module, target)]


def main() -> None:
    """Print the rooms and what each imports."""
    seen = edges()
    for rooms in ORDER:
        for room in sorted(rooms):
            below = sorted({other for first, other in seen if first == room})
            if below or any(other == room for _, other in seen):
                print(f"{room:14} imports {', '.join(below) or 'nothing'}")
    wrong = upward()
    print("\n".join(["", *wrong]) if wrong else "\nevery import goes down")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
