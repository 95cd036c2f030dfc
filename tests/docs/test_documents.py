"""The documents say what holds: links, command lines, and what is generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import boards
from tests.docs import cli, measurements
from tests.docs.check import documents, problems, wrong_command


@pytest.mark.parametrize("path", documents(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_link_and_command_line_holds(path: Path) -> None:
    assert list(problems(path)) == []


@pytest.mark.parametrize(
    ("path", "page"), [(cli.PAGE, cli.page), (measurements.PAGE, measurements.page)]
)
def test_what_is_generated_is_as_the_code_says(path: Path, page: Callable[[], str]) -> None:
    assert path.read_text("utf-8") == page(), f"stale: run python -m {page.__module__}"


@pytest.mark.slow
def test_the_readme_s_table_of_boards_is_what_plan_says() -> None:
    assert "\n".join(boards.lines()) in documents()[0].read_text("utf-8")


def test_the_readme_is_short() -> None:
    assert len(documents()[0].read_text("utf-8").splitlines()) <= 120


def test_the_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.md"
    bad.write_text(
        "# One\n[a](no.md) [b](#two) [c](#one)\n`python -m tests.nothing`\n"
        "```sh\nemo-export export X -o y --to gguf:q4_0 --no-such\nemo-export frobnicate\n```\n"
    )
    assert len(list(problems(bad))) == 5
    assert wrong_command("emo-export export X -o y --to gguf:q4_0") == ""
    assert "surplus" in wrong_command("emo-export doctor more")


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("emo-export doctor --no-such", "--no-such"),
        ("emo-export validate --no-such mine", "--no-such"),
        ("emo-export --no-such doctor", "--no-such"),
        ("emo-export run mine -p", "-p"),
        ("emo-export run -p hi", "PATH"),
        ("emo-export export X -o y", "--to"),
        ("emo-export export X -o y --to gguf:q4_0 --block-size 7", "7"),
        ("emo-export device cleen", "cleen"),
    ],
)
def test_a_wrong_command_line_is_told_with_what_is_wrong(line: str, word: str) -> None:
    assert word in wrong_command(line)


@pytest.mark.parametrize("line", ["emo-export", "emo-export --version", "emo-export run --help"])
def test_a_line_that_only_asks_is_right(line: str) -> None:
    assert wrong_command(line) == ""
