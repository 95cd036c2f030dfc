"""Reading a text, or a JSON object, from a file, with errors that name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark, which some editors put in front.

    Raises EmoExportError when it is missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise EmoExportError(f"there is no file {path}") from error
    except OSError as error:
        raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise EmoExportError(f"{path} is not UTF-8: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Parse a file that holds one JSON object.

    Raises EmoExportError when it is missing, unreadable, no JSON, or something else than an object.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EmoExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EmoExportError(f"{path} holds {type(value).__name__}, expected an object")
    return value
