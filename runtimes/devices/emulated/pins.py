"""What emulated devices are made of: exact versions and digests, read from pins.json.

`python -m tests.bench.device_pins` remakes the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from emo_export.base.json_file import parse_object
from emo_export.errors import EmoExportError

FILE = resources.files(__package__).joinpath("pins.json")  # it may lie in a zip
FORMS = {
    "name": r"@?[a-z0-9_.+/-]+",
    "version": r"[0-9][0-9A-Za-z.+~:-]*",
    "arch": r"\w+",
    "sha256": r"[0-9a-f]{64}",
    "integrity": r"sha512-[A-Za-z0-9+/]{86}==",
}


@dataclass(frozen=True)
class Pin:
    """A file to fetch: a Debian package (which has an `arch`), a wheel or a package of npm.

    `digest` is a SHA-256 in hex; of npm's the `integrity`: sha512-, then base64.
    """

    name: str
    version: str
    digest: str
    nbytes: int
    arch: str = ""


@dataclass(frozen=True)
class Pins:
    """All pinned files. `qemu` is by host architecture, `wheels` by Python version ("3.13")."""

    suite: str
    index_bytes: int
    qemu: Mapping[str, Pin]
    root: tuple[Pin, ...]
    wheels: Mapping[str, tuple[Pin, ...]]
    llama: Pin

    @property
    def python(self) -> str:
        """The Python version of the root, such as "3.13"."""
        names = (re.fullmatch(r"python(\d+\.\d+)-minimal", package.name) for package in self.root)
        found = next(filter(None, names), None)
        if found is None:
            raise EmoExportError(f"{FILE} pins no python3.N-minimal")
        return found[1]


def read_pins(path: Traversable = FILE) -> Pins:
    """Read and check the file. Raises EmoExportError naming what is missing or not well-formed."""
    content = parse_object(path.read_bytes(), str(path))
    try:
        debian, wheels = content["debian"], content["wheels"]
        return Pins(
            str(debian["suite"]),
            int(debian["index_bytes"]),
            {arch: _pin(entry, "sha256", "arch") for arch, entry in debian["qemu"].items()},
            tuple(_pin(entry, "sha256", "arch") for entry in debian["root"]),
            {python: tuple(_pin(e, "sha256") for e in some) for python, some in wheels.items()},
            _pin(content["llama"], "integrity"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EmoExportError(f"{path}: not a pins file ({error!r}); install it again") from error


def digest_of(pins: Iterable[Pin]) -> str:
    """Twelve hex digits that change with any of these pins; they name folders of the cache."""
    facts = "\n".join(sorted(repr(astuple(pin)) for pin in pins))
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def _pin(entry: Mapping[str, Any], digest: str, *more: str) -> Pin:
    for key in ("name", "version", digest, *more):
        if not isinstance(entry[key], str) or not re.fullmatch(FORMS[key], entry[key]):
            raise ValueError(f"{entry[key]!r} is not of the form {FORMS[key]}")
    name, version, arch = entry["name"], entry["version"], entry["arch"] if more else ""
    return Pin(name, version, entry[digest], int(entry["bytes"]), arch)
