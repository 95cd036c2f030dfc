"""llama.cpp's own tools (llama-quantize, llama-imatrix, …), set up in a cache as an ordinary user.

They are Debian sid's packages, fetched with an apt state of their own from the mirror that this
machine's apt uses, checked against Debian's keys, unpacked without being installed, and started
with their own dynamic loader, so that they run on older systems too.

    python -m tests.llama_tools llama-quantize --help

Needs apt-get and dpkg-deb on x86-64. EMO_EXPORT_LLAMA_TOOLS names another folder for them,
EMO_EXPORT_DEBIAN_MIRROR another mirror (on a system whose apt knows none of Debian).
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUITE = "sid"
PACKAGES = ("llama.cpp-tools", "llama.cpp-tools-extra")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FOLDER, MIRROR = "EMO_EXPORT_LLAMA_TOOLS", "EMO_EXPORT_DEBIAN_MIRROR"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
LOADER = "ld-linux-x86-64.so.2"
VERSION = "VERSION"  # written last: a folder that has it is whole

# Hooks of the machine's own apt must not run: they tidy the machine's caches, not ours.
APT_CONF = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Debug::NoLocking "1";
Dir::Cache "{state}/cache";
Dir::State "{state}/state";
Dir::State::lists "{state}/state/lists";
Dir::State::status "{state}/status";
Dir::Etc::sourcelist "{state}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""


class ToolsError(RuntimeError):
    """The tools can't be set up here, or one of them failed."""


@dataclass(frozen=True)
class LlamaTools:
    """The unpacked packages and Debian's version of them."""

    root: Path
    version: str

    def command(self, name: str, *arguments: object) -> list[str]:
        """What starts a tool, such as `llama-quantize`."""
        libraries = self.root / LIBRARIES
        path = f"{libraries}:{libraries / 'llama'}"
        loader = [str(libraries / LOADER), "--library-path", path]
        return [*loader, str(self.root / "usr/bin" / name), *map(str, arguments)]

    def run(
        self, name: str, *arguments: object, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a tool to its end, with nothing on its stdin. Raises ToolsError when it fails."""
        done = subprocess.run(
            self.command(name, *arguments),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=_environment(),
            timeout=timeout,
            check=False,
        )
        if done.returncode != 0:
            shown = " ".join([name, *map(str, arguments)])
            raise ToolsError(f"{shown}: exit {done.returncode}\n{_tail(done, 20)}")
        return done


def unavailable() -> str | None:
    """Why this machine can never have the tools and how to get them, or None."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return (
            f"llama.cpp's tools are set up from Debian's amd64 packages, and this is "
            f"{sys.platform} on {platform.machine()}; run this test on x86-64 Linux"
        )
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        return (
            f"llama.cpp's tools are unpacked from Debian packages, which needs "
            f"{' and '.join(missing)}; install apt and dpkg, or run this test on Debian"
        )
    return None


@functools.cache
def tools() -> LlamaTools:
    """The tools, set up when they are asked for the first time (about 20 MB, some seconds).

    Raises ToolsError saying what is missing.
    """
    place = _place()
    if not (place / VERSION).is_file():
        reason = unavailable()
        if reason is not None:
            raise ToolsError(reason)
        place.parent.mkdir(parents=True, exist_ok=True)
        _set_up(place)
    version = (place / VERSION).read_text("utf-8").strip()
    print(f"llama.cpp's tools: Debian {version}, in {place}", file=sys.stderr)
    return LlamaTools(place, version)


def _place() -> Path:
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "emo-export-tests" / "llama-tools"


def _environment() -> dict[str, str]:
    """Without what would make the tools load something else than their own libraries."""
    dropped = ("GGML_BACKEND_PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
    return {key: value for key, value in os.environ.items() if key not in dropped}


def _set_up(place: Path) -> None:
    """Make the folder beside its place, then give it its name in one step."""
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as name:
        work = Path(name)
        packages = _download(work / "apt")
        root = work / "root"
        for package in packages:
            _checked(["dpkg-deb", "-x", str(package), str(root)])
        # ggml looks for the kernels of each kind of CPU beside the program that was started, which
        # is the loader, and takes the best that this CPU can run.
        for kernels in (root / LIBRARIES / "ggml").glob("backends*/*.so"):
            link = root / LIBRARIES / kernels.name
            link.symlink_to(kernels.relative_to(link.parent))
        (root / VERSION).write_text(_version(packages) + "\n", "utf-8")
        try:
            root.rename(place)
        except OSError:
            if not (place / VERSION).is_file():  # else another process was faster
                raise


def _download(state: Path) -> list[Path]:
    """The packages and all that they depend on, from the first mirror that has them."""
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    (state / "apt.conf").write_text(APT_CONF.format(state=state), "utf-8")
    apt = ["apt-get", "-c", str(state / "apt.conf")]
    options = f"arch=amd64 signed-by={KEYRING}" if KEYRING.is_file() else "arch=amd64"
    failures = []
    for mirror in _mirrors():
        (state / "sources.list").write_text(f"deb [{options}] {mirror} {SUITE} main\n", "utf-8")
        update = _apt([*apt, "update"], state)
        wanted = ["install", "--download-only", "--no-install-recommends", "-y", *PACKAGES]
        install = _apt([*apt, *wanted], state)
        if install.returncode == 0:
            return sorted((state / "cache/archives").glob("*.deb"))
        failures.append(f"{mirror}:\n{_tail(update, 4)}\n{_tail(install, 4)}")
    raise ToolsError(
        f"no mirror gave Debian {SUITE}'s {' and '.join(PACKAGES)}. Needed: network access, and a "
        f"Debian mirror in apt's sources or in {MIRROR}; for a signature that can't be checked, a "
        f"newer debian-archive-keyring\n" + "\n".join(failures)
    )


def _mirrors() -> list[str]:
    """The archives that this machine's apt reads, without the suites."""
    if MIRROR in os.environ:
        return [os.environ[MIRROR]]
    listed = subprocess.run(
        ["apt-get", "-o", "Debug::NoLocking=1", "--print-uris", "update"],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"^'([^']+)/dists/", listed.stdout, re.MULTILINE)
    if not found:
        raise ToolsError(
            f"apt names no mirror on this machine ({_tail(listed, 2)}); set {MIRROR} to the "
            "address of a Debian mirror"
        )
    return list(dict.fromkeys(found))


def _version(packages: Sequence[Path]) -> str:
    """`llama.cpp-tools_1%3a0.7.0+dfsg-2_amd64.deb` -> `0.7.0+dfsg-2`."""
    names = [p.name for p in packages if p.name.startswith(f"{PACKAGES[0]}_")]
    return names[0].split("_")[1].rpartition("%3a")[2]


def _apt(command: Sequence[str], state: Path) -> subprocess.CompletedProcess[str]:
    """Run apt with its temporary files in our folder: it may not be able to write to /tmp."""
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(state)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def _checked(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolsError(f"{' '.join(command)}: exit {done.returncode}\n{_tail(done, 4)}")


def _tail(done: subprocess.CompletedProcess[str], lines: int) -> str:
    """The last lines of what a program said."""
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-lines:])


def _main(arguments: Sequence[str]) -> int:
    """Run one tool in the foreground."""
    found = tools()
    if not arguments:
        print("\n".join(sorted(p.name for p in (found.root / "usr/bin").glob("llama-*"))))
        return 0
    return subprocess.run(found.command(*arguments), env=_environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
