"""The same input, options and versions give the same bytes, wherever and however it is run."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.packages import narrow
from tests.kit.paths import ROOT


@pytest.mark.slow
def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    """Other folders, TMPDIR, hash seed, current folder and threads of torch; other file times."""
    text = (
        "def mean(values):\n    return sum(values) / len(values)\n\nint main(void) { return 0; }\n"
    )
    for number, name in enumerate(("one", "two")):
        place = tmp_path / name
        (place / "tmp").mkdir(parents=True)
        shutil.copytree(narrow(), place / "source", copy_function=shutil.copyfile)
        (place / "text.txt").write_text(text * 20, "utf-8")
        command = ["export", "source" if number else place / "source", "-o", place / "out"]
        command += ["--to", "gguf:q4_0", "--to", "gguf:iq4_nl", "--to", "onnx:int4"]
        command += ["--calibration", "text.txt" if number else place / "text.txt"]
        command += ["--keep", "6", "--heldout-tokens", "64"]
        environment = os.environ | {
            "PYTHONHASHSEED": str(number + 1),
            "TMPDIR": str(place / "tmp"),
            "OMP_NUM_THREADS": str(number + 1),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-m", "emo_export", *map(str, command)],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (0, 1, 4), done.stderr
    one, two = tmp_path / "one" / "out", tmp_path / "two" / "out"
    files = [p.relative_to(one) for p in one.rglob("*") if p.is_file()]
    assert {p.relative_to(two) for p in two.rglob("*") if p.is_file()} == set(files)
    assert {"golden.npz", "manifest.json", "imatrix.gguf"} <= {str(path) for path in files}
    differ = [path for path in files if not filecmp.cmp(one / path, two / path, shallow=False)]
    assert differ == []
