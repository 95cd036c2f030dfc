"""A newcomer's path, timed: README's first command in a fresh copy, from pip install to text.

    python -m tests.bench.newcomer [--device pi4]

Exits 1 where a step fails, says something of an error, or all of it takes more than two minutes.
With --device the same person goes on to a Raspberry Pi, which is emulated: emo-export as one file,
its wheels unpacked as pip would, and text from the package (its time is told and not judged).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import click

from emo_export.runtimes.devices.profiles import profile_named
from tests.bench.install import copy_tracked
from tests.kit.emulated import emulated

LIMIT = 120.0
DROPPED = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PIP_CONSTRAINT", "EMO_EXPORT_DEVICES")
TROUBLE = re.compile(r"(?i)(error|traceback|failed)\b")  # at the start of a line


def step(title: str, *command: str, at: Path, home: Path) -> tuple[str, float]:
    """Run one, as a user with an empty home; what it printed, and seconds."""
    env = {name: value for name, value in os.environ.items() if name not in DROPPED}
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=at,
        env=env | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    click.echo(f"{title}: {seconds:.1f} s")
    trouble = [line for line in done.stdout.splitlines() if TROUBLE.match(line)]
    if done.returncode or trouble:
        raise click.ClickException(f"exit {done.returncode}\n{done.stdout}")
    return done.stdout, seconds


def first_command(tree: Path) -> str:
    """The line of README's first block."""
    text = (tree / "README.md").read_text("utf-8")
    found = re.search(r"<!-- try -->\n```sh\n(.*)\n```", text)
    if found is None:
        raise click.ClickException("README.md has no command after <!-- try -->")
    return found[1]


def on_a_pi(name: str, tree: Path, top: Path) -> None:
    """Text from the package that the first command made, on an emulated device."""
    emulation = emulated()
    python = ".".join(emulation.versions["python"].text.split(".")[:2])
    emo = str(tree / ".venv/bin/emo-export")
    pyz = [emo, "device", "pyz", "emo.pyz", "--engine", "llama", "--python", python]
    step("emo-export device pyz emo.pyz --engine llama", *pyz, at=top, home=top)
    for wheel in (top / "emo.wheels").glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(top / "site")
    run = ["emo.pyz", "run", str(tree / "out/emo-nano"), "In the beginning", "-n", "16"]
    settings = {"PYTHONPATH": str(top / "site")}
    command = emulation.command(profile_named(name).cpu, settings, *run)
    said, _ = step(f"python3 emo.pyz run …, on {name}, emulated", *command, at=top, home=top)
    click.echo(said)


@click.command()
@click.option("--device", help="An emulated one, as pi4 or pi5.")
def main(device: str | None) -> None:
    """Do what README says, in a copy of what is tracked."""
    with tempfile.TemporaryDirectory(prefix="emo-export-newcomer-") as name:
        top, tree = Path(name), Path(name) / "emo-export"
        copy_tracked(tree)
        line = first_command(tree)
        said, seconds = step(line, "sh", "-c", line, at=tree, home=top)
        click.echo("\n".join(said.splitlines()[-12:]))
        if device is not None:
            on_a_pi(device, tree, top)
    if seconds > LIMIT:
        sys.exit(f"{seconds:.0f} s is more than the {LIMIT:.0f} that a newcomer waits")


if __name__ == "__main__":
    main()
