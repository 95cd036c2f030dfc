"""What `plan` says of bytes, memory and time, beside exports and a run of every target.

    python -m tests.bench.plan [CHECKPOINT] [--hidden 1024 --width 512 --layers 4 --experts 16]

Without a checkpoint one of random weights is made. Libraries are counted as the plan has them: a
run that shares them with other processes is told its share alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from emo_export.base.child_process import child_environment
from emo_export.base.disk import size_of
from emo_export.cli.export import run_export
from emo_export.jobs.options import ExportOptions
from emo_export.planning.plan import TARGETS, make_plan
from emo_export.planning.source import open_source
from emo_export.runtimes.devices.memory.trial import try_memory
from emo_export.runtimes.families import family_at
from emo_export.runtimes.package import chosen_targets
from tests.bench.synthetic import Size, write_checkpoint

RAM = 64 << 30


@click.command()
@click.argument("checkpoint", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--hidden", default=1024, show_default=True)
@click.option("--width", default=512, show_default=True)
@click.option("--layers", default=4, show_default=True)
@click.option("--experts", default=16, show_default=True)
@click.option("--vocab", default=8192, show_default=True)
@click.option("--to", "specs", multiple=True, default=TARGETS)
@click.option("--context", default=512, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    checkpoint: Path | None,
    hidden: int,
    width: int,
    layers: int,
    experts: int,
    vocab: int,
    specs: tuple[str, ...],
    context: int,
    as_json: bool,
) -> None:
    """Compare; exit 1 where bytes differ or memory on a device is more than 10% off."""
    with tempfile.TemporaryDirectory(prefix="emo-export-plan-") as name:
        folder = Path(name)
        source = checkpoint or folder / "checkpoint"
        if checkpoint is None:
            write_checkpoint(source, Size(hidden, width, layers, experts, vocab))
        rows = compare(source, folder / "out", specs, context)
        exports = compare_exports(source, folder / "again", specs)
    for row in rows:
        click.echo(
            json.dumps(row)
            if as_json
            else f"{row['target']:20} file {row['bytes'] / 1e6:9.2f} MB, planned "
            f"{row['planned_bytes'] / row['bytes']:.6f} of it; memory {row['memory'] / 1e6:9.1f} "
            f"MB, planned {row['planned_memory'] / row['memory']:.3f} of it"
        )
    for row in exports:
        memory, seconds = row["memory"], row["seconds"]
        click.echo(
            json.dumps(row)
            if as_json
            else f"export {row['export']}: {memory / 1e6:.1f} MB at its peak, planned "
            f"{row['planned_memory'] / memory:.2f} of it; {seconds:.1f} s, planned "
            f"{row['planned_seconds'] / seconds:.2f} of it"
        )
    wrong = [
        row
        for row in rows
        if row["planned_bytes"] != row["bytes"]
        or abs(row["planned_memory"] / row["memory"] - 1) > 0.1
    ]
    sys.exit(bool(wrong))


def compare(
    source: Path, out: Path, specs: tuple[str, ...], context: int
) -> list[dict[str, str | int]]:
    plain = ExportOptions(golden=False, validate=False)
    run_export(str(source), out, specs, plain, Console(stderr=True))
    plan = make_plan(*open_source(source), specs, ["all"], context)
    planned = {str(each.spec): each for each in plan.planned}
    rows: list[dict[str, str | int]] = []
    for spec, entry in chosen_targets(out)[1].items():
        path, said = out / entry.path, planned[spec]
        fit, _ = try_memory(
            entry.spec,
            path.resolve(),
            family_at(path).need(path, context),
            RAM,
            lambda line: [sys.executable, *line],
            child_environment(),
        )
        rows.append(
            {
                "target": spec,
                "bytes": size_of(path),
                "planned_bytes": said.nbytes,
                "memory": fit.total - fit.libraries + said.running.libraries,
                "planned_memory": said.running.total,
            }
        )
    return rows


def compare_exports(source: Path, out: Path, specs: tuple[str, ...]) -> list[dict[str, Any]]:
    """Resident memory at its peak and seconds of exports in processes of their own, and planned."""
    (kept,) = make_plan(*open_source(source), specs, ["all"], None, timed=True).kept
    need, planned = kept.export, kept.time
    if planned is None:
        raise ValueError("a plan without time")
    expected = {
        "--no-golden": (need.converting, planned.reading + planned.packing),
        "--no-validate": (need.with_reference, planned.total),
    }
    to = [word for spec in specs for word in ("--to", spec)]
    line = [sys.executable, "-m", "emo_export", "export", str(source), "-o", str(out), *to]
    found = []
    for option, (nbytes, seconds) in expected.items():
        began = time.perf_counter()
        process = subprocess.Popen([*line, option, "--overwrite"], stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise click.ClickException(f"export {option} ended with status {status}")
        found.append(
            {
                "export": option,
                "memory": usage.ru_maxrss * 1024,
                "planned_memory": nbytes,
                "seconds": time.perf_counter() - began,
                "planned_seconds": seconds,
            }
        )
    return found


if __name__ == "__main__":
    main()
