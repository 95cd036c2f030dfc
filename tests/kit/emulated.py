"""The emulated devices of the tests, set up once in a cache of their own (150 MB are fetched).

EMO_EXPORT_DEVICES names another folder for them.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from emo_export.runtimes.devices.emulated.emulation import Emulation
from emo_export.runtimes.devices.emulated.place import SETTING
from emo_export.runtimes.devices.emulated.setup import emulation

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
DEVICES = Path(os.environ.get(SETTING) or CACHE / "emo-export-tests" / "devices")


def use_shared_setup() -> None:
    """Let this process and its children use the setup of the tests."""
    os.environ[SETTING] = str(DEVICES)


@functools.cache
def emulated(onnxruntime: str | None = None) -> Emulation:
    """The engines of the tests; the network is used the first time."""
    use_shared_setup()
    return emulation(onnxruntime=onnxruntime, on_stage=lambda text: print(text, file=sys.stderr))
