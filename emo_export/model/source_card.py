"""What a checkpoint's own model card says of its licence, and which model of the hub it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from emo_export.base.plain_file import read_plain
from emo_export.errors import EmoExportError

CARD = "README.md"
MOST_BYTES = 1 << 20
UNKNOWN = "unknown"  # a word of the hub's for it
_HEAD = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", re.DOTALL)
_ID = re.compile(r"[A-Za-z0-9_.-]+")
_KEYS = "license|license_name|license_link"
_LINE = re.compile(
    rf"^({_KEYS}):[ \t]*[\"']?(\w[\w./:+-]{{0,200}}(?<!:))[\"']?[ \t]*$", re.MULTILINE
)


def licence_of(folder: Path) -> Mapping[str, str]:
    """The lines on the licence in the head of a checkpoint's card, as the hub names them.

    `license` is always there: UNKNOWN where no card says one. Source: hub docs, Model cards.
    """
    try:
        text = read_plain(folder / CARD, MOST_BYTES).decode("utf-8", errors="replace")
    except EmoExportError:  # none, or nothing that could be one
        text = ""
    head = _HEAD.match(text.replace("\r\n", "\n"))
    found = dict(_LINE.findall(head[1])) if head else {}
    return found if "license" in found else {"license": UNKNOWN}


def hub_id(folder: Path) -> str | None:
    """`owner/name` of a folder in the hub's cache (`models--owner--name/snapshots/REVISION`)."""
    place = folder.absolute()
    words = place.parent.parent.name.split("--")
    if place.parent.name != "snapshots" or len(words) != 3 or words[0] != "models":
        return None
    if not all(map(_ID.fullmatch, words)):  # it goes into the head of a card, which is YAML
        return None
    return f"{words[1]}/{words[2]}"
