"""One process of tests.bench.prepacked: open a model, prefill, decode; memory and speed as JSON.

python -m tests.bench.prepacked_child FOLDER CACHE|- spin|block THREADS TOKENS
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from pathlib import Path

import numpy as np

from emo_export.runtimes.ort.model import OnnxModel
from emo_export.runtimes.ort.prepacked import prepacked_copy
from tests.bench.memory import AnonymousPeak, status_bytes

PROMPT = 32


def main(folder: Path, cache: str, spin: bool, threads: int, tokens: int) -> None:
    """Print what this run took."""
    before = status_bytes("RssAnon")
    with AnonymousPeak() as anonymous:
        start = time.perf_counter()
        copy = None
        if cache != "-":
            copy = prepacked_copy(folder, Path(cache), lambda text: print(text, file=sys.stderr))
        model = OnnxModel(folder, threads=threads, prepacked=copy, spin=spin)
        opened = time.perf_counter()
        ids = np.arange(PROMPT, dtype=np.int64) * 37 % model.vocab_size
        logits = model.forward(ids)
        digest = hashlib.sha256(logits.tobytes())
        seconds = []
        for _ in range(tokens):
            token = np.array([int(logits[-1].argmax())])
            began = time.perf_counter()
            logits = model.forward(token, last=True)
            seconds.append(time.perf_counter() - began)
            digest.update(logits.tobytes())
    rollup = Path("/proc/self/smaps_rollup").read_text()
    pages = {key: int(kb) * 1024 for key, kb in re.findall(r"^(\w+): +(\d+) kB", rollup, re.M)}
    found = {
        "start_bytes": before,
        "peak_anonymous_bytes": anonymous.peak,
        "anonymous_bytes": pages["Anonymous"],
        "file_bytes": pages["Rss"] - pages["Anonymous"],
        "open_seconds": opened - start,
        "tokens_per_second": 1 / float(np.median(seconds)),
        "cpu_seconds": time.process_time(),
        "logits": digest.hexdigest(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    place, where, wait, count, length = sys.argv[1:]
    main(Path(place), where, wait == "spin", int(count), int(length))
