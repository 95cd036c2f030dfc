"""The command group `device`, as `cli` registers it; its work is in cli_device_setup."""

from __future__ import annotations

from pathlib import Path

import click

from emo_export.cli.output import stdout


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
    from emo_export.cli.device_setup import run_setup

    run_setup(onnxruntime, rootfs, as_json)


@device.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_(as_json: bool) -> None:
    """Show the device profiles and what is set up for them.

    \b
    Example:
        emo-export device list
    """
    from emo_export.cli.device_setup import run_list

    run_list(as_json, stdout())


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
    from emo_export.cli.device_setup import run_clean, run_clean_on

    if device is None:
        run_clean()
    else:
        run_clean_on(device)
