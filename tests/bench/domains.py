"""What `--share-trunk` saves on the disk, and how long a switch from one domain to another takes.

    python -m tests.bench.domains [OUT]

Without OUT: bytes of a trunk and of two packages at the released shape, from layouts without
weights. With OUT, made by `export --domain … --domain … --share-trunk`: its bytes on the disk, and
the seconds from closing one domain to the first logits of the next, everything in the page cache,
one process for each target. Exit 1 where the disk holds more than the trunk once and the rest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from emo_export.base.threads import physical_cores
from emo_export.errors import EmoExportError
from emo_export.families import target_maker
from emo_export.families.options import TargetOptions
from emo_export.files.domains import read_domains
from emo_export.files.manifest import Manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.model.importance import ImportanceMatrix
from emo_export.planning.keeping import keeping, kept_counts
from emo_export.planning.source import open_source
from emo_export.runtimes.families import LIGHT
from emo_export.runtimes.opening import open_runtime
from emo_export.spec import Spec
from tests.bench.synthetic import Size, config_of

RELEASED = Size(2048, 1024, 16, 128, 100352)
TARGETS = ("gguf:q8_0", "gguf:q6_k", "gguf:q4_k_m", "gguf:q4_0", "onnx:int8", "onnx:int4")
PROMPT = np.arange(1, 9)


@click.command()
@click.argument("out", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--keep", default=("32", "16", "8"), multiple=True, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--child", hidden=True, help="Measure the switch of this target in this process.")
def main(out: Path | None, keep: tuple[str, ...], rounds: int, child: str | None) -> None:
    """Measure an exported folder of domains, or tell the released shape's sizes."""
    if out is None:
        _released(keep)
    elif child is not None:
        print(json.dumps(_switches(out, child, rounds)))
    else:
        passed = _disk(out)
        _switching(out, rounds)
        sys.exit(0 if passed else 1)


def _released(keep: tuple[str, ...]) -> None:
    heads = ("trunk", "experts", "two, apart")
    print(f"{'target':12} kept {''.join(f'{head:>11}' for head in heads)}   shared")
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(config_of(RELEASED)))
        source, _ = open_source(Path(name))
        for counts in kept_counts(keep, source.config):
            product = keeping(source, counts)
            for spec in map(Spec.parse, TARGETS):
                options = TargetOptions(share_trunk=True)
                weighs = LIGHT[spec.family].weighs(spec)
                importance = ImportanceMatrix("", 0) if weighs else None
                target = target_maker([spec], product, options, importance)(Path(name))[0]
                trunk, whole = target.trunk_nbytes, target.nbytes
                shared = 2 * whole - trunk
                sizes = (trunk, whole - trunk, 2 * whole)
                shown = "".join(f"{size / 1e6:8.0f} MB" for size in sizes)
                print(f"{spec!s:12} {max(counts):4} {shown} {shared / (2 * whole):8.1%}")


def _entries(out: Path) -> dict[str, dict[str, TargetEntry]]:
    return {name: dict(Manifest.load(out / name).targets) for name in read_domains(out)}


def _disk(out: Path) -> bool:
    """Bytes of each target by name and by file: what a name counts, and what the disk holds."""
    entries = _entries(out)
    passed = True
    for spec in next(iter(entries.values())):
        files = [
            file
            for name, targets in entries.items()
            for place in targets[spec].paths
            for file in (_inside(out / name / place))
        ]
        stats = [file.stat() for file in files]
        named = sum(stat.st_size for stat in stats)
        held = sum({stat.st_ino: stat.st_size for stat in stats}.values())
        trunks = [out / name / str(targets[spec].trunk) for name, targets in entries.items()]
        trunk = trunks[0].stat().st_size
        passed &= held == named - trunk * (len(trunks) - 1)
        print(f"{spec}: {named / 1e6:.2f} MB apart, {held / 1e6:.2f} MB shared: {held / named:.1%}")
    return passed


def _inside(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _switching(out: Path, rounds: int) -> None:
    for spec in next(iter(_entries(out).values())):
        line = [sys.executable, "-m", "tests.bench.domains", str(out), "--child", spec]
        done = subprocess.run([*line, "--rounds", str(rounds)], capture_output=True, text=True)
        if done.returncode:
            raise EmoExportError(done.stderr)
        for how, (seconds, cpu) in json.loads(done.stdout).items():
            took = f"{seconds:.3f} s ({cpu:.3f} of CPU)"
            print(f"{spec}, {how}: {took} from one domain to the next one's first logits")


def _switches(out: Path, spec: str, rounds: int) -> dict[str, tuple[float, float]]:
    entries = _entries(out)
    paths = [out / name / targets[spec].path for name, targets in entries.items()]
    found = {"as exported": _switch(paths, rounds, {})}
    if LIGHT[Spec.parse(spec).family].packs_weights:
        from emo_export.runtimes.ort.prepacked import prepacked_copy

        with tempfile.TemporaryDirectory(prefix="emo-switch-") as cache:
            copies = {path: prepacked_copy(path, Path(cache), lambda text: None) for path in paths}
            found["with --cache-prepacked"] = _switch(paths, rounds, copies)
    return found


def _switch(paths: list[Path], rounds: int, copies: dict[Path, Path]) -> tuple[float, float]:
    """Medians over rounds through all domains, wall and CPU; the first round warms up."""
    seconds, cpu = [], []
    for at in range(1 + rounds):
        for path in paths:
            start, before = time.perf_counter(), time.process_time()
            runtime = open_runtime(path, physical_cores(), prepacked=copies.get(path))
            runtime.forward(PROMPT, last=True)
            seconds += [time.perf_counter() - start] if at else []
            cpu += [time.process_time() - before] if at else []
            runtime.close()
    return statistics.median(seconds), statistics.median(cpu)


if __name__ == "__main__":
    main()
