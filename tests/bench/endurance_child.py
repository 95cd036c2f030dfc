"""One of several processes of tests.bench.endurance that run a package at once.

    python -m tests.bench.endurance_child PACKAGE CACHE|-

Says `ready` once it has run; to a line it answers with its memory: bytes that are anonymous, and
its share of the pages of the package's files, which all processes that map them divide.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from emo_export.base.process_memory import read_mappings
from emo_export.runtimes.opening import open_runtime
from emo_export.runtimes.ort.prepacked import prepacked_copy


def main(package: Path, cache: str) -> None:
    """Open it, run it, wait, tell."""
    copy = None
    if cache != "-":
        copy = prepacked_copy(package, Path(cache), lambda text: print(text, file=sys.stderr))
    place = copy or package
    runtime = open_runtime(package, 1, prepacked=copy)
    runtime.forward(np.arange(64, dtype=np.int64) * 37 % runtime.vocab_size, last=True)
    print("ready", flush=True)
    sys.stdin.readline()
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    names = {str(path.resolve()) for path in files}
    mappings = read_mappings(os.getpid())
    told = {
        "bytes": sum(path.stat().st_size for path in files),
        "anonymous": sum(mapping.anonymous for mapping in mappings),
        "file": sum(mapping.file for mapping in mappings if mapping.path in names),
    }
    print(json.dumps(told), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
