"""Choosing, pruning, calibrating and quantising in one pass: bytes, memory and time by stage.

    python -m tests.bench.choosing [--layers 1 --layers 2 --layers 3] [--cap 2000000000]

For each number of layers a checkpoint of real layer shape is made (128 experts, 2048 wide,
float32; 3 layers are 11 GB; weights repeat blocks of noise). With --keep and --calibration it goes
to all targets at once, in a process of its own that may hold `cap` bytes. The kernel holds it to
them where a control group can be made; elsewhere it is watched, which the table says. Exit 1 when
it held more, when the pass read an expert that it kept more than twice, or one that it dropped more
than once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from emo_export.base.child_process import child_environment
from emo_export.runtimes.devices.memory.cap import run_capped
from emo_export.selection.method import Method
from tests.bench.synthetic import Size, write_checkpoint

CHILD = "tests.bench.choosing_child"
PASS = "the pass over the weights"
TARGETS = ("gguf:q4_k_m", "gguf:q8_0", "onnx:int4")


@click.command()
@click.option("--layers", "counts", multiple=True, type=int, default=(1, 2, 3), show_default=True)
@click.option("--experts", default=128, show_default=True)
@click.option("--hidden", default=2048, show_default=True)
@click.option("--width", default=1024, show_default=True)
@click.option("--vocab", default=100352, show_default=True)
@click.option("--keep", default="32", show_default=True)
@click.option(
    "--method", type=click.Choice([each.value for each in Method]), default=Method.ROUTER.value
)
@click.option("--to", "specs", multiple=True, default=TARGETS, show_default=True)
@click.option("--tokens", default=32768, show_default=True, help="Of calibration text.")
@click.option("--heldout-tokens", default=4096, show_default=True)
@click.option("--no-golden", is_flag=True, help="No reference: choose, calibrate and write alone.")
@click.option("--cap", default=2_000_000_000, show_default=True, help="Bytes; of all its memory.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to write.  [default: TMPDIR]"
)
@click.option("--json", "as_json", is_flag=True)
def main(
    counts: tuple[int, ...],
    experts: int,
    hidden: int,
    width: int,
    vocab: int,
    keep: str,
    method: str,
    specs: tuple[str, ...],
    tokens: int,
    heldout_tokens: int,
    no_golden: bool,
    cap: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure an export for each number of layers."""
    asked: dict[str, Any] = {
        "specs": specs,
        "keep": keep,
        "method": method,
        "tokens": tokens,
        "heldout_tokens": heldout_tokens,
        "golden": not no_golden,
    }
    runs = []
    for layers in counts:
        run = measure(Size(hidden, width, layers, experts, vocab), asked, cap, folder)
        runs.append(run)
        click.echo(json.dumps(run) if as_json else table(run))
    if len(runs) > 2 and not as_json:
        click.echo(growth(runs))
    sys.exit(0 if all(run["passed"] for run in runs) else 1)


def measure(size: Size, asked: dict[str, Any], cap: int, folder: Path | None) -> dict[str, Any]:
    """Make a checkpoint, export it in a child, and let go of both."""
    with tempfile.TemporaryDirectory(prefix="emo-export-choosing-", dir=folder) as name:
        source, out = Path(name) / "checkpoint", Path(name) / "out"
        write_checkpoint(source, size)
        told = json.dumps(asked | {"source": str(source), "out": str(out)})
        files = sorted(source.glob("*.safetensors"))
        command = [sys.executable, "-m", CHILD, told]
        done, held = run_capped(command, child_environment(), cap, files)
        if done.code != 0:
            raise click.ClickException(f"exit code {done.code}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    kept, dropped = found["experts"]["kept"], found["experts"]["dropped"]
    found |= {
        "layers": size.layers,
        "cap": cap,
        "enforced": held.enforced,
        "how": held.how,
        "anonymous_bytes": held.peak_anonymous,
        "seconds": sum(stage["seconds"] for stage in found["stages"]),
        "cpu": sum(stage["cpu"] for stage in found["stages"]),
        "passed": found["peak_bytes"] <= cap and kept["most"] <= 2 and dropped["most"] <= 1,
    }
    return found


def table(run: dict[str, Any]) -> str:
    """Of one export: its stages, what was read, what was held."""
    lines = [
        f"\n{run['layers']} layers: {run['source_bytes'] / 1e9:.2f} GB -> "
        f"{run['made_bytes'] / 1e9:.2f} GB in {run['seconds']:.0f} s, {run['cpu']:.0f} s of CPU",
        f"{'stage':52} seconds  CPU s  GB read  GB written  anonymous MB  resident MB",
    ]
    for stage in run["stages"]:
        read, written = stage["read"] / 1e9, stage["written"] / 1e9
        lines.append(
            f"{stage['name']:52} {stage['seconds']:7.1f} {stage['cpu']:6.1f} {read:8.2f} "
            f"{written:11.2f} {stage['anonymous'] / 1e6:13.0f} {stage['resident'] / 1e6:12.0f}"
        )
    lines.append(f"the pass read {run['read'] / run['source_bytes']:.1%} of the checkpoint")
    lines += [
        f"  {name} experts: {each['bytes'] / 1e9:.2f} GB, of which {each['read'] / 1e9:.2f} GB "
        f"read; none more than {each['most']:.0f} times"
        for name, each in run["experts"].items()
    ]
    held = "held to" if run["enforced"] else "only watched, not held, to"
    lines.append(
        f"peak: resident {run['peak_bytes'] / 1e6:.0f} MB, anonymous "
        f"{run['anonymous_bytes'] / 1e6:.0f} MB; {held} {run['cap'] / 1e6:.0f} MB ({run['how']}): "
        f"{'passed' if run['passed'] else 'FAILED'}"
    )
    return "\n".join(lines)


def growth(runs: list[dict[str, Any]]) -> str:
    """What each layer more takes, in seconds of CPU, since machines are shared."""
    said = []
    for before, after in pairwise(runs):
        more = after["layers"] - before["layers"]
        whole = (after["cpu"] - before["cpu"]) / more
        inside = (_pass(after)["cpu"] - _pass(before)["cpu"]) / more
        said.append(
            f"from {before['layers']} to {after['layers']} layers: {inside:.1f} s of CPU in the "
            f"pass and {whole:.1f} s in all for each more"
        )
    return "\n" + "\n".join(said)


def _pass(run: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in run["stages"] if s["name"] == PASS)
    return found


if __name__ == "__main__":
    main()
