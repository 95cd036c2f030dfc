"""Copies of prepacked weights: a process that makes one, and what it may leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emo_export.runtimes.ort import prepacked

CHILD = """
import sys
from pathlib import Path
from emo_export.runtimes.ort.prepacked import prepacked_copy
folder, cache, group = sys.argv[1:]
say = lambda text: print(text, file=sys.stderr)
print(prepacked_copy(Path(folder), Path(cache), say, int(group)))
"""


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def unfinished(cache: Path) -> list[Path]:
    return list(cache.glob(f"{prepacked.UNFINISHED}*"))


def silent(text: str) -> None:
    raise AssertionError(f"said {text!r}")
