"""Texts from elsewhere: on a terminal, on one line, in Markdown, on a page of rich."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from emo_export.base.shown import on_one_line, shown
from emo_export.cli.page import Page
from emo_export.report.markdown import code, plain

COMMANDS = [
    "\x1b[2J",
    "\r",
    "\x07",
    "\x08",
    "\x9b31m",
    "\x7f",
    "\u202e",
    "\u2066",
    "\u2028",
    "\udcff",
]
KEPT = "Grüße, مرحبا, שלום, 日本語, 👩‍👩‍👧 नमस्ते\ta\nb \u00a0"


@pytest.mark.parametrize("command", COMMANDS, ids=ascii)
def test_commands_are_spelled_out(command: str) -> None:
    told = shown(f"a{command}b")
    assert told == f"a{ascii(command)[1:-1]}b" and told.isprintable()
    told.encode("utf-8")


def test_languages_and_line_breaks_stay() -> None:
    assert shown(KEPT) == KEPT
    assert on_one_line(KEPT) == KEPT.replace("\t", r"\t").replace("\n", r"\n")


@pytest.mark.parametrize(
    ("text", "in_a_line", "as_code"),
    [
        ("emo_1b-x.y, 2: (z)", "emo_1b-x.y, 2: (z)", "`emo_1b-x.y, 2: (z)`"),
        ("</script>", r"\</script\>", "`</script>`"),
        ("a\n# b", r"a\\n\# b", r"`a\n# b`"),
        ("`x`", r"\`x\`", "`` `x` ``"),
        ("a``b`", r"a\`\`b\`", "``` a``b` ```"),
        ("[l](javascript:x)", r"\[l\](javascript:x)", "`[l](javascript:x)`"),
        ("https://x.y @me", r"https\://x.y \@me", "`https://x.y @me`"),
        ("a | b", r"a \| b", "`a | b`"),
        ("_a_ **b** &lt; \\", r"\_a\_ \*\*b\*\* \&lt; \\", "`_a_ **b** &lt; \\`"),
        ("", "", "`  `"),
    ],
)
def test_markdown_means_nothing(text: str, in_a_line: str, as_code: str) -> None:
    assert plain(text) == in_a_line and code(text) == as_code


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("text", ["[red]x[/red]", "[/]", "[link=http://x]y[/link]", ":bomb:"])
def test_rich_takes_no_text_for_markup(text: str, terminal: bool) -> None:
    out = io.StringIO()
    off = {"markup": False, "emoji": False, "highlight": False}
    page = Page(file=out, width=200, force_terminal=terminal, **off)
    table = Table("name", title=text)
    table.add_row(f"{text}\x1b[2J\u202e")
    page.print(table)
    page.print(f"{text}\x1b[2J")
    assert out.getvalue().count(text) == 3
    assert r"\x1b[2J\u202e" in out.getvalue() and "\x1b[2J" not in out.getvalue()
    assert ("\x1b[1m" in out.getvalue()) == terminal  # rich's own
