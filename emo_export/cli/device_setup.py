"""The work of `device setup`, `list` and `clean`: progress and what they print."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from emo_export.bench.device_list import SETUP, listing
from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.emulated.fetch import Progress as Told
from emo_export.runtimes.devices.emulated.place import bytes_of, place, remove_all
from emo_export.runtimes.devices.emulated.setup import set_up
from emo_export.runtimes.devices.options import ADB, SSH, kind_of
from emo_export.runtimes.devices.profiles import GIB, PROFILES


def run_setup(onnxruntime: str | None, rootfs: Path | None, as_json: bool) -> None:
    """Set up what is missing, and tell what there is then."""
    with _told() as progress:
        made = set_up(onnxruntime, rootfs, progress)
    folder = place()
    if as_json:
        paths = {name: str(getattr(made, name)) for name in ("qemu", "root", "python", "site")}
        content = {"folder": str(folder), "bytes": bytes_of(folder), **paths}
        versions = {name: str(version) for name, version in made.versions.items()}
        content |= {"libllama": str(made.libllama), "versions": versions}
        click.echo(json.dumps(content, indent=2))
        return
    for name, version in made.versions.items():
        click.echo(f"{name}: {version}")
    click.echo(f"ready in {folder} ({bytes_of(folder) / 1e6:.0f} MB): {', '.join(PROFILES)}")


@contextmanager
def _told() -> Iterator[Told]:
    """A bar on stderr where that is a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)

        def on_stage(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield Told(
            on_stage,
            lambda total: bar.update(task, total=total, visible=total > 0),
            lambda nbytes: bar.advance(task, nbytes),
        )


def run_list(as_json: bool, out: Console) -> None:
    """Print the profiles and the setups."""
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


def run_clean() -> None:
    """Remove the cache folder and tell what that freed."""
    folder = place()
    nbytes = remove_all(folder, lambda text: click.echo(text, err=True))
    if nbytes:
        click.echo(f"removed {folder}: {nbytes / 1e6:.1f} MB")
    else:
        click.echo(f"{folder}: nothing is set up")


def run_clean_on(device: str) -> None:
    """Remove what is kept on a device, and tell what that was and how large.

    Raises EmoExportError for a device that keeps nothing, or that can't be reached.
    """
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
        click.echo(f"removed {path}")
    click.echo(
        f"{device}: {nbytes / 1e6:.1f} MB removed" if removed else f"{device}: nothing to remove"
    )
