"""The arm64 engines: wheels by pip or uv of this machine, llama.cpp with the kernels of every CPU.

The latter is from the npm package of node-llama-cpp.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.emulated.fetch import Progress, run
from emo_export.runtimes.devices.emulated.pins import Pin

# pip does not take 2_28 to cover older ones when it is asked for another platform's wheels.
PLATFORMS = (
    *(f"manylinux_2_{minor}_aarch64" for minor in range(28, 16, -1)),
    "manylinux2014_aarch64",
)
UV_PLATFORM = "aarch64-manylinux_2_28"
# What a user's settings could do to these calls: a home install, a refusal outside of a venv.
SETTINGS = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
# What this machine's own environment is held to says nothing of a device's.
SETTINGS |= {"PIP_CONSTRAINT": "", "UV_CONSTRAINT": ""}

REGISTRY = "https://registry.npmjs.org"  # npm's own default
REGISTRY_SETTINGS = ("npm_config_registry", "NPM_CONFIG_REGISTRY")
TIMEOUT = 60  # seconds without a byte
LIBRARIES = re.compile(r"lib(llama|ggml|ggml-base|ggml-cpu(-[\w.]+)?)(\.v[\d.]+)?\.so")
LIBLLAMA = re.compile(r"libllama(\.v[\d.]+)?\.so")
BUILD = "_nlcBuildMetadata.json"


def install_wheels(
    wheels: Sequence[Pin],
    unpinned: Sequence[str],
    python: str,
    site: Path,
    scratch: Path,
    progress: Progress,
) -> None:
    """Put pinned wheels into `site`, and others (`name==version`) as the package index has them.

    `python` is a version such as "3.13". Raises MissingDependencyError without pip and uv,
    EmoExportError when a wheel can't be had or is not the pinned one.
    """
    pinned = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.digest}" for wheel in wheels]
    for lines, options in ((pinned, ["--require-hashes"]), (unpinned, [])):
        if not lines:
            continue
        shown = ", ".join(line.split()[0].replace("==", " ") for line in lines)
        progress.on_stage(f"fetching arm64 wheels for Python {python}: {shown}")
        (scratch / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")
        common = ["--no-deps", "--only-binary", ":all:", "--target", str(site), *options]
        command = [*installer(python), *common, "-r", str(scratch / "requirements.txt")]
        done = run(command, scratch, SETTINGS)
        if done.code:
            raise EmoExportError(
                f"the arm64 wheels of {shown} could not be installed (network? an index that lacks "
                f"them?):\n{done.tail(6)}"
            )
    progress.on_bytes(sum(wheel.nbytes for wheel in wheels))


def installer(python: str) -> list[str]:
    """`pip install` of this interpreter, else `uv pip install`, for the other platform.

    Raises MissingDependencyError where there is neither.
    """
    if importlib.util.find_spec("pip") is not None:
        tags = [f"--platform={platform}" for platform in PLATFORMS]
        abis = [f"--abi=cp{python.replace('.', '')}", "--abi=abi3", "--abi=none"]
        target = [*tags, *abis, f"--python-version={python}", "--implementation=cp"]
        # pip 23.0, which Debian 12 has, asks it of this Python; the tags say which one it is for.
        target.append("--ignore-requires-python")
        return [sys.executable, "-m", "pip", "install", "-q", "--no-compile", *target]
    uv = shutil.which("uv")
    if uv is None:
        raise MissingDependencyError(
            "the arm64 wheels of emulated devices are fetched by pip or uv, and there is neither: "
            f"{sys.executable} -m ensurepip --upgrade"
        )
    target = [f"--python-platform={UV_PLATFORM}", f"--python-version={python}"]
    return [uv, "pip", "install", "-q", *target, f"--python={sys.executable}"]


def installed(site: Path) -> dict[str, str]:
    """Name -> version of what lies in `site`, by its own metadata."""
    found = metadata.distributions(path=[str(site)])
    return {str(one.name).lower().replace("_", "-"): one.version for one in found}


def fetch_llama(pin: Pin, scratch: Path, progress: Progress) -> Path:
    """Download the package of npm to `scratch`, held to its digest.

    Raises EmoExportError when the registry can't be reached or gives something else.
    """
    registry = npm_registry(scratch)
    url = f"{registry}/{pin.name}/-/{pin.name.rpartition('/')[2]}-{pin.version}.tgz"
    progress.on_stage(f"fetching arm64 llama.cpp: {pin.name} {pin.version} from {registry}")
    file = scratch / "llama.tgz"
    digest = hashlib.sha512()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, file.open("wb") as out:
            while block := answer.read(1 << 16):
                out.write(block)
                digest.update(block)
                progress.on_bytes(len(block))
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        said = getattr(error, "reason", error)
        raise EmoExportError(
            f"{url} could not be fetched ({said}); needed: network access, or another npm registry "
            f"in {REGISTRY_SETTINGS[0]}"
        ) from error
    found = "sha512-" + base64.b64encode(digest.digest()).decode()
    if found != pin.digest:
        raise EmoExportError(f"{url} has the digest {found}, pinned is {pin.digest}; not used")
    return file


def npm_registry(scratch: Path) -> str:
    """The registry that this user's npm asks."""
    given = next(filter(None, map(os.environ.get, REGISTRY_SETTINGS)), None)
    if given is None and shutil.which("npm"):
        command = ["npm", "config", "get", "registry"]
        lines = run(command, scratch, {"npm_config_logs_max": "0"}).out.split()
        given = next((line for line in reversed(lines) if line.startswith("http")), None)
    return (given or REGISTRY).rstrip("/")


def unpack_llama(file: Path, folder: Path) -> str:
    """Unpack the libraries of the C interface -> the version of llama.cpp that they are.

    Raises EmoExportError when the package is damaged or laid out in another way.
    """
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                last = member.name.rpartition("/")[2]
                wanted = member.isfile() and (last == BUILD or LIBRARIES.fullmatch(last))
                if wanted and (content := archive.extractfile(member)):
                    # Only the last part of a name counts, so that nothing lands elsewhere.
                    (folder / last).write_bytes(content.read())
    except tarfile.TarError as error:
        raise EmoExportError(f"{file} can't be unpacked: {error}") from error
    libllama(folder)
    if not (folder / BUILD).is_file():
        raise EmoExportError(f"{file} holds no {BUILD}, which tells the version of llama.cpp")
    build = json.loads((folder / BUILD).read_text("utf-8"))
    return str(build["buildOptions"]["llamaCpp"]["release"])


def libllama(folder: Path) -> Path:
    """The library in a folder, under whatever version it carries in its name."""
    found = [path for path in folder.iterdir() if LIBLLAMA.fullmatch(path.name)]
    if len(found) != 1:
        raise EmoExportError(f"{folder} holds {len(found)} files of the name libllama.so, not one")
    return found[0]
