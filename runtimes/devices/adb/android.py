"""A phone over adb, to validate on: package, Python and engines go there, reports come back.

Nothing on the phone is needed but its shell: CPython, numpy and the engines go there as one
self-contained folder of arm64 Linux (the one that emulated devices run from), started by its own
dynamic loader, so that Android's C library plays no part. Everything lies in one folder that the
shell's user may write to; package and Python stay there for the next time, `clean_adb` removes
them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.base.scratch import Scratch
from emo_export.errors import EmoExportError
from emo_export.files.target_entry import TargetEntry
from emo_export.runtimes.devices.adb.adb import Adb
from emo_export.runtimes.devices.adb.root import PhoneRoot
from emo_export.runtimes.devices.adb.store import CACHE, AdbStore
from emo_export.runtimes.devices.device import Finished
from emo_export.runtimes.devices.emulated.emulation import Emulation
from emo_export.runtimes.devices.source_zip import runtime_zip
from emo_export.runtimes.devices.transfer import Say, send_package

PYTHON = "EMO_EXPORT_ADB_PYTHON"
FAR_SIDE = "emo_export.runtimes.devices.far.on_device"
OLDEST = (3, 11)
OLD_DAYS = "+1"  # find's: two days and more; no run takes that long
ABOUT = (
    ("phone", "ro.product.model"),
    ("android", "ro.build.version.release"),
    ("chip", "ro.soc.model"),
)


class AdbDevice:
    """The phone with this serial number, or the only one that adb sees.

    `runtime`: the zip of our light runtime. `root`: makes the self-contained Python, asked for only
    when $EMO_EXPORT_ADB_PYTHON doesn't say how Python starts on the phone. `say` is told progress.
    Raises MissingDependencyError without adb, EmoExportError for a phone that can't be used.
    """

    kind = "adb"
    profile = "phone"

    def __init__(
        self, serial: str | None, runtime: bytes, root: Callable[[], PhoneRoot], say: Say
    ) -> None:
        self._adb = Adb(serial)
        self._store, self._say = AdbStore(self._adb), say
        self.name = self._store.name
        self._facts = self._checked_machine()
        self._runtime, self._root = runtime, root
        self._session = f"{CACHE}/run-{uuid.uuid4().hex[:12]}"
        self._start: tuple[str, ...] = ()

    def _checked_machine(self) -> dict[str, str]:
        """What kind of phone it is. Raises EmoExportError when it is not 64-bit Arm."""
        script = "; ".join(["uname -m", *(f"getprop {key}" for _, key in ABOUT)])
        lines = self._adb.checked_shell(script, "tell what it is").splitlines()
        machine, *told = (line.strip() for line in lines)
        if machine not in ("aarch64", "arm64"):
            raise EmoExportError(
                f"{self.name} runs {machine or 'unknown'} code, our engines need a 64-bit Arm "
                "phone (aarch64); an x86-64 emulator tells nothing that validating here does not"
            )
        known = {name: text for (name, _), text in zip(ABOUT, told, strict=False) if text}
        return {**known, "adb": self._adb.version()}

    def place(self, folder: Path, targets: Mapping[str, TargetEntry]) -> str:
        """Bring these targets of a package, Python and our runtime there -> the package's path.

        Only files whose SHA-256 there is another are sent.
        Raises EmoExportError when a file is missing here or there is too little room there.
        """
        root = None if PYTHON in os.environ else self._root()
        fresh = root is not None and self._lacks(root)
        beside = len(self._runtime) + (root.bytes_needed if root is not None and fresh else 0)
        there = send_package(self._store, folder, targets, self._say, beside)
        self._place_runtime(root if fresh else None)
        self._start = self._python(root)
        self._facts |= self._checked_python()
        return there

    def run(self, arguments: Sequence[str]) -> Finished:
        """Run the far side with these arguments; it is ended when we are interrupted.

        Raises EmoExportError when the connection ends meanwhile.
        """
        words = [*self._start, "-m", FAR_SIDE, *arguments]
        # The shell becomes Python, whose number is then known whatever happens to the connection.
        inner = f"echo $$ > {self._session}/pid; exec {shlex.join(words)}"
        try:
            return self._adb.shell(f"cd {self._session} && exec sh -c {shlex.quote(inner)}")
        except BaseException:
            self._end()
            raise

    def facts(self) -> Mapping[str, str]:
        """What phone it is, and which Python is there."""
        return dict(self._facts)

    def memory(self) -> Mapping[str, Any] | None:
        """Not looked at: the shell's user may not make a cgroup."""
        return None

    def command(self, arguments: Sequence[str]) -> str:
        """The command line that runs the far side once more while its files are there."""
        words = shlex.join([*self._start, "-m", FAR_SIDE, *arguments])
        return shlex.join(["adb", "-s", self._adb.phone.serial, "shell", words])

    def close(self) -> None:
        """End what runs there and remove everything but package and Python; may be called again."""
        self._end()
        with contextlib.suppress(EmoExportError):  # the phone is gone, or was before
            self._adb.shell(f"rm -rf {self._session}")

    def _end(self) -> None:
        with contextlib.suppress(EmoExportError):
            self._adb.shell(f"cd {self._session} && kill -9 $(cat pid) 2>/dev/null; rm -f pid")

    def _lacks(self, root: PhoneRoot) -> bool:
        return self._adb.shell(f"[ -e {CACHE}/{root.name}/{root.ready} ]").code != 0

    def _place_runtime(self, root: PhoneRoot | None) -> None:
        """Bring our zip there, and Python, which gets its name when it is whole."""
        packed, part = f"{self._session}/root.tar", f"{self._session}/root"
        # What a process left here that was killed with no time to tidy up.
        old = f"find {CACHE} -maxdepth 1 -name 'run-*' -mtime {OLD_DAYS} -exec rm -rf {{}} +"
        make = f"umask 022; {old}; mkdir -p {part}"
        self._adb.checked_shell(make, f"make the folder {self._session}")
        with Scratch("phone") as folder:
            local = folder / "runtime.zip"
            local.write_bytes(self._runtime)
            self._store.put(local, f"{self._session}/runtime.zip")
            if root is None:
                return
            root.pack(folder / "root.tar")
            self._store.put(folder / "root.tar", packed)
        script = (
            f"umask 022; tar -xf {packed} -C {part} && rm -f {packed} && "
            f"rm -rf {CACHE}/python-* && mv {part} {CACHE}/{root.name}"
        )
        self._adb.checked_shell(script, "unpack Python")

    def _python(self, root: PhoneRoot | None) -> tuple[str, ...]:
        """The words that start Python there with our runtime on its path."""
        path = f"{self._session}/runtime.zip"
        words = shlex.split(os.environ[PYTHON]) if root is None else []
        settings = {"HOME": self._session, "TMPDIR": self._session, "PYTHONUTF8": "1"}
        settings["PYTHONDONTWRITEBYTECODE"] = "1"
        if root is not None:
            place = f"{CACHE}/{root.name}"
            words, path = root.start(place), f"{path}:{root.module_path(place)}"
            settings |= root.settings(place)
        settings["PYTHONPATH"] = path
        return ("env", *(f"{key}={value}" for key, value in settings.items()), *words, "-s", "-P")

    def _checked_python(self) -> dict[str, str]:
        """What Python there is. Raises EmoExportError when it doesn't start or is too old."""
        script = (
            "import json, sys, numpy; "
            "print(json.dumps([list(sys.version_info[:3]), numpy.__version__]))"
        )
        done = self._adb.shell(shlex.join([*self._start, "-c", script]))
        if done.code != 0:
            how = f"signal {-done.code}" if done.code < 0 else f"code {done.code}"
            said = (done.stderr.strip() or done.stdout.strip())[-300:]
            raise EmoExportError(f"{self.name}: Python does not start there ({how}): {said}")
        version, numpy = json.loads(done.stdout.strip().splitlines()[-1])
        shown = ".".join(map(str, version))
        if tuple(version) < OLDEST:
            raise EmoExportError(
                f"{self.name}: Python {shown} is too old, it takes {'.'.join(map(str, OLDEST))}; "
                f"unset {PYTHON} to send a newer one there"
            )
        whose = f"from {PYTHON}" if PYTHON in os.environ else "sent from here"
        return {"python": f"{shown}, {whose}", "numpy": numpy}


def open_adb(device: str, emulation: Callable[[], Emulation], say: Say) -> AdbDevice:
    """The phone of `adb` or `adb:SERIAL`, on which Python and the engines of `emulation` run.

    `emulation` is called when the phone is there and needs them.
    """
    runtime = runtime_zip([FAR_SIDE])
    return AdbDevice(_serial_of(device), runtime, lambda: PhoneRoot.of(emulation()), say)


def clean_adb(device: str) -> tuple[list[str], int]:
    """Remove everything of ours from the phone of `adb` or `adb:SERIAL`.

    Answers the paths there, none where nothing was, and the bytes on its disk.
    Raises EmoExportError when the phone can't be used.
    """
    script = f"[ -e {CACHE} ] || exit 0; du -sk {CACHE} && rm -rf {CACHE}"
    said = Adb(_serial_of(device)).checked_shell(script, f"remove {CACHE}").split()
    return ([CACHE], int(said[0]) * 1024) if said else ([], 0)


def _serial_of(device: str) -> str | None:
    """Raises EmoExportError for `adb:` without a serial number."""
    _, colon, serial = device.partition(":")
    if colon and not serial:
        raise EmoExportError(f"{device}: expected adb or adb:SERIAL")
    return serial or None
