"""A Python that has Hugging Face transformers beside everything that this one has.

Set up in a cache by pip, since no extra of ours needs transformers.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

CACHE = Path.home() / ".cache" / "emo-export-tests" / "transformers-5"
READY = "READY"  # written last: a folder that has it is whole
WANTED = "transformers>=5,<6"


def transformers_python() -> Path:
    """The interpreter of a virtual environment of its own, made when first asked for."""
    python = CACHE / "bin" / "python"
    if (CACHE / READY).is_file() and (CACHE / READY).read_text() == sys.prefix:
        return python
    shutil.rmtree(CACHE, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(CACHE)], check=True)
    inside = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    # Ours are found after its own, so that pip adds only what is missing or of the wrong version.
    ours = sysconfig.get_path("purelib")
    (Path(inside.stdout.strip()) / "ours.pth").write_text(ours + "\n")
    subprocess.run([python, "-m", "pip", "install", "-q", WANTED], check=True)
    (CACHE / READY).write_text(sys.prefix)
    return python
