"""What the command line imports before it works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

import emo_export.cli
from emo_export.cli.commands import NAMES
from emo_export.cli.main import cli

HEAVY = {"rich", "numpy", "json", "torch", "xllamacpp", "onnxruntime", "tokenizers"}


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import sys\nfrom emo_export.cli.main import main\n"
        f"sys.argv[1:] = {list(arguments)}\n"
        "try:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_version_imports_click_and_no_command() -> None:
    found = imported_by("--version")
    assert "click" in found
    assert HEAVY.isdisjoint(found)
    assert not [name for name in found if name.endswith("_command")]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_imports_no_other(name: str) -> None:
    found = imported_by(name, "--help")
    assert (HEAVY - {"json"}).isdisjoint(found)
    others = {f"emo_export.cli.{other}_command" for other in NAMES if other != name}
    # The options that say how an engine is to run are written once.
    assert others & found <= {"emo_export.cli.validate_command"}


def test_every_command_is_found() -> None:
    files = Path(emo_export.cli.__file__).parent.glob("*_command.py")
    assert sorted(NAMES) == list(NAMES) == sorted(f.stem.removesuffix("_command") for f in files)
    context = click.Context(cli)
    for name in NAMES:
        command = cli.get_command(context, name)
        assert command is not None and command.name == name and command.short_help != ""
    assert cli.get_command(context, "convert") is None
