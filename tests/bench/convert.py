"""Conversion to GGUF beside the disk's own floor, ggml's kernels alone, and llama-quantize.

    python -m tests.bench.convert [--layers 8 --experts 32] [--repeat 3]

A synthetic checkpoint of real layer shape (8 layers x 32 experts: 8.6 GB of float32 in shards) is
made, or taken from --checkpoint. Then, in turn and `repeat` times: the floor (reading every shard
and writing as many bytes as the largest result, synced) and `export --no-golden` to each type, all
with the page cache of the checkpoint dropped. Peak memory is the process's own above its imports.
The kernel's share is what ggml_quantize_chunk takes on all cores for the same bytes, found on one
matrix in every turn. With --peer the real llama-quantize follows, on an f16 file of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Slot, shape_of, slots
from tests.bench.synthetic import Size, write_checkpoint
from tests.kit.llama_tools import tools

CHILD = "tests.bench.convert_child"
BUFFER = 8 << 20
KERNEL_SECONDS = 2.0
FAST = ("f32", "f16", "bf16")  # nothing to search: their kernel is a copy


@dataclass(frozen=True)
class Run:
    """One conversion: wall and CPU seconds, bytes of memory above imports, disk beyond the file."""

    seconds: float
    cpu: float
    peak_bytes: int
    extra_disk_bytes: int


def drop_cache(files: list[Path]) -> None:
    """Have the next read come from the disk."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def floor(files: list[Path], out: Path, nbytes: int) -> float:
    """Seconds to read the files and to write `nbytes` and sync them."""
    drop_cache(files)
    buffer = bytearray(BUFFER)
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass
    with out.open("wb", buffering=0) as handle:
        left = nbytes
        while left > 0:
            left -= handle.write(memoryview(buffer)[: min(left, BUFFER)])
        os.fsync(handle.fileno())
    found = time.perf_counter() - start
    out.unlink()
    return found


def convert(checkpoint: Checkpoint, type_name: str, folder: Path) -> Run:
    """One `export --no-golden` in a process of its own."""
    drop_cache(list(checkpoint.files))
    command = [sys.executable, "-m", CHILD, str(checkpoint.path), str(folder), type_name]
    scratch = folder.parent / "tmp"
    scratch.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(scratch)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return Run(**json.loads(done.stdout))


def kernel_seconds(checkpoint: Checkpoint, type_name: str) -> float:
    """What ggml's quantisers alone take for this recipe, on all cores."""
    config = checkpoint.config
    scheme = gguf_scheme(type_name, config)
    values: dict[str, int] = {}
    for slot in slots(config):
        name = scheme.format_of(slot).name
        values[name] = values.get(name, 0) + int(np.prod(shape_of(slot, config)))
    return sum(n / _rate(name) for name, n in values.items() if name not in FAST)


def _rate(name: str) -> float:
    """Values a second of one type, on a matrix of an expert's real shape."""
    rows = np.random.default_rng(0).standard_normal((1024, 2048), dtype=np.float32) * 0.02
    kind, count, start = GGML_FORMATS[name], 0, time.perf_counter()
    while time.perf_counter() - start < KERNEL_SECONDS:
        kind.quantize(rows)
        count += rows.size
    return count / (time.perf_counter() - start)


def quantize_by_peer(source: Path, type_name: str, out: Path) -> float:
    """Seconds of llama-quantize, from an f16 GGUF, on all cores."""
    peer = tools()
    drop_cache([source])
    start = time.perf_counter()
    peer.run("llama-quantize", source, out, type_name, os.cpu_count() or 1)
    os.sync()
    found = time.perf_counter() - start
    out.unlink()
    return found


@contextmanager
def _checkpoint(given: Path | None, size: Size, work: Path) -> Iterator[Checkpoint]:
    if given is None:
        given = work / "checkpoint"
        click.echo(f"making {given} …", err=True)
        write_checkpoint(given, size)
    yield Checkpoint.open(given)


def measure(checkpoint: Checkpoint, types: list[str], repeat: int, work: Path) -> dict[str, Any]:
    """Floor and conversions in turn; medians."""
    files, floors = list(checkpoint.files), []
    runs: dict[str, list[Run]] = {name: [] for name in types}
    kernels: dict[str, list[float]] = {name: [] for name in types}
    size = max(_bytes_of(checkpoint, name) for name in types)
    for turn in range(repeat):
        floors.append(floor(files, work / "floor.bin", size))
        for name in types:
            kernels[name].append(kernel_seconds(checkpoint, name))
            runs[name].append(convert(checkpoint, name, work / "out"))
            click.echo(f"turn {turn + 1}: {name} {runs[name][-1].seconds:.1f} s", err=True)
    found: dict[str, Any] = {
        "source_bytes": checkpoint.nbytes,
        "floor_seconds": median(floors),
        "types": {},
    }
    for name, done in runs.items():
        found["types"][name] = {
            "bytes": _bytes_of(checkpoint, name),
            "seconds": median(run.seconds for run in done),
            "cpu_seconds": median(run.cpu for run in done),
            "peak_bytes": max(run.peak_bytes for run in done),
            "extra_disk_bytes": max(run.extra_disk_bytes for run in done),
            "kernel_seconds": median(kernels[name]),
        }
    return found


def _bytes_of(checkpoint: Checkpoint, type_name: str) -> int:
    config, scheme = checkpoint.config, gguf_scheme(type_name, checkpoint.config)

    def nbytes(slot: Slot) -> int:
        shape = (1, *shape_of(slot, config))
        return scheme.format_of(slot).nbytes(int(np.prod(shape[:-1])), shape[-1])

    return sum(nbytes(slot) for slot in slots(config))


def show(found: dict[str, Any]) -> None:
    """The table: a line for each type."""
    source, base = found["source_bytes"], found["floor_seconds"]
    click.echo(
        f"source {source / 1e9:.2f} GB of float32; floor (read it, write the largest result) "
        f"{base:.1f} s, median\n"
        "type        GB out  seconds  of floor  CPU s  kernel s  of kernel  MB/s  peak MB  disk+"
    )
    for name, row in found["types"].items():
        click.echo(
            f"{name:10} {row['bytes'] / 1e9:7.2f} {row['seconds']:8.1f} "
            f"{row['seconds'] / base:9.2f} {row['cpu_seconds']:6.1f} {row['kernel_seconds']:9.1f} "
            f"{row['seconds'] / row['kernel_seconds']:10.2f} {source / row['seconds'] / 1e6:5.0f} "
            f"{row['peak_bytes'] / 1e6:8.0f} {row['extra_disk_bytes'] / 1e6:8.1f} MB"
        )
        if "peer_seconds" in row:
            click.echo(
                f"  llama-quantize alone, from our f16: {row['peer_seconds']:.1f} s, and the f16 "
                f"file takes {found['f16_bytes'] / 1e9:.1f} GB of disk"
            )


def add_peer(found: dict[str, Any], checkpoint: Checkpoint, work: Path) -> None:
    """Measure llama-quantize for every type, from an f16 file that we write first."""
    convert(checkpoint, "f16", work / "f16")
    source = work / "f16" / "model-F16.gguf"
    found["f16_bytes"] = source.stat().st_size
    for name, row in found["types"].items():
        row["peer_seconds"] = quantize_by_peer(source, name, work / "peer.gguf")


@click.command()
@click.option("--checkpoint", "given", type=click.Path(exists=True, path_type=Path))
@click.option("--layers", default=8, show_default=True)
@click.option("--experts", default=32, show_default=True)
@click.option("--vocab", default=100352, show_default=True)
@click.option("--type", "types", multiple=True, default=("q8_0", "q4_0", "q4_k_m"))
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1))
@click.option("--peer", is_flag=True, help="Measure llama-quantize as well.")
@click.option("--work", type=click.Path(path_type=Path), help="Where to write.  [default: TMPDIR]")
@click.option("--json", "as_json", is_flag=True)
def main(
    given: Path | None,
    layers: int,
    experts: int,
    vocab: int,
    types: tuple[str, ...],
    repeat: int,
    peer: bool,
    work: Path | None,
    as_json: bool,
) -> None:
    """Measure conversions beside the floor."""
    size = Size(2048, 1024, layers, experts, vocab)
    with tempfile.TemporaryDirectory(prefix="emo-export-convert-", dir=work) as name:
        folder = Path(name)
        with _checkpoint(given, size, folder) as checkpoint:
            found = measure(checkpoint, list(types), repeat, folder)
            if peer:
                add_peer(found, checkpoint, folder)
    if as_json:
        click.echo(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
