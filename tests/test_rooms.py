"""Imports between folders go one way."""

from __future__ import annotations

import ast
import tomllib

from tests.kit.paths import ROOT
from tests.rooms import LEVEL, edges, goes_down, imported, modules, room_of, upward


def test_imports_go_down() -> None:
    assert len(edges()) > 40
    assert upward() == []


def test_every_room_has_its_place() -> None:
    assert {room_of(name) for name in modules()} - {""} == set(LEVEL)


def test_every_room_is_in_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    folders = {name for name, file in modules().items() if file.name == "__init__.py"}
    assert folders == set(listed["packages"])


def test_an_import_in_a_function_counts() -> None:
    code = "def f():\n    from emo_export.cli import main\n"
    code += "if TYPE_CHECKING:\n    import emo_export.model\n"
    assert list(imported(ast.parse(code))) == [("emo_export.cli", "main")]


def test_subjects_of_one_room_stay_apart() -> None:
    package = "emo_export.converters"
    assert not goes_down(f"{package}.onnx.writer", f"{package}.gguf.writer")
    assert not goes_down(f"{package}.split", f"{package}.gguf.writer")
    assert goes_down(f"{package}.gguf.writer", f"{package}.split")
    assert goes_down(f"{package}.gguf.writer", f"{package}.gguf.layout")
