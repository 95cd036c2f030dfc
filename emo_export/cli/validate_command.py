"""The options of `validate`, and its help."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli import completing
from emo_export.cli.numbers import SECONDS
from emo_export.cli.only_target import ONLY_TARGET
from emo_export.cli.output import stdout
from emo_export.cli.progress import with_progress
from emo_export.files.kv_cache import KV_CACHES

THREADS = "[default: physical cores; 1 for a small model]"
FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@ONLY_TARGET
@click.option(
    "--reference",
    metavar="CHECKPOINT",
    shell_complete=completing.folder,
    help="Compute the reference anew from this.",
)
@click.option("--threads", type=click.IntRange(1), help=THREADS)
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="End an engine that neither opens a model nor reads a text in so long.  [default: 3600] "
    "On a device: a target whose whole run takes longer.  [default: none]",
)
@click.option("--torch-device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option(
    "--device",
    "devices",
    shell_complete=completing.devices,
    multiple=True,
    metavar="DEVICE",
    help="Where to run: pi4, pi5, phone or server-arm (emulated here), ssh://[user@]host[:port], "
    "adb or adb:SERIAL, here (each target in a process). Repeat it for several.",
)
@click.option(
    "--ram",
    metavar="SIZE",
    help="Memory that a run may take, as 1GB or 512MiB; enforced if possible.",
)
@click.option(
    "--context", type=click.IntRange(1), metavar="N", help="Positions of KV cache to hold with it."
)
@click.option(
    "--kv-cache",
    type=click.Choice(KV_CACHES),
    help="Judge and measure with keys and values of this type, as run --kv-cache has them.",
)
@click.option(
    "--device-tokens",
    "tokens",
    type=click.IntRange(0),
    metavar="N",
    help="Judged positions on a device, 0 for all.  [default: 48 under emulation, else all]",
)
@click.option(
    "--setup", is_flag=True, help="ssh: make a virtual environment with the engines there."
)
@click.option("--bench", is_flag=True, help="ssh: measure speed there too.")
@click.option(
    "--rootfs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Emulation: an arm64 root with Python instead of Debian's.",
)
@click.option("--onnxruntime", metavar="VERSION", help="Emulation: another version of it.")
@click.option("--html", metavar="FILE", type=FILE, help="Write a report as one HTML page.")
@click.option("--junit", metavar="FILE", type=FILE, help="Write JUnit XML, for CI.")
@click.option("--json", "as_json", is_flag=True, help="Print parity as JSON.")
@with_progress
def validate(
    path: Path,
    only: tuple[str, ...],
    reference: str | None,
    threads: int | None,
    timeout: float | None,
    torch_device: str,
    devices: tuple[str, ...],
    ram: str | None,
    context: int | None,
    kv_cache: str | None,
    tokens: int | None,
    setup: bool,
    bench: bool,
    rootfs: Path | None,
    onnxruntime: str | None,
    html: Path | None,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Compare what the engines compute with the reference.

    PATH is a folder that export made, a model inside one, or (with --reference) any .gguf file or
    ONNX folder by itself, whoever quantised it. With --device it runs there: under emulation (set
    up at the first use), over ssh or over adb. Each engine runs in a process of its own: one that
    crashes or hangs fails its own target alone. Exit 0 within tolerance, 1 outside, 2 when a model
    can't be read, 3 when an engine is missing; of several, the smallest.

    \b
    Examples:
        emo-export validate out
        emo-export validate out --device pi4 --device pi5 --html report.html
        emo-export validate out --device pi4 --ram 2GB --context 4096
        emo-export validate out --device ssh://pi@raspberrypi.local --setup
    """
    from emo_export.base.ram_size import parse_size
    from emo_export.cli.validate import ValidateOptions, run_validate
    from emo_export.runtimes.devices.options import DeviceOptions

    limit = parse_size(ram) if ram is not None else None
    asked = DeviceOptions(
        devices,
        limit,
        context or 0,
        tokens,
        threads,
        setup,
        bench,
        rootfs,
        onnxruntime,
        kv_cache,
        timeout,
    )
    options = ValidateOptions(only, reference, threads, torch_device, html, junit, as_json, asked)
    run_validate(path, options, stdout())
