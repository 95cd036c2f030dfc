"""What `run --cache-prepacked` and `--no-spin` cost and gain: memory, disk, speed, the same logits.

    python -m tests.bench.synthetic /tmp/ckpt --hidden 2048 --width 1024 --layers 4
    emo-export export /tmp/ckpt -o /tmp/out --to onnx:int4 --no-golden
    python -m tests.bench.prepacked /tmp/out/onnx-int4

Each run is a process of its own; rounds of all settings alternate and the medians count. Exit 1
when the logits differ in a bit, or the peak of anonymous memory with a copy exceeds a quarter of
the weights (whole process: some 20 MB are Python, numpy and ONNX Runtime).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from emo_export.base.threads import physical_cores

CHILD = "tests.bench.prepacked_child"
SETTINGS = {  # name -> (with a copy, how threads wait)
    "as exported": (False, "spin"),
    "as exported, --no-spin": (False, "block"),
    "copy": (True, "spin"),
    "copy, --no-spin": (True, "block"),
}
LIMIT = 0.25
HEADER = ("setting", "open s", "tok/s", "CPU s", "peak anon", "anon", "mapped")


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="[default: physical cores]")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="[default: a temporary folder]")
@click.option("--json", "as_json", is_flag=True)
def main(
    folders: tuple[Path, ...],
    tokens: int,
    rounds: int,
    threads: int | None,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Measure ONNX FOLDERS."""
    reports = []
    for folder in folders:
        with tempfile.TemporaryDirectory(prefix="emo-prepacked-", dir=cache_dir) as cache:
            reports.append(
                _measure(folder, Path(cache), threads or physical_cores(), tokens, rounds)
            )
        click.echo(json.dumps(reports[-1]) if as_json else _table(reports[-1]))
    sys.exit(0 if all(report["passed"] for report in reports) else 1)


def _measure(folder: Path, cache: Path, threads: int, tokens: int, rounds: int) -> dict[str, Any]:
    def run(with_copy: bool, wait: str, length: int) -> dict[str, Any]:
        place = str(cache) if with_copy else "-"
        arguments = [str(folder), place, wait, str(threads), str(length)]
        command = [sys.executable, "-m", CHILD, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(done.stderr.strip().rpartition("\n")[2])
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    weights = (folder / "model.onnx.data").stat().st_size
    first = run(True, "spin", 1)
    (copy,) = cache.glob("*/model.onnx.data")
    report: dict[str, Any] = {
        "folder": str(folder),
        "threads": threads,
        "weight_bytes": weights,
        "copy_bytes": copy.stat().st_size,
        "first_open_seconds": first["open_seconds"],
        "first_peak_anonymous_bytes": first["peak_anonymous_bytes"],
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for _ in range(rounds):
        for name, (with_copy, wait) in SETTINGS.items():
            runs[name].append(run(with_copy, wait, tokens))
    report["settings"] = {name: _median(found) for name, found in runs.items()}
    logits = {found["logits"] for several in runs.values() for found in several}
    peak = max(found["peak_anonymous_bytes"] for found in runs["copy"])
    report |= {"logits_equal": len(logits) == 1, "peak_of_weights": peak / weights}
    report["passed"] = report["logits_equal"] and peak <= LIMIT * weights
    return report


def _median(runs: list[dict[str, Any]]) -> dict[str, float]:
    keys = [key for key, value in runs[0].items() if not isinstance(value, str)]
    return {key: statistics.median(run[key] for run in runs) for key in keys}


def _table(report: dict[str, Any]) -> str:
    def mb(value: float) -> str:
        return f"{value / 1e6:.0f} MB"

    lines = [
        f"{report['folder']}: weights {mb(report['weight_bytes'])}, copy "
        f"{mb(report['copy_bytes'])}; first start with it {report['first_open_seconds']:.1f} s, "
        f"peak {mb(report['first_peak_anonymous_bytes'])} anonymous; {report['threads']} threads",
        "{:24}{:>8}{:>8}{:>8}{:>11}{:>9}{:>9}".format(*HEADER),
    ]
    for name, found in report["settings"].items():
        memory = (mb(found[f"{key}_bytes"]) for key in ("peak_anonymous", "anonymous", "file"))
        numbers = (found["open_seconds"], found["tokens_per_second"], found["cpu_seconds"])
        lines.append("{:24}{:8.1f}{:8.1f}{:8.1f}{:>11}{:>9}{:>9}".format(name, *numbers, *memory))
    same = "equal to the bit" if report["logits_equal"] else "DIFFERENT"
    lines.append(
        f"logits {same}; peak anonymous with the copy is {report['peak_of_weights']:.2f} of the "
        f"weights ({'within' if report['passed'] else 'FAILED:'} limit {LIMIT})"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
