"""llama.cpp's own tools (llama-quantize, llama-imatrix, …), set up in a cache as an ordinary user.

They are Debian sid's packages (see debian_packages.py), started with their own dynamic loader, so
that they run on older systems too.

    python -m tests.kit.llama_tools llama-quantize --help

Needs apt-get and dpkg-deb on x86-64. EMO_EXPORT_LLAMA_TOOLS names another folder for them.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kit.debian_packages import ToolsError, download, missing_programs, tail, unpack

SUITE = "sid"
PACKAGES = ("llama.cpp-tools", "llama.cpp-tools-extra")
FOLDER = "EMO_EXPORT_LLAMA_TOOLS"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
LOADER = "ld-linux-x86-64.so.2"
VERSION = "VERSION"  # written last: a folder that has it is whole


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
            raise ToolsError(f"{shown}: exit {done.returncode}\n{tail(done, 20)}")
        return done


def unavailable() -> str | None:
    """Why this machine can never have the tools and how to get them, or None."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return (
            f"llama.cpp's tools are set up from Debian's amd64 packages, and this is "
            f"{sys.platform} on {platform.machine()}; run this test on x86-64 Linux"
        )
    missing = missing_programs()
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
        packages = download(work / "apt", SUITE, PACKAGES)
        root = work / "root"
        for package in packages:
            unpack(package, root)
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


def _version(packages: Sequence[Path]) -> str:
    """`llama.cpp-tools_1%3a0.7.0+dfsg-2_amd64.deb` -> `0.7.0+dfsg-2`."""
    names = [p.name for p in packages if p.name.startswith(f"{PACKAGES[0]}_")]
    return names[0].split("_")[1].rpartition("%3a")[2]


def _main(arguments: Sequence[str]) -> int:
    """Run one tool in the foreground."""
    found = tools()
    if not arguments:
        print("\n".join(sorted(p.name for p in (found.root / "usr/bin").glob("llama-*"))))
        return 0
    return subprocess.run(found.command(*arguments), env=_environment(), check=False).returncode


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
