"""Exported packages that several test modules share; each is made once for all test processes."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

from tests.kit.exporting import workspace

SMALL_TARGETS = ("gguf:f32", "onnx:f32")
DEVICE_TARGETS = ("gguf:q4_0", "gguf:q8_0", "onnx:int4", "onnx:int8")


@functools.cache
def package(checkpoint: Path, targets: tuple[str, ...], *options: str) -> Path:
    """A folder that the command line exported, golden.npz included. Not to be changed."""
    folder = workspace() / "-".join([checkpoint.name, *targets, *options]).replace(":", "_")
    wanted = [text for target in targets for text in ("--to", target)]
    command = [sys.executable, "-m", "emo_export.cli.main", "export", str(checkpoint)]
    done = subprocess.run(
        [*command, "-o", str(folder), *wanted, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the package of {checkpoint} was not made:\n{done.stderr}")
    return folder
