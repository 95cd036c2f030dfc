"""Everything that runs arm64 Python on this machine, and the command line that does it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What this machine's programs are told must not reach the emulated ones, or qemu itself.
DROPPED = ("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "GGML_BACKEND_PATH")
DROPPED_FAMILIES = ("QEMU_", "PYTHON")  # QEMU_GDB waits for a debugger, QEMU_LOG fills the disk


@dataclass(frozen=True)
class Version:
    """What something is, whether that is what was pinned, and what else there is to say of it."""

    text: str
    pinned: bool = True
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


@dataclass(frozen=True)
class Emulation:
    """Real arm64 programs, and qemu which runs them on this machine.

    Fields: `root` holds `python` (an arm64 ELF file) and its libraries; `site` its packages (numpy,
    onnxruntime, tokenizers); `libllama` llama.cpp's library, beside which ggml's kernels for each
    kind of CPU lie; `versions` what all that is.
    """

    qemu: Path
    root: Path
    python: Path
    site: Path
    libllama: Path
    versions: Mapping[str, Version]

    def command(self, cpu: str, environment: Mapping[str, str], *arguments: str) -> list[str]:
        """What runs the emulated Python on a `cpu` of qemu's with `arguments`.

        `environment` is added to this process's; its PYTHONPATH is searched before `site`. The
        folder that it is called in, and the user's own packages, are not searched.
        """
        paths = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(self.site)]))
        # Not qemu's own -E and -U, which take a comma for the end of a variable.
        settings = [
            f"{key}={value}" for key, value in (dict(environment) | {"PYTHONPATH": paths}).items()
        ]
        found = {name for name in os.environ if name.startswith(DROPPED_FAMILIES)}
        dropped = [word for name in sorted({*DROPPED, *found}) for word in ("-u", name)]
        emulator = [str(self.qemu), "-cpu", cpu, "-L", str(self.root)]
        python = [str(self.python), "-s", "-P"]
        return ["/usr/bin/env", *dropped, *settings, *emulator, *python, *arguments]
