"""The light runtime as one zip file, which runs on a device where nothing of ours is installed.

`PYTHONPATH=runtime.zip python -m emo_export.runtimes.devices.far.on_device …` needs numpy and the
engine there.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import emo_export
from emo_export.errors import EmoExportError

PACKAGE = emo_export.__name__
FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can tell


def runtime_zip(modules: Iterable[str]) -> bytes:
    """A zip of these modules of ours, of all of ours that they import, and of our data files.

    The same sources give the same bytes: nothing is compressed (that differs between versions of
    zlib), names are sorted, and dates are not kept. Raises EmoExportError for an unknown module.
    """
    parts = {}
    for name, path in _closure(modules):
        place = _name_in_zip(name, path)
        parts[place] = path.read_bytes()
        beside = path.parent.glob("*.json")  # the data of a module's folder
        parts |= {f"{place.rpartition('/')[0]}/{data.name}": data.read_bytes() for data in beside}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(parts):
            entry = zipfile.ZipInfo(name, FIRST_DATE)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, parts[name])
    return made.getvalue()


def _name_in_zip(module: str, path: Path) -> str:
    """Where a module stands in the zip. In a checkout its file may stand elsewhere."""
    folder = module.replace(".", "/")
    return f"{folder}/__init__.py" if path.name == "__init__.py" else f"{folder}.py"


def _closure(modules: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Each module that any of these needs, their packages included, with its file."""
    waiting, seen = list(modules), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = _file_of(name)
        if path is None:
            raise EmoExportError(f"{name}: there is no such module here")
        yield name, path
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        if name == PACKAGE:  # its functions are the whole tool's, and import the rest of it
            continue
        tree = ast.parse(path.read_text("utf-8"))
        waiting += [found for found in _imports(tree) if _file_of(found) is not None]


def _file_of(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a name in a module that is no package
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def _imports(tree: ast.AST) -> Iterator[str]:
    """The names of ours that a module imports when it runs, inside functions too.

    `from emo_export.base import threads` gives two: a name in it may be a module of its own.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and _is_ours(node.module):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node)


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")
