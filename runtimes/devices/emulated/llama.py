"""llama.cpp for arm64 with the kernels of every CPU, from the npm package of node-llama-cpp."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.runtimes.devices.emulated.fetch import Progress, run
from emo_export.runtimes.devices.emulated.pins import Tarball

REGISTRY = "https://registry.npmjs.org"  # npm's own default
REGISTRY_SETTINGS = ("npm_config_registry", "NPM_CONFIG_REGISTRY")
TIMEOUT = 60  # seconds without a byte
LIBRARIES = re.compile(r"lib(llama|ggml|ggml-base|ggml-cpu(-[\w.]+)?)(\.v[\d.]+)?\.so")
LIBLLAMA = re.compile(r"libllama(\.v[\d.]+)?\.so")
BUILD = "_nlcBuildMetadata.json"


def fetch(pin: Tarball, scratch: Path, progress: Progress) -> Path:
    """Download the package to `scratch`, held to its digest.

    Raises EmoExportError when the registry can't be reached or gives something else.
    """
    registry = _registry(scratch)
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
    if found != pin.integrity:
        raise EmoExportError(f"{url} has the digest {found}, pinned is {pin.integrity}; not used")
    return file


def _registry(scratch: Path) -> str:
    """The registry that this user's npm asks."""
    given = next(filter(None, map(os.environ.get, REGISTRY_SETTINGS)), None)
    if given is None and shutil.which("npm"):
        lines = run(
            ["npm", "config", "get", "registry"], scratch, {"npm_config_logs_max": "0"}
        ).out.split()
        given = next((line for line in reversed(lines) if line.startswith("http")), None)
    return (given or REGISTRY).rstrip("/")


def unpack(file: Path, folder: Path) -> str:
    """Unpack the libraries of the C interface -> the version of llama.cpp that they are.

    Raises EmoExportError when the package is damaged or laid out in another way.
    """
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                last = member.name.rpartition("/")[2]
                content = archive.extractfile(member) if member.isfile() and _wanted(last) else None
                if content is not None:
                    # Only the last part of a name counts, so that nothing lands elsewhere.
                    (folder / last).write_bytes(content.read())
    except tarfile.TarError as error:
        raise EmoExportError(f"{file} can't be unpacked: {error}") from error
    library(folder)
    if not (folder / BUILD).is_file():
        raise EmoExportError(f"{file} holds no {BUILD}, which tells the version of llama.cpp")
    build = json.loads((folder / BUILD).read_text("utf-8"))
    return str(build["buildOptions"]["llamaCpp"]["release"])


def _wanted(name: str) -> bool:
    return name == BUILD or LIBRARIES.fullmatch(name) is not None


def library(folder: Path) -> Path:
    """Libllama in a folder, under whatever version it carries in its name."""
    found = [path for path in folder.iterdir() if LIBLLAMA.fullmatch(path.name)]
    if len(found) != 1:
        raise EmoExportError(f"{folder} holds {len(found)} files of the name libllama.so, not one")
    return found[0]
