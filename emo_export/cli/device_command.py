"""The command group `device`: what emulated devices run on, and what is kept on others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from emo_export.cli.output import put, say, stderr, stdout
from emo_export.errors import EmoExportError

if TYPE_CHECKING:
    from emo_export.runtimes.devices.emulated.fetch import Progress

ENGINES = ("llama", "ort")


@click.group()
def device() -> None:
    """Devices for `validate --device`: set up and list emulated ones, clean any."""


@device.command()
@click.option(
    "--onnxruntime", metavar="VERSION", help="Another arm64 ONNX Runtime, such as 1.21.0."
)
@click.option(
    "--rootfs",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Any arm64 root with Python 3.11 or newer, instead of Debian's packages.",
)
@click.option("--json", "as_json", is_flag=True, help="Print paths and versions as JSON.")
def setup(onnxruntime: str | None, rootfs: Path | None, as_json: bool) -> None:
    """Fetch qemu, an arm64 Python and the arm64 engines into a cache (about 150 MB).

    Needs no root. Afterwards nothing is fetched any more. EMO_EXPORT_DEVICES names another folder
    than ~/.cache/emo-export/devices.

    \b
    Example:
        emo-export device setup
    """
    from emo_export.runtimes.devices.emulated.place import bytes_of, place
    from emo_export.runtimes.devices.emulated.setup import set_up
    from emo_export.runtimes.devices.profiles import PROFILES

    with _told() as progress:
        made = set_up(onnxruntime, rootfs, progress)
    folder = place()
    versions = {name: str(version) for name, version in made.versions.items()}
    if as_json:
        names = ("qemu", "root", "python", "site", "libllama")
        paths = {name: str(getattr(made, name)) for name in names}
        content = {"folder": str(folder), "bytes": bytes_of(folder), **paths}
        click.echo(json.dumps(content | {"versions": versions}, indent=2))
        return
    for name, version in versions.items():
        put(f"{name}: {version}")
    put(f"ready in {folder} ({bytes_of(folder) / 1e6:.0f} MB): {', '.join(PROFILES)}")


@contextmanager
def _told() -> Iterator[Progress]:
    """A bar on stderr where that is a terminal, plain lines elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bar

    from emo_export.runtimes.devices.emulated.fetch import Progress

    console = stderr()
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def on_stage(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield Progress(
            on_stage,
            lambda total: bar.update(task, total=total, visible=total > 0),
            lambda nbytes: bar.advance(task, nbytes),
        )


@device.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_(as_json: bool) -> None:
    """Show the device profiles and what is set up for them.

    \b
    Example:
        emo-export device list
    """
    from rich.table import Table

    from emo_export.bench.device_list import SETUP, listing
    from emo_export.runtimes.devices.profiles import GIB, PROFILES

    out = stdout()
    found = listing()
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2))
        return
    table = Table("profile", "device", "qemu -cpu", "memory (GB)", "what it exercises")
    for profile in PROFILES.values():
        memory = ", ".join(str(size // GIB) for size in profile.memory)
        table.add_row(profile.name, profile.title, profile.cpu, memory, profile.exercises)
    out.print(table)
    remedy = "" if found.ready else f"; {SETUP} fetches about 150 MB"
    out.print(f"{'set up: ' if found.ready else ''}{found.reason}{remedy}", markup=False)
    out.print(f"folder: {found.folder} ({found.nbytes / 1e6:.0f} MB)", markup=False)
    for setup in found.setups:
        kind = "pinned" if setup["pinned"] else "not as pinned"
        out.print(f"\n{setup['site']} in {setup['root']} ({kind})", markup=False)
        for name, version in setup["versions"].items():
            out.print(f"  {name}: {version}", markup=False)


@device.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(ENGINES),
    help="Fetch its wheels too, into OUT.wheels.  [repeatable]",
)
@click.option(
    "--machine",
    type=click.Choice(("aarch64", "x86_64")),
    default="aarch64",
    show_default=True,
    help="Of the wheels.",
)
@click.option(
    "--python",
    metavar="VERSION",
    default="3.13",
    show_default=True,
    help="Of the wheels: python3 --version there.",
)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
@click.option("--json", "as_json", is_flag=True, help="Print paths and bytes as JSON.")
def pyz(
    out: Path,
    engines: tuple[str, ...],
    machine: str,
    python: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write emo-export as one file for a machine without a package index.

    OUT, as emo.pyz, holds emo-export and all of its commands; what is compiled, numpy and the
    engine, is installed there from wheels. Those need glibc of at most 2.36 there, as Raspberry
    Pi OS 12 has it.

    \b
    Example:
        emo-export device pyz emo.pyz --engine llama
        emo-export device pyz emo.pyz --engine ort --machine x86_64 --python 3.12
    """
    from emo_export.cli.pyz import write_and_fetch

    write_and_fetch(out, engines, machine, python, overwrite, as_json)


@device.command()
@click.argument("device", required=False)
def clean(device: str | None) -> None:
    """Remove everything that `device setup` fetched, or what is kept on DEVICE.

    DEVICE is ssh://[user@]host[:port], adb or adb:SERIAL: packages, Python and engines that
    `validate --device` keeps there for the next time.

    \b
    Example:
        emo-export device clean
        emo-export device clean ssh://me@raspberrypi.local
    """
    if device is None:
        _clean_here()
        return
    from emo_export.runtimes.devices.options import ADB, SSH, kind_of

    kind = kind_of(device)
    if kind == SSH:
        from emo_export.runtimes.devices.ssh.remote import clean_remote

        removed, nbytes = clean_remote(device)
    elif kind == ADB:
        from emo_export.runtimes.devices.adb.android import clean_adb

        removed, nbytes = clean_adb(device)
    else:
        raise EmoExportError(
            f"device clean {device}: nothing is kept for it alone; leave the name out to remove "
            "what all emulated devices run on"
        )
    for path in removed:
        put(f"removed {path}")
    put(f"{device}: {nbytes / 1e6:.1f} MB removed" if removed else f"{device}: nothing to remove")


def _clean_here() -> None:
    from emo_export.runtimes.devices.emulated.place import place, remove_all

    folder = place()
    nbytes = remove_all(folder, say)
    if nbytes:
        put(f"removed {folder}: {nbytes / 1e6:.1f} MB")
    else:
        put(f"{folder}: nothing is set up")
