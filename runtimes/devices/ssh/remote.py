"""A machine at the other end of ssh as a device that packages are judged on.

What stays there is `~/.cache/emo-export`: copies of packages, so that only what changed is sent the
next time, and the environments that `--setup` made. `clean_remote` removes both.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.base.engine_packages import requirements_for
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.target_entry import TargetEntry
from emo_export.parity.result import Crash
from emo_export.runtimes.devices.device import Finished, answer_of
from emo_export.runtimes.devices.source_zip import runtime_zip
from emo_export.runtimes.devices.ssh.address import Address, parse_address
from emo_export.runtimes.devices.ssh.link import SshLink
from emo_export.runtimes.devices.ssh.probe import choose_python
from emo_export.runtimes.devices.ssh.store import SshStore
from emo_export.runtimes.devices.transfer import Say, send_package

FAR_SIDE = "emo_export.runtimes.devices.far.side"
ON_DEVICE = "emo_export.runtimes.devices.far.on_device"
BENCH = "emo_export.runtimes.devices.far.on_device_bench"


class SshDevice:
    """`ssh://[user@]host[:port]`. Connects when a package is placed.

    `setup`: make a virtual environment there with the engines. `say` is told what goes on. Close
    it, whatever happens: that ends what runs there.
    """

    kind = "ssh"

    def __init__(self, url: str, say: Say, *, setup: bool = False) -> None:
        """Raises EmoExportError when the URL is not of the form."""
        self.address = parse_address(url)
        self.name = str(self.address)
        self._say, self._setup = say, setup
        self._link: SshLink | None = None
        self._python = ""
        self._facts: dict[str, str] = {}
        self.profile = ""  # known when connected

    def place(self, folder: Path, targets: Mapping[str, TargetEntry]) -> str:
        """Copy what judging these targets needs; answers the folder's path there.

        Raises EmoExportError or MissingDependencyError when the machine there won't do, has no
        room, or lacks an engine: all before anything is copied.
        """
        link = self._connected()
        kinds = sorted({entry.spec.family for entry in targets.values()})
        self._find_engines(link, kinds)
        return send_package(SshStore(link), folder, targets, self._say)

    def run(self, arguments: Sequence[str]) -> Finished:
        """`on_device` there, with these arguments. Raises EmoExportError for a lost connection."""
        return self._run_module(ON_DEVICE, arguments)

    def speed(self, spec: str, path: str, settings: Mapping[str, int | str]) -> dict[str, Any]:
        """What `on_device_bench` says of a target: load_seconds, *_tokens_per_second, memory, ….

        `path`: of its file or folder there. `settings` are options: prefill, decode and depth
        (tokens), rounds, threads, kv-cache. Raises EmoExportError when the run fails there, its
        engine crashes, or the connection is lost.
        """
        options = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        finished = self._run_module(BENCH, [path, *options])
        answer = answer_of(f"{self.name}: {spec}", finished, "measuring")
        if isinstance(answer, Crash):
            raise EmoExportError(f"{self.name}: {spec}: ended by {answer.name}: {answer.said}")
        return answer

    def facts(self) -> Mapping[str, str]:
        """What the machine there is and has; empty before a package was placed."""
        return self._facts

    def memory(self) -> None:
        """None: nobody looks at the memory of a run there."""

    def command(self, arguments: Sequence[str]) -> str:
        """What repeats a run on the machine there, in a checkout or with emo-export installed."""
        return shlex.join([self._python or "python3", "-m", ON_DEVICE, *arguments])

    def close(self) -> None:
        """End what runs there and remove all but the package and the environment."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _connected(self) -> SshLink:
        if self._link is None:
            self._say(f"connecting to {self.name}")
            self._link = _open_link(self.address, (FAR_SIDE, ON_DEVICE, BENCH))
            found = self._link.ask({"do": "facts"})
            self.profile = profile_for(self._link.probe.machine, found["features"])
            self._facts = {
                **found["machine"],
                "memory": f"{found['memory'] / 1e6:.0f} MB",
                "ssh": _ssh_version(self._link.command),
            }
        return self._link

    def _find_engines(self, link: SshLink, kinds: Sequence[str]) -> None:
        if self._setup:
            self._say(f"looking for an environment on {self.name}, making one if there is none")
        found = link.ask({"do": "engines", "kinds": kinds, "setup": self._setup})
        if found["lacking"]:
            wanted = " ".join(f'"{line}"' for line in requirements_for(kinds))
            raise MissingDependencyError(
                f"{self.name}: {found['python']} there lacks {', '.join(found['lacking'])}; add "
                f"--setup, which makes a virtual environment there, or install it there: pip "
                f"install {wanted}"
            )
        self._python = found["python"]
        self._facts |= {name: str(version) for name, version in found["versions"].items()}

    def _run_module(self, module: str, arguments: Sequence[str]) -> Finished:
        if self._link is None or not self._python:
            raise EmoExportError(f"{self.name}: no package has been placed")
        # -P: the folder that it runs in is no place for modules.
        line = ["-P", "-m", module, *arguments]
        done = self._link.ask({"do": "run", "python": self._python, "arguments": line})
        return Finished(done["code"], done["stdout"], done["stderr"])


def profile_for(machine: str, features: Sequence[str]) -> str:
    """The profile whose kernels the engines choose on this CPU, for its limits; empty on x86-64.

    `features` are names of HWCAP bits, as `machine.features` gives them.
    """
    if machine != "aarch64":
        return ""
    if "sve2" in features:
        return "phone"
    if "sve" in features:
        return "server-arm"
    if "i8mm" in features:
        return "phone"
    return "pi5" if "asimddp" in features else "pi4"


def clean_remote(url: str) -> tuple[list[str], int]:
    """Remove all that emo-export keeps on a machine; answers the paths there and their bytes.

    Raises EmoExportError when it can't be reached, or another emo-export is at work there.
    """
    link = _open_link(parse_address(url), (FAR_SIDE,))
    try:
        done = link.ask({"do": "clean"})
        return list(done["removed"]), int(done["bytes"])
    finally:
        link.close()


def _open_link(address: Address, modules: Sequence[str]) -> SshLink:
    """A connection with our far side running, in a Python that will do."""
    link = SshLink(address)
    try:
        link.start(choose_python(link.name, link.probe), runtime_zip(modules))
    except BaseException:
        link.close()
        raise
    return link


def _ssh_version(command: Sequence[str]) -> str:
    done = subprocess.run([*command, "-V"], capture_output=True, text=True, check=False)
    return done.stderr.strip().partition(",")[0] or "unknown"
