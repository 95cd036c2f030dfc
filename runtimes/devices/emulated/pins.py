"""What emulated devices are made of: exact versions and digests, read from pins.json.

`python -m tests.bench.device_pins` remakes the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError

FILE = Path(__file__).with_name("pins.json")


@dataclass(frozen=True)
class Package:
    """A Debian package: `version` as Debian writes it, `sha256` in hex, `nbytes` of the .deb."""

    name: str
    arch: str
    version: str
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Wheel:
    """A wheel for arm64 Linux, of one version of Python."""

    name: str
    version: str
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Tarball:
    """A package of npm; `integrity` is npm's: sha512-, then base64."""

    name: str
    version: str
    integrity: str
    nbytes: int


@dataclass(frozen=True)
class Pins:
    """All pinned files. `qemu` is by host architecture, `wheels` by Python version ("3.13")."""

    suite: str
    index_bytes: int
    qemu: Mapping[str, Package]
    root: tuple[Package, ...]
    wheels: Mapping[str, tuple[Wheel, ...]]
    llama: Tarball

    @property
    def python(self) -> str:
        """The Python version of the root, such as "3.13"."""
        names = (re.fullmatch(r"python(\d+\.\d+)-minimal", package.name) for package in self.root)
        found = next(filter(None, names), None)
        if found is None:
            raise EmoExportError(f"{FILE} pins no python3.N-minimal")
        return found[1]


def read_pins(path: Path = FILE) -> Pins:
    """Read and check the file. Raises EmoExportError naming what is missing or not well-formed."""
    content = read_json(path)
    try:
        debian = content["debian"]
        pins = Pins(
            str(debian["suite"]),
            int(debian["index_bytes"]),
            {arch: _package(entry) for arch, entry in debian["qemu"].items()},
            tuple(_package(entry) for entry in debian["root"]),
            {
                python: tuple(_wheel(entry) for entry in entries)
                for python, entries in content["wheels"].items()
            },
            _tarball(content["llama"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EmoExportError(f"{path}: not a pins file ({error!r}); install it again") from error
    return pins


def digest_of(pinned: Iterable[Package | Wheel | Tarball]) -> str:
    """Twelve hex digits that change with any of these pins; they name folders of the cache."""
    facts = "\n".join(sorted(repr(astuple(entry)) for entry in pinned))
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _package(entry: Mapping[str, Any]) -> Package:
    digest = _matching(r"[0-9a-f]{64}", entry["sha256"])
    name, arch = _matching(r"[a-z0-9.+-]+", entry["name"]), _matching(r"\w+", entry["arch"])
    return Package(name, arch, _version(entry), digest, int(entry["bytes"]))


def _wheel(entry: Mapping[str, Any]) -> Wheel:
    digest = _matching(r"[0-9a-f]{64}", entry["sha256"])
    name = _matching(r"[a-z0-9_-]+", entry["name"])
    return Wheel(name, _version(entry), digest, int(entry["bytes"]))


def _tarball(entry: Mapping[str, Any]) -> Tarball:
    digest = _matching(r"sha512-[A-Za-z0-9+/]{86}==", entry["integrity"])
    name = _matching(r"@?[a-z0-9./-]+", entry["name"])
    return Tarball(name, _version(entry), digest, int(entry["bytes"]))


def _version(entry: Mapping[str, Any]) -> str:
    return _matching(r"[0-9][0-9A-Za-z.+~:-]*", entry["version"])


def _matching(pattern: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ValueError(f"{value!r} is not of the form {pattern}")
    return value
