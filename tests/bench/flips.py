"""Random bits of a package, flipped one at a time: is each found, and its tensor named?

    python -m tests.bench.flips PACKAGE [--flips 100] [--seed 0]

PACKAGE is a folder that export made; bits are flipped in a copy of it. Every second bit is drawn
from all bytes, the others from a file that is drawn first, so that small files get theirs.
`emo-export verify --json` must then fail and name the file; where gguf-py, onnx, a safetensors
header or the archive's says that the bit is in a tensor, that tensor. Exits 1 unless every bit was
found and every tensor named.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.kit.command import run_here
from tests.kit.flipping import flip, relative, tensors_at


@dataclass(frozen=True)
class Found:
    """What became of one bit. `kind`: tensor, header, padding; other: a file without tensors."""

    file: str
    at: int
    kind: str
    is_found: bool
    is_named: bool


def drawn(files: dict[str, int], number: int, rng: random.Random) -> tuple[str, int]:
    """A file, and a byte of it."""
    weights = list(files.values()) if number % 2 == 0 else [1] * len(files)
    (file,) = rng.choices(list(files), weights)
    return file, rng.randrange(files[file])


def try_flip(copy: Path, file: str, at: int, bit: int, inside: list[str], known: bool) -> Found:
    """Flip, verify, flip back."""
    flip(copy / file, at, bit)
    done = run_here("verify", copy, "--json")
    flip(copy / file, at, bit)
    if done.code == 2:  # a manifest that can't be read any more
        return Found(file, at, "other", str(copy / file) in done.err, True)
    told = [one for one in json.loads(done.out)["problems"] if one["path"] == file]
    places = [place for one in told for place in one["places"]]
    if inside:
        named = places == [{"kind": "tensor", "name": inside[0]}]
        return Found(file, at, "tensor", done.code == 1 and len(told) == 1, named)
    kind = places[0]["kind"] if places else "other"
    named = not known or (len(places) == 1 and kind in ("header", "padding"))
    return Found(file, at, kind, done.code == 1 and len(told) == 1, named)


def measure(package: Path, flips: int, seed: int) -> list[Found]:
    """Every bit, in a copy that is removed afterwards."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(package, Path(scratch) / package.name)
        if (code := run_here("verify", copy).code) != 0:
            raise SystemExit(f"{package}: does not verify as it is (exit {code})")
        tensors = list(tensors_at(copy))
        with_tensors = {file for file, *_ in tensors}
        files = {relative(p, copy): p.stat().st_size for p in copy.rglob("*") if p.is_file()}
        files = {file: size for file, size in sorted(files.items()) if size}
        found = []
        for number in range(flips):
            file, at = drawn(files, number, rng)
            inside = [name for f, name, a, b in tensors if f == file and a <= at < b]
            bit = rng.randrange(8)
            found.append(try_flip(copy, file, at, bit, inside, file in with_tensors))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    found = measure(asked.package, asked.flips, asked.seed)
    wrong = [one for one in found if not (one.is_found and one.is_named)]
    for one in wrong:
        print(f"{one.file}, byte {one.at} ({one.kind}): found {one.is_found}, named {one.is_named}")
    kinds = Counter(one.kind for one in found)
    print("| bits | found | in tensors | tensor named | header | padding | other files | lost |")
    print("|---|---|---|---|---|---|---|---|")
    cells = [
        len(found),
        sum(one.is_found for one in found),
        kinds["tensor"],
        sum(one.is_named for one in found if one.kind == "tensor"),
        kinds["header"],
        kinds["padding"],
        kinds["other"],
        len(wrong),
    ]
    print(f"| {' | '.join(map(str, cells))} |")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
