"""Devices whose runs are processes of this machine, so that their memory is seen from outside."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.base.child_process import child_environment
from emo_export.base.disk import writing
from emo_export.base.llama_library import LIBRARY
from emo_export.base.scratch import Scratch
from emo_export.errors import EmoExportError
from emo_export.files.target_entry import TargetEntry
from emo_export.parity.result import HERE
from emo_export.runtimes.devices.device import Finished
from emo_export.runtimes.devices.emulated.emulation import Emulation
from emo_export.runtimes.devices.memory.cap import MemoryFound, run_capped
from emo_export.runtimes.devices.options import EMULATED
from emo_export.runtimes.devices.profiles import Profile
from emo_export.runtimes.devices.source_zip import runtime_zip
from emo_export.runtimes.families import LIGHT

MODULE = "emo_export.runtimes.devices.far.on_device"
MEMORY_RUN = "emo_export.runtimes.devices.far.memory_run"


class WatchedDevice:
    """Runs on this machine; nothing of it outlives `close`.

    `start` makes a command line of what follows `python`, and of a folder that is there until
    `close`. Of the kind "emulated" it starts qemu, whose own memory is told apart.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        start: Callable[[Path, Sequence[str]], list[str]],
        environment: Mapping[str, str],
        facts: Mapping[str, str],
    ) -> None:
        """Makes the folder."""
        self.name, self.kind, self.environment = name, kind, environment
        self.emulated = kind == EMULATED
        self.profile = name if self.emulated else ""
        self._start, self._facts = start, facts
        self._folder = Scratch("device")
        self._models: Mapping[str, Sequence[Path]] = {}
        self._found: MemoryFound | None = None

    def place(self, folder: Path, targets: Mapping[str, TargetEntry]) -> str:
        """Nothing is copied: the process reads the package where it is."""
        self._models = {
            spec: LIGHT[entry.spec.family].files(folder / entry.path)
            for spec, entry in targets.items()
        }
        return str(folder.resolve())

    def run(self, arguments: Sequence[str]) -> Finished:
        """Run on_device. Raises EmoExportError when it can't be started."""
        command = self.command_line(["-m", MODULE, *arguments])
        models = self._models[arguments[1]]
        finished, self._found = run_capped(command, self.environment, None, models, self.emulated)
        return finished

    def facts(self) -> Mapping[str, str]:
        """What was known before: versions, and which CPU is emulated."""
        return self._facts

    def memory(self) -> Mapping[str, Any] | None:
        """What the last run held, an emulator's share apart; None before one."""
        return None if self._found is None else self._found.as_dict()

    def command_line(self, arguments: Sequence[str]) -> list[str]:
        """What starts Python there with these arguments."""
        return self._start(self._folder.path, arguments)

    def command(self, arguments: Sequence[str]) -> str:
        """The command line of `run`; a folder in it goes with `close`."""
        return shlex.join(self.command_line(["-m", MODULE, *arguments]))

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        self._folder.close()


def emulated_device(profile: Profile, emulation: Emulation) -> WatchedDevice:
    """A profile of device: the arm64 builds of the engines under qemu-user, with its CPU model.

    Engines choose kernels by the CPU features that qemu gives to the process, so the figures are
    the device's own. The speed is not: emulation is some hundreds of times slower.
    """
    runtime = runtime_zip([MODULE, MEMORY_RUN])

    def start(folder: Path, arguments: Sequence[str]) -> list[str]:
        if os.pathsep in str(folder):  # PYTHONPATH has no way to write it
            raise EmoExportError(
                f"{folder}: a {os.pathsep} in a path is more than Python's search path can take; "
                "set TMPDIR to another folder"
            )
        path = folder / "runtime.zip"
        if not path.exists():
            with writing(path):
                path.write_bytes(runtime)
        environment = {
            "PYTHONPATH": str(path),
            "PYTHONDONTWRITEBYTECODE": "1",
            LIBRARY: str(emulation.libllama),
        }
        return emulation.command(profile.cpu, environment, *arguments)

    versions = {name: str(version) for name, version in emulation.versions.items()}
    facts = {
        **versions,
        "emulation": f"qemu-aarch64 -cpu {profile.cpu} ({profile.title})",
        "engine of onnx": f"onnxruntime {versions['onnxruntime']}",
        "engine of gguf": f"llama.cpp {versions['llama.cpp']}",
    }
    return WatchedDevice(profile.name, EMULATED, start, dict(os.environ), facts)


def this_machine() -> WatchedDevice:
    """The engines of this machine, in a process of their own."""

    def start(folder: Path, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-P", *arguments]

    facts = {"interpreter": sys.executable}
    return WatchedDevice(HERE, HERE, start, child_environment(), facts)
