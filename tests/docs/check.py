"""Whether every command line and link in the documents holds.

    python -m tests.docs.check [--run]

Each `emo-export` line in a fenced block must be one that the command line takes, each `python -m` a
module that is there, each relative link and its anchor something that exists. With `--run` the
README's lines of daily use are run in order, on emo-nano, in a temporary folder.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from emo_export.cli.main import cli
from tests.kit.paths import NANO, ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MODULE = re.compile(r"python3? -m ([\w.]+)")
SETTINGS = cli.context_settings  # click keeps the help option of the first context
OURS = ("emo_export", "tests")


def documents(root: Path = ROOT) -> list[Path]:
    """README, CONTRIBUTING, docs/ and what stands in examples/ itself."""
    folders = [path for name in ("docs", "examples") for path in sorted((root / name).glob("*.md"))]
    return [root / "README.md", root / "CONTRIBUTING.md", *folders]


def command_lines(text: str) -> Iterator[str]:
    """The lines of fenced sh blocks, joined where a backslash ends them, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                yield re.sub(r"\s#\s.*", "", line).strip()


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def wrong_command(line: str) -> str:
    """What is wrong with a command line of ours; nothing for other programs."""
    words = shlex.split(line)
    places = [i for i, word in enumerate(words) if Path(word).name == "emo-export"]
    if not places:
        return ""
    try:
        return _refused(words[places[0] + 1 :])
    except click.UsageError as error:
        return error.format_message()


def _refused(words: list[str]) -> str:
    """What click's own parser says of the words, raised or returned; files need not exist."""
    command: click.Command = cli
    # Not resilient: click's parser would swallow what is wrong.
    context = click.Context(cli, info_name="emo-export", **SETTINGS)
    while isinstance(command, click.Group):
        _, words, _ = command.make_parser(context).parse_args(list(words))
        if not words:
            return ""
        name, found, words = command.resolve_command(context, words)
        command = found or command
        context = click.Context(command, context, name)
    values, left, _ = command.make_parser(context).parse_args(list(words))
    if left:
        return f"surplus words {left}"
    if {"-h", "--help"} & set(words):
        return ""
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if not isinstance(value, str | list | tuple):
            if parameter.required:
                raise click.MissingParameter(ctx=context, param=parameter)
        elif not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)
    return ""


def problems(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Everything in a document that does not hold."""
    text = path.read_text("utf-8")
    for line in command_lines(text):
        if what := wrong_command(line):
            yield f"{path.name}: `{line}`: {what}"
    for name in MODULE.findall(text):
        if name.split(".")[0] in OURS and importlib.util.find_spec(name) is None:
            yield f"{path.name}: there is no module {name}"
    for target in LINK.findall(text):
        place, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = path.parent / place if place else path
        if not file.exists():
            yield f"{path.name}: links to {target}, which is not there"
        elif anchor and anchor not in anchors(file.read_text("utf-8")):
            yield f"{path.name}: links to {target}, which has no such heading"


def run_daily() -> None:
    """Run the README's first block of daily use, in order. Raises CalledProcessError."""
    text = (ROOT / "README.md").read_text("utf-8").split("## Daily use")[1]
    block = re.findall(r"```sh\n(.*?)```", text, re.S)[0]
    with tempfile.TemporaryDirectory() as folder:
        for line in command_lines(f"```sh\n{block}```"):
            words = [str(NANO) if word == "CHECKPOINT" else word for word in shlex.split(line)]
            print(shlex.join(words), flush=True)
            start = [sys.executable, "-m", "emo_export", *words[1:]]
            subprocess.run(start, check=True, cwd=folder, stdout=subprocess.DEVNULL)


def main() -> None:
    """Check every document; exit 1 when something does not hold."""
    found = [text for path in documents() for text in problems(path)]
    print("\n".join(found) or f"{len(documents())} documents: every link and command line holds")
    if not found and "--run" in sys.argv:
        run_daily()
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
