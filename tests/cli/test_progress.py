"""-q, -v and the command that comes next: what a long command tells, and where."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from emo_export.base.counted import counted
from emo_export.cli import progress
from emo_export.cli.command_line import command_line
from tests.cli.test_completion import screen_with, terminal
from tests.kit.packages import package
from tests.kit.paths import NANO


@click.command()
@click.option("--keep")
@progress.with_progress
def work(keep: str | None) -> None:
    """Takes a while."""
    progress.progress("reading")
    click.echo(command_line())
    progress.suggest(["run", "my out", "hello"])


def told(*options: str) -> Result:
    return CliRunner().invoke(work, options)


def test_quiet_and_verbose() -> None:
    assert told().stderr == "reading\n"
    assert told("-q").stderr == told("--quiet").stderr == ""
    assert told("-v").stderr.endswith("0.0 s  reading\n")
    assert told("-q", "-v").exit_code == 2


def test_one_of_several_is_counted() -> None:
    assert counted("b", ["a", "b", "c"]) == "b (2 of 3)" and counted("b", {"b": 1}) == "b"
    with pytest.raises(ValueError, match="x"):
        counted("x", ["a", "b"])


def test_a_manifest_does_not_tell_of_them() -> None:
    assert told("-v", "--keep", "8").stdout == "emo-export work --keep 8\n"


def test_the_next_command_is_for_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    progress.suggest(["run", "my out"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    progress.suggest(["run", "my out"], ["bench", "my out"])
    assert (
        capsys.readouterr().err == "next: emo-export run 'my out', or emo-export bench 'my out'\n"
    )


@pytest.mark.slow
def test_a_verdict_on_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(package(NANO, ("gguf:q8_0", "onnx:int4")))
    asked = "emo-export validate out --target onnx:int4 --junit j.xml"
    with terminal("bash", tmp_path) as tmux:
        ends = iter(("first", "second"))  # what the one before left may still be on the screen

        def run(line: str) -> str:
            end = next(ends)
            command = f"clear; {line}; echo en''ded {end}\n"
            subprocess.run([*tmux, "send-keys", "-l", command], check=True)
            for _ in range(4):
                if f"\nended {end}" in screen_with(tmux, f"^ended {end}"):
                    break
            time.sleep(0.2)
            shown = [*tmux, "capture-pane", "-p", "-e"]
            return subprocess.run(shown, capture_output=True, text=True, check=True).stdout

        found = run(asked)
        assert "\x1b[32mpass" in found and "wrote j.xml" in found, found
        assert "next: emo-export run out 'Once upon a time', or emo-export bench out" in found
        found = run(f"NO_COLOR=1 {asked} -q")
        assert "pass" in found and "\x1b[32m" not in found, found
        assert "next:" not in found and "wrote" not in found and "validating" not in found
