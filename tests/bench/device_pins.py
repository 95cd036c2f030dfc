"""Remakes runtimes/devices/emulated/pins.json: what is newest in Debian's suite, on PyPI and npm.

    python -m tests.bench.device_pins

Look at the diff, then run `pytest -m device`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from emo_export.files.manifest import digest
from emo_export.runtimes.devices.emulated import debian as device_debian
from emo_export.runtimes.devices.emulated.engines import PLATFORMS, npm_registry
from emo_export.runtimes.devices.emulated.fetch import Progress
from emo_export.runtimes.devices.emulated.pins import FILE as PINS
from emo_export.runtimes.devices.emulated.pins import Pin

SUITE = "trixie"
ROOT = """libc6 libgcc-s1 libstdc++6 libgomp1 zlib1g libffi8 libexpat1 libssl3t64 libbz2-1.0
liblzma5 libzstd1 libpython3.13-minimal libpython3.13-stdlib python3.13-minimal""".split()
HOSTS = ("amd64", "arm64")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
WHEELS = ("numpy>=2,<3", "onnxruntime==1.31.1", "tokenizers>=0.22,<0.24")
LLAMA = "@node-llama-cpp/linux-arm64"


def debian() -> dict[str, Any]:
    """Ask the machine's mirror; apt checks the answer's signature."""
    wanted = [("qemu-user", host) for host in HOSTS] + [(name, "arm64") for name in ROOT]
    asked = [Pin(name, "0", "", 0, arch) for name, arch in wanted]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fetched = device_debian.fetch(asked, SUITE, folder, Progress(_tell))
        (release,) = (folder / "apt" / "state" / "lists").glob("*InRelease")
        index = _index_bytes(release)
    entries = [
        {
            "name": one.pin.name,
            "arch": one.pin.arch,
            "version": one.pin.version,
            "sha256": one.pin.digest,
            "bytes": one.pin.nbytes,
        }
        for one in fetched
    ]
    qemu = {entry["arch"]: entry for entry in entries[: len(HOSTS)]}
    return {"suite": SUITE, "index_bytes": index, "qemu": qemu, "root": entries[len(HOSTS) :]}


def _index_bytes(release: Path) -> int:
    """What apt fetches to know the packages of both architectures."""
    lines = (line.split() for line in release.read_text("utf-8").splitlines())
    names = {f"main/binary-{arch}/Packages.xz" for arch in HOSTS}
    sizes = {line[2]: int(line[1]) for line in lines if len(line) == 3 and line[2] in names}
    return release.stat().st_size + sum(sizes.values())


def wheels(python: str) -> list[dict[str, Any]]:
    """The newest wheels for a version of Python that our bounds allow."""
    _tell(f"wheels for Python {python}")
    with tempfile.TemporaryDirectory() as name:
        tags = [f"--platform={platform}" for platform in PLATFORMS]
        options = ["-q", "--no-deps", "--only-binary=:all:", f"--python-version={python}", *tags]
        command = [sys.executable, "-m", "pip", "download", *options, "-d", name, *WHEELS]
        subprocess.run(command, check=True)
        return [_wheel(path) for path in sorted(Path(name).glob("*.whl"))]


def _wheel(path: Path) -> dict[str, Any]:
    name, version = path.name.split("-")[:2]
    nbytes = path.stat().st_size
    return {"name": name, "version": version, "sha256": digest(path), "bytes": nbytes}


def llama() -> dict[str, Any]:
    """The newest package of npm, with the digest that the registry publishes."""
    with tempfile.TemporaryDirectory() as name:
        registry = npm_registry(Path(name))
    with urllib.request.urlopen(f"{registry}/{LLAMA}/latest") as answer:
        found = json.load(answer)
    with urllib.request.urlopen(found["dist"]["tarball"]) as answer:
        nbytes = len(answer.read())
    version, integrity = found["version"], found["dist"]["integrity"]
    return {"name": LLAMA, "version": version, "integrity": integrity, "bytes": nbytes}


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def main() -> None:
    content = {
        "debian": debian(),
        "wheels": {python: wheels(python) for python in PYTHONS},
        "llama": llama(),
    }
    assert isinstance(PINS, Path)  # of this tree, which is no zip
    PINS.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
