"""domains.json: that a folder holds a package for each of several domains, each in its own folder.

{"version": 1, "domains": ["c", "python"]}
"""

from __future__ import annotations

import filecmp
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from emo_export.base.disk import writing
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError

NAME = "domains.json"
VERSION = 1
_NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Raise EmoExportError for a domain's name that is no plain name of a folder."""
    if not _NAMES.fullmatch(name) or name == NAME:
        raise EmoExportError(
            f"--domain {name}: it names a folder, so expected up to 64 letters, digits, ., _ or -, "
            "not beginning with a sign"
        )


def is_domains(folder: Path) -> bool:
    """Whether a folder says that it holds packages of domains."""
    return (folder / NAME).is_file()


def read_domains(folder: Path) -> list[str]:
    """The names, in the order in which they were given. Raises EmoExportError."""
    path = folder / NAME
    try:
        raw = read_json(path)
        names, version = raw["domains"], raw["version"]
        if version != VERSION or not names or not all(map(_NAMES.fullmatch, names)):
            raise ValueError(f"version {version}, domains {names!r:.200}")
    except (ValueError, KeyError, TypeError) as error:
        raise EmoExportError(f"{path}: is no list of domains of emo-export ({error})") from error
    return list(names)


def domain_folder(folder: Path, name: str) -> Path:
    """Where the package of a domain lies. Raises EmoExportError where there is none."""
    if not is_domains(folder):
        raise EmoExportError(f"{folder}: has no {NAME}; --domain chooses from what --domain made")
    names = read_domains(folder)
    if name not in names:
        raise EmoExportError(f"{folder}: has no domain {name}; it has {', '.join(names)}")
    return folder / name


def check_links(folder: Path) -> None:
    """Raise EmoExportError where a file of a folder can't have two names."""
    one, other = folder / ".one", folder / ".other"
    one.touch()
    try:
        os.link(one, other)
    except OSError as error:
        raise EmoExportError(
            f"{folder.parent}: its file system has no hard links ({error.strerror}), with which "
            "--share-trunk stores a trunk once; export to another disk, or without --share-trunk"
        ) from error
    finally:
        one.unlink()
        other.unlink(missing_ok=True)


def share(first: Path, other: Path) -> None:
    """Make `other`, which holds the same bytes, a second name of `first`.

    Engines refuse links that lead out of a model's folder; a hard link is the file itself.
    """
    if not filecmp.cmp(first, other, shallow=False):
        raise EmoExportError(f"{other}: is not the trunk that {first} is; a bug, please report it")
    with writing(other):
        other.unlink()
        os.link(first, other)


def write_domains(folder: Path, names: Sequence[str]) -> None:
    """Write domains.json."""
    with writing(folder / NAME):
        (folder / NAME).write_text(domains_text(names), encoding="utf-8")


def domains_text(names: Sequence[str]) -> str:
    """What domains.json holds, to the byte."""
    return json.dumps({"version": VERSION, "domains": list(names)}, indent=2) + "\n"
